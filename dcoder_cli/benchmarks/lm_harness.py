"""The model `dcoder` of lm-evaluation-harness: any of its tasks on any checkpoint, with the sampler's own settings.

    python -m dcoder_cli.benchmarks.lm_harness --model dcoder --model_args pretrained=FOLDER,steps=64 --tasks TASK

takes what `lm_eval` takes. The harness (0.4.9 or newer; extra `lm-eval`) finds models in its own table only, so that `lm_eval`
itself does not know this one; in Python `register()` tells it before `lm_eval.simple_evaluate(model="dcoder", ..)`.

Log-likelihoods are those of likelihood.py: exact for AR models, and for diffusion models exact of writing from left to right.
"""

from __future__ import annotations

import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from dcoder_cli.base import config, console
from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError, WorkFailed, one_line

_LOADING = ("pretrained", "device", "dtype", "attention")
_OWN = (*_LOADING, "batch_size", "add_bos_token", "max_gen_toks")
_LENGTHS = (
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
)  # the harness's names for one thing
_GEN_TOKS = 256  # the harness's own default, where neither task nor user says how long answers are


class HarnessModel:
    """A checkpoint as the harness asks it. `arguments` are those of --model_args; see `lm_class` for the harness's side.

    What they set of the sampler stands over a task's generation_kwargs. Raises UserError for one that is not known.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        from dcoder_cli.decoding import unused
        from dcoder_cli.decoding.requests import Settings
        from dcoder_cli.model.loading import load

        given = dict(arguments)
        self._names = {field.name for field in fields(Settings)}
        for name in given:
            if name not in self._names and name not in _OWN:
                raise UserError(f"--model_args {name} is unknown{nearest(name, [*_OWN, *sorted(self._names)])}")
        if "pretrained" not in given:
            raise UserError("--model_args has no pretrained=..; give a checkpoint folder or hub id")
        self.batch_size = given.pop("batch_size", 1)
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise UserError(f"batch_size {self.batch_size!r} must be a whole number from 1")
        self._bos = bool(given.pop("add_bos_token", False))
        self._tokens = given.pop("max_gen_toks", _GEN_TOKS)
        if type(self._tokens) is not int or self._tokens < 1:
            raise UserError(f"max_gen_toks {self._tokens!r} must be a whole number from 1")
        loading = {name: given.pop(name) for name in _LOADING if name in given}
        config.build(Settings, given, where="--model_args")
        self._settings = given
        self.model = load(str(loading.pop("pretrained")), **loading)
        if self.model.tokenizer is None:
            raise UserError(f"model {self.model.name!r} has no tokenizer, and tasks are text; add one to its folder")
        written = {name: f"--model_args {name}={value}" for name, value in given.items()}
        unused.refuse_for_kind(written, str(arguments["pretrained"]))
        self._chats: dict[str, tuple[int, ...]] = {}

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A chat as text; its ids are kept for when the text comes back."""
        from dcoder_cli.model import chat

        asked = chat.encode(self.model.tokenizer, list(messages), self.model.name)
        self._chats[asked.text] = tuple(asked.ids)
        return asked.text

    def template(self) -> str:
        """The chat template's source; "" without one."""
        return str(getattr(self.model.tokenizer, "chat_template", None) or "")

    def encode(self, text: str) -> list[int]:
        """Ids of a context."""
        tokenizer: Any = self.model.tokenizer
        if text in self._chats:
            return list(self._chats[text])
        bos = tokenizer.bos_token
        ids = list(tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"])
        if self._bos and bos and ids[:1] != [tokenizer.bos_token_id]:
            ids.insert(0, tokenizer.bos_token_id)
        return ids

    def generate(
        self,
        asked: Sequence[tuple[str, Mapping[str, Any]]],
        seeds: Sequence[int],
        told: Callable[[int], None] = lambda _: None,
    ) -> list[str]:
        """The text that goes on after each context, up to its first stop.

        Args:
            asked: contexts with their generation_kwargs.
            seeds: each one's number, mixed with the seed of the settings.
            told: called with how many more are done.

        Raises:
            UserError: generation_kwargs that are not the sampler's, or leave a prompt no room.
        """
        from dcoder_cli.decoding.requests import Encoded, Settings
        from dcoder_cli.decoding.sampler import decode
        from dcoder_cli.execution.extract import truncate_at_stops

        groups: dict[str, list[int]] = {}
        settings: dict[str, Settings] = {}
        stops: list[tuple[str, ...]] = []
        for place, (_, options) in enumerate(asked):
            chosen, until = self._chosen(options)
            stops.append(until)
            settings[repr(chosen)] = config.build(Settings, chosen, where="generation_kwargs")
            groups.setdefault(repr(chosen), []).append(place)
        texts = [""] * len(asked)
        for name, places in groups.items():
            room = self.model.max_length - settings[name].max_new_tokens
            if room < 1:
                raise UserError(
                    f"{settings[name].max_new_tokens} new tokens leave no room in the context of {self.model.max_length}; "
                    "lower max_gen_toks (--gen_kwargs) or give max_new_tokens in --model_args"
                )
            prompts = [Encoded(asked[place][0], tuple(self.encode(asked[place][0])[-room:])) for place in places]
            found = decode(
                self.model, prompts, settings[name], seeds=[seeds[place] for place in places], batch_size=self.batch_size,
                on_done=lambda _: told(1),
            )  # fmt: skip
            for place, one in zip(places, found, strict=True):
                texts[place] = truncate_at_stops(one.text, stops[place])
        return texts

    def _chosen(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The sampler's settings for a task's generation_kwargs under the user's, and the stops."""
        given = {name: value for name, value in options.items() if value is not None}
        until = given.pop("until", ())
        stops = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)
        lengths = [given.pop(name) for name in _LENGTHS if name in given]
        sampled = given.pop("do_sample", None)
        if sampled is False:
            given["temperature"] = 0.0
        elif sampled:
            given.setdefault("temperature", 1.0)  # transformers' default, which the harness's tasks are written for
        if type(given.get("top_k")) is int and given["top_k"] < 1:
            del given["top_k"]  # 0 and -1 are off in the harness's other models
        unknown = [name for name in given if name not in self._names]
        if unknown:
            raise UserError(
                f"generation_kwargs {unknown[0]!r} is unknown here{nearest(unknown[0], sorted(self._names))}"
            )
        return {"max_new_tokens": int(lengths[0]) if lengths else self._tokens, **given, **self._settings}, stops

    # --- log-likelihoods ---------------------------------------------------------------------------------------------

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of what follows it, cut as the harness cuts them: blanks between belong to the latter."""
        tokenizer: Any = self.model.tokenizer
        if not context:
            return self.beginning(), list(tokenizer(continuation, add_special_tokens=False)["input_ids"])
        if context in self._chats:
            return self.encode(context), list(tokenizer(continuation, add_special_tokens=False)["input_ids"])
        kept = context.rstrip()
        before, whole = self.encode(kept), self.encode(kept + context[len(kept) :] + continuation)
        return before, whole[len(before) :]

    def beginning(self) -> list[int]:
        """What stands before a text without a context. Raises UserError where the tokenizer has no such token."""
        tokenizer: Any = self.model.tokenizer
        found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if found is None:
            raise UserError(f"model {self.model.name!r} has no begin or end token to begin a text with; give contexts")
        return [int(found)]


def lm_class() -> Any:
    """The harness's side: a class of its own kind over `HarnessModel`. Raises UserError where it is not installed."""
    try:
        from lm_eval import utils
        from lm_eval.api.model import LM
    except ImportError as error:
        raise UserError(
            f"lm-evaluation-harness is not here ({one_line(error)}); pip install 'dcoder[lm-eval]'"
        ) from None

    from dcoder_cli.benchmarks import likelihood

    class DcoderLM(LM):  # type: ignore[misc]
        """Requests of the harness, put to a `HarnessModel`."""

        def __init__(self, **arguments: Any) -> None:
            super().__init__()
            self.inner = HarnessModel(arguments)
            self._device = self.inner.model.device

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> Any:
            return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

        @classmethod
        def create_from_arg_obj(cls, arg_dict: Any, additional_config: Any = None) -> Any:
            others = {name: value for name, value in (additional_config or {}).items() if value is not None}
            if others.pop("max_batch_size", None) is not None:
                raise UserError("--max_batch_size has no effect: batches are not searched; leave it out")
            size = others.get("batch_size")
            if isinstance(size, str) and size.isdecimal():  # as the command line gives it
                others["batch_size"] = int(size)
            return cls(**{**others, **arg_dict})

        @property
        def tokenizer_name(self) -> str:
            return str(self.inner.model.name)

        def chat_template(self, chat_template: Any = False) -> str:
            if isinstance(chat_template, str):
                raise UserError(
                    f"--apply_chat_template {chat_template!r}: templates are not chosen by name; leave it out"
                )
            return self.inner.template()

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return self.inner.chat(chat_history)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            seen: Counter[tuple[str, int]] = Counter()
            seeds = []
            for one in requests:  # repeats of a request draw afresh, and none draws by what else is asked
                seen[str(one.task_name), int(one.doc_id)] += 1
                seeds.append(zlib.crc32(f"{one.task_name} {one.doc_id} {seen[one.task_name, one.doc_id]}".encode()))
            with console.bar("generate_until", len(requests), quiet=disable_tqdm) as bar:
                found = self.inner.generate([one.args for one in requests], seeds, bar.advance)
            for one, text in zip(requests, found, strict=True):
                self.cache_hook.add_partial("generate_until", one.args, text)
            return found

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            pairs = [self.inner.pair(*one.args) for one in requests]
            with console.bar("loglikelihood", len(requests), quiet=disable_tqdm) as bar:
                found = likelihood.score(self.inner.model, pairs, self.inner.batch_size, bar.advance)
            for one, answer in zip(requests, found, strict=True):
                self.cache_hook.add_partial("loglikelihood", one.args, answer)
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            model = self.inner.model
            if model.is_diffusion:
                raise UserError(
                    f"{model.name!r} is a diffusion model, which would need a forward pass for each token of whole documents; "
                    "take tasks that generate, or that choose among short continuations"
                )
            found = []
            tokenizer: Any = model.tokenizer
            for one in requests:
                ids = tokenizer(one.args[0], add_special_tokens=False)["input_ids"]
                windows = utils.get_rolling_token_windows(ids, self.inner.beginning()[0], model.max_length - 1, 1)
                pairs = [utils.make_disjoint_window(window) for window in windows]
                found.append(sum(total for total, _ in likelihood.score(model, pairs, self.inner.batch_size)))
                self.cache_hook.add_partial("loglikelihood_rolling", one.args, found[-1])
            return found

    return DcoderLM


def register() -> None:
    """Tell the harness of the model `dcoder`. Raises UserError where it is not installed."""
    made = lm_class()
    from lm_eval.api import registry

    if "dcoder" not in registry.MODEL_REGISTRY:
        enter: Any = registry.register_model("dcoder")
        enter(made)


def main() -> None:
    """`lm_eval`, which knows the model `dcoder`: exit 2 where the input is wrong, as all commands."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except (UserError, WorkFailed) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)


if __name__ == "__main__":
    main()

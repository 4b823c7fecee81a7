"""How each system's own evaluation asks: prompts, what the answer is made to begin with, stops, sampler settings.

A score is comparable with a published one only under the same protocol, so its name goes into every result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks.benchmark import Item, Kind, Suite
from dcoder_cli.execution.extract import extract_solution, truncate_at_stops
from dcoder_cli.model import chat

if TYPE_CHECKING:
    from dcoder_cli.decoding.requests import Prompt
    from dcoder_cli.model.backbone import Model

Name = Literal["diffucoder", "dream", "qwen", "llada"]
NAMES: tuple[Name, ...] = ("diffucoder", "dream", "qwen", "llada")

# The ends of a function in a base model's text: those of the Qwen2.5-Coder and EvalPlus harnesses.
_BASE_STOPS = (
    "<|endoftext|>", "\nif __name__", "\ndef main(", "\nprint(", "\ndef ", "\nclass ", "\nimport ", "\nfrom ",
    "\nassert ",
)  # fmt: skip
_BASE_WHOLE_STOPS = ('\n"""', "\nassert")  # EvalPlus
_CHAT_STOPS = ("\n```\n",)  # EvalPlus: the fence that closes the prefilled one
_SHOT_IDS = (2, 3, 4)  # Dream and lm-evaluation-harness: the three examples of MBPP
_SYSTEM = "You are a helpful assistant."  # DiffuCoder B.2
_PREFILL = "Here is the code to solve this problem:\n```python\n"  # DiffuCoder B.2
# EvalPlus, with which Qwen2.5-Coder-Instruct's published scores were made
_QWEN_ASK = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
_QWEN_PREFILL = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:\n"
    "```python\n"
)


@dataclass(frozen=True)
class Ask:
    """What is asked of the model for one item: the prompt, and the beginning that its answer was given."""

    prompt: Prompt
    prefill: str = ""
    bos: bool = False


@dataclass(frozen=True)
class Protocol:
    """A system's way of evaluating: `name`, and `instruct` (chat) or base (plain text)."""

    name: Name
    instruct: bool

    @property
    def title(self) -> str:
        """Name and variant, as in result files."""
        return f"{self.name}-{'instruct' if self.instruct else 'base'}"

    def settings(self, kind: Kind, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The sampler's settings for items of a kind; `own`: the benchmark's, over these."""
        if self.name == "qwen":  # greedy, 768 new tokens (Qwen2.5-Coder's harness)
            found: dict[str, Any] = {"max_new_tokens": 768, "temperature": 0.0}
        elif self.name == "llada":  # DiffuCoder B.2: low confidence, temperature 0
            found = {"max_new_tokens": 512, "rule": "confidence", "temperature": 0.0}
        elif self.name == "dream" and self.instruct:  # Dream's evaluation: 768 for HumanEval, 1024 for MBPP
            length = 1024 if kind == "whole" else 768
            found = {"max_new_tokens": length, "rule": "entropy", "temperature": 0.1, "top_p": 0.9}
        else:  # DiffuCoder B.2, and Dream's base models
            found = {"max_new_tokens": 512, "rule": "entropy", "temperature": 0.2, "top_p": 0.95}
        if self.name != "qwen":
            # The published scores were made by samplers that leave ties to torch.topk (Dream's and LLaDA's generation code).
            found["tie_break"] = "topk"
        return {name: value for name, value in {**found, **(own or {})}.items() if value is not None}

    def ask(self, item: Item, suite: Suite) -> Ask:
        """The prompt of an item.

        Raises:
            UserError: the protocol has no prompt for it.
        """
        if item.kind == "infill":
            from dcoder_cli.decoding.requests import Infill

            return Ask(Infill(item.prompt, item.suffix))
        bos = self.name == "dream" and not self.instruct  # Dream's harness sets add_bos_token
        if item.own is not None:
            if self.instruct:
                return Ask(list(item.own.chat))
            if item.own.no_plain:
                raise UserError(f"{suite.name} cannot ask base models here: {item.own.no_plain}")
            return Ask(item.own.plain, bos=bos)
        return self._chat(item) if self.instruct else Ask(self._plain(item, suite), bos=bos)

    def _chat(self, item: Item) -> Ask:
        if self.name == "qwen":
            user, prefill = f"{_QWEN_ASK}\n```\n{item.prompt.strip()}\n```\n", _QWEN_PREFILL
            turns = []
        else:
            whole = item.kind in ("whole", "words")  # these prompts say themselves what to do
            user = ("" if whole else "Please complete the following problem:\n") + f"```\n{item.prompt}\n```\n"
            turns, prefill = [{"role": "system", "content": _SYSTEM}], _PREFILL
        turns += [{"role": "user", "content": user}, {"role": "assistant", "content": prefill}]
        return Ask(turns, prefill)

    def _plain(self, item: Item, suite: Suite) -> str:
        if item.kind == "words":
            raise UserError(f"{suite.name} is for instruct models; use another --subset, or --instruct")
        if item.kind == "whole" and self.name in ("dream", "llada"):
            return _three_shots(item, suite)
        # Dream's harness gives HumanEval's prompt as it is; Qwen2.5-Coder's and EvalPlus's strip it
        return item.prompt if self.name == "dream" else item.prompt.strip() + "\n"

    def stops(self, item: Item) -> tuple[str, ...]:
        """Where the text of an answer is cut."""
        if item.own is not None:
            return item.own.chat_stops if self.instruct else item.own.plain_stops
        if item.kind == "infill":
            return ()
        if self.instruct:
            return _CHAT_STOPS
        if item.kind == "whole":
            return ("[DONE]",) if self.name in ("dream", "llada") else _BASE_WHOLE_STOPS
        return _BASE_STOPS

    def solution(self, item: Item, text: str, prefill: str = "") -> str:
        """The program (for questions the answer) in a model's text."""
        cut = truncate_at_stops(text, self.stops(item))
        if item.own is not None and item.own.answer is not None:
            return item.own.answer(cut, self.instruct)
        if not item.entry_point:
            return cut
        if item.kind == "infill":
            return item.prompt + cut + item.suffix
        if not self.instruct and item.kind == "complete":
            lead = item.prompt if self.name == "dream" else item.prompt.strip() + "\n"
            return extract_solution(lead + cut, item.entry_point, also=item.names)
        return extract_solution(cut, item.entry_point, prefill, also=item.names)


def _three_shots(item: Item, suite: Suite) -> str:
    """MBPP's prompt with three worked examples (Austin et al. 2021; Dream: tasks 2, 3 and 4)."""
    by_number = {int(one.task_id.rpartition("/")[2]): one for one in suite.examples}
    missing = [number for number in _SHOT_IDS if number not in by_number]
    if missing:
        raise UserError(f"{suite.name} lacks task {missing[0]}, which the 3-shot prompt shows; use another --subset")
    shots = "".join(
        f"{_described(by_number[number])}{by_number[number].reference.strip()}\n[DONE]\n\n" for number in _SHOT_IDS
    )
    return shots + _described(item)


def _described(item: Item) -> str:
    tests = "\n".join(item.shown_tests)
    return (
        f"You are an expert Python programmer, and here is your task: {item.description} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def choose(model: Model, name: str | None = None, instruct: bool | None = None) -> Protocol:
    """The protocol for a checkpoint: what was asked for, else by what the checkpoint is.

    AR models take `qwen`, a layout with a protocol its own (LLaDA: `llada`), names with "dream" `dream`, all else `diffucoder`. Instruct: the stage
    recorded by our training, else the name ("instruct", "chat", "cpgrpo").

    Raises:
        UserError: an unknown name, or instruct without a chat template.
    """
    if name is not None and name not in NAMES:
        raise UserError(f"--protocol {name!r} is unknown; use {', '.join(NAMES)}")
    chosen = next((known for known in NAMES if known == name), None) or _by_checkpoint(model)
    if instruct:
        try:
            chat.check(model.tokenizer, model.name)
        except UserError as error:
            raise UserError(f"--instruct asks by chat: {error}; or use --base") from None
    if instruct is None:
        template = chat.has_template(model.tokenizer)
        stage = model.config.get("dcoder", {}).get("stage")
        tail = model.name.lower().rstrip("/").split("/")[-1]
        spoken = any(mark in tail for mark in ("instruct", "chat", "cpgrpo"))
        instruct = template and (stage in ("sft", "grpo") or (stage is None and spoken))
    return Protocol(chosen, instruct)


def _by_checkpoint(model: Model) -> Name:
    if not model.is_diffusion:
        return "qwen"
    if model.layout.protocol is not None:
        return model.layout.protocol
    tail = model.name.lower().rstrip("/").split("/")[-1]
    return "dream" if tail.startswith("dream") else "diffucoder"

"""The model that is measured: a checkpoint, or random weights of a named size. Refusals come before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError
from dcoder_cli.model.sizes import SIZES, config_of

if TYPE_CHECKING:
    from dcoder_cli.model.backbone import Model
    from dcoder_cli.training.memory.shape import Shape

_FAMILY = "qwen2.5-coder-"
_LIVELY = 1024  # rows of the head that random weights make likely (ours): no more than the smallest vocabulary has


@dataclass(frozen=True)
class ModelChoice:
    """Which model, by the one of two names that was given.

    Attributes:
        name: a checkpoint's folder or hub id, or a size's name.
        random: whether it is a size.
        config: config.json.
        shape: its numbers.
    """

    name: str
    random: bool
    config: dict[str, Any]
    shape: Shape

    def check_length(self, tokens: int, words: str) -> None:
        """Raises UserError where a row of so many tokens is longer than the model was made for."""
        if tokens > self.shape.context:
            raise UserError(
                f"{words} make rows of {tokens} tokens, and the context of {self.name!r} is {self.shape.context}; lower them"
            )

    def load(self, device: str | None, dtype: str | None, seed: int) -> Model:
        """The model, ready to decode.

        Raises:
            UserError: a device, a number format or a checkpoint that is none.
            WorkFailed: there is not enough memory for it.
        """
        from dcoder_cli.timing.race import refuse_memory

        try:
            return self._loaded(device, dtype, seed)
        except RuntimeError as error:
            refuse_memory(error)
            raise

    def _loaded(self, device: str | None, dtype: str | None, seed: int) -> Model:
        from dcoder_cli.model import backbone, loading

        if not self.random:
            return loading.load(self.name, device, dtype)
        from dcoder_cli.model.layouts import LAYOUTS
        from dcoder_cli.model.special_ids import resolve
        from dcoder_cli.timing.weights import draw

        place = loading.choose_device(device)
        number = loading.choose_dtype(dtype, {"dtype": "bfloat16"}, place)
        layout = LAYOUTS["Dream"]
        network = loading.empty_network(self.config, layout, "sdpa", place)
        loading.fill(network, draw(network, place, number, lively=_LIVELY, seed=seed), self.name)
        ids, findings = resolve(self.config, None, True, self.name)
        return backbone.Model(network.eval(), self.config, layout, ids, findings, None, self.name)


def choose(model: str | None, size: str | None) -> ModelChoice:
    """What `--model` or `--shape` names; a tiny one where neither is given.

    Raises:
        UserError: both are given, there is no such model, or it is none that denoises.
    """
    from dcoder_cli.training.memory.shape import TINY_VOCABULARY, shape_of

    if model is not None and size is not None:
        raise UserError(f"--shape {size} has no effect: --model {model} is what is measured; give one of them")
    if model is None:
        name = _size(size or "tiny")
        vocabulary = SIZES[name].vocab_size or TINY_VOCABULARY
        config = _dream(config_of(name, vocabulary), vocabulary)
        return ModelChoice(name, True, config, shape_of(config, name))
    from dcoder_cli.model import checkpoint
    from dcoder_cli.model.layouts import layout_of

    config = checkpoint.read_config(checkpoint.find(model))
    if not layout_of(config, model).diffusion:
        raise UserError(
            f"--model {model} is an AR model, and a bench measures denoising; convert it with `dcoder convert`"
        )
    return ModelChoice(model, False, config, shape_of(config, model))


def sizes() -> list[str]:
    """The sizes' names, as `--shape` takes them."""
    return [name.removeprefix(_FAMILY) for name in SIZES]


def _size(asked: str) -> str:
    for name in (asked.lower(), _FAMILY + asked.lower()):
        if name in SIZES:
            return name
    raise UserError(f"--shape {asked!r} is unknown{nearest(asked, sizes())}")


def _dream(config: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """A diffusion model's config.json of an AR size; its last two ids are pad and mask."""
    kept = {key: value for key, value in config.items() if key != "use_sliding_window"}
    ids = {"mask_token_id": vocabulary - 1, "pad_token_id": vocabulary - 2, "eos_token_id": vocabulary - 2}
    return {**kept, **ids, "model_type": "Dream", "architectures": ["DreamModel"], "dcoder": {"shift": True}}


def told(choice: ModelChoice, model: Model) -> dict[str, Any]:
    """The model as results name it."""
    kind = "random weights" if choice.random else "checkpoint"
    size = f"{choice.shape.parameters / 1e6:,.4g} million parameters"
    return {"model": choice.name, "weights": kind, "size": size, "dtype": str(model.dtype).removeprefix("torch.")}

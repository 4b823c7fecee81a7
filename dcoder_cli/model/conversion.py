"""What `dcoder convert` does, from paths to a checkpoint folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import require_space
from dcoder_cli.model.backbone import Model, choose_dtype, load
from dcoder_cli.model.convert import ar_config_with_tokenizer, random_model, to_diffusion, tokenizer_of
from dcoder_cli.model.inspection import inspect
from dcoder_cli.model.sizes import SIZES, config_of
from dcoder_cli.model.tokenizer import train_tokenizer


def convert_checkpoint(name: str, out: Path, mask_id: int | None = None, dtype: str | None = None) -> dict[str, Any]:
    """Convert an AR checkpoint and write it; returns what `dcoder inspect` says of the result."""
    model = load(name, device="cpu", dtype=dtype or _recorded_dtype(name))
    return _write(to_diffusion(model, mask_id), out)


def initialise(
    size: str,
    out: Path,
    tokenizer: str | None,
    sources: Sequence[Path],
    vocab_size: int,
    ar: bool,
    mask_id: int | None,
    seed: int,
    dtype: str | None,
) -> dict[str, Any]:
    """Write a model of a named size with random weights, AR or diffusion, with a tokenizer if asked."""
    if size not in SIZES:
        config_of(size)  # raises, naming the nearest size
    words = tokenizer_of(tokenizer) if tokenizer else train_tokenizer(_texts(sources), vocab_size) if sources else None
    config = ar_config_with_tokenizer(config_of(size, None if words is None else len(words)), words)
    if not ar and words is None and mask_id is None:
        raise UserError(
            "a diffusion model needs a mask token: give --tokenizer, --train-tokenizer or --mask-id, or --ar for an AR model"
        )
    name = f"random {size}"
    model = random_model(config, words, seed, name, dtype)
    if not ar:
        model = to_diffusion(model, mask_id)
        model.config["dcoder"]["stage"] = "random"
    return _write(model, out)


def _write(model: Model, out: Path) -> dict[str, Any]:
    weights = model.network.state_dict()
    require_space(out, sum(value.numel() * value.element_size() for value in weights.values()), "the checkpoint")
    model.save(out)
    return inspect(str(out))


def _recorded_dtype(name: str) -> torch.dtype:
    from dcoder_cli.model import checkpoint

    return choose_dtype(None, checkpoint.read_config(checkpoint.find(name)), torch.device("meta"))


def _texts(sources: Sequence[Path]) -> Iterator[str]:
    """The text of every file given or under a folder given, in a fixed order."""
    found = False
    for source in sources:
        if not source.exists():
            raise UserError(f"--train-tokenizer {str(source)!r} does not exist; give a text file or a folder")
        for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if file.is_file() and file.suffix in (".py", ".txt", ".md", ".jsonl", ".json"):
                found = True
                yield file.read_text(encoding="utf-8", errors="replace")
    if not found:
        raise UserError(f"no .py, .txt, .md or .json file in {', '.join(map(str, sources))} to train a tokenizer on")

"""What `dcoder convert` does, from paths to a checkpoint folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import human_bytes, require_space
from dcoder_cli.base.machine import memory_bytes
from dcoder_cli.base.plan import RunPlan
from dcoder_cli.model import gguf
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.convert import Additions, diffusion_config, to_diffusion
from dcoder_cli.model.fresh import ar_config_with_tokenizer, random_model, tokenizer_of
from dcoder_cli.model.inspection import inspect
from dcoder_cli.model.layouts import layout_of
from dcoder_cli.model.loading import choose_dtype, empty_network, load
from dcoder_cli.model.outline import outline
from dcoder_cli.model.sizes import SIZES, config_of
from dcoder_cli.model.tokenizer import ids_end, train_tokenizer


def convert_checkpoint(
    name: str, out: Path, add: Additions = Additions(), dtype: str | None = None, tokenizer: str | None = None
) -> dict[str, Any]:
    """Convert an AR checkpoint and write it; returns what `dcoder inspect` says of the result.

    Args:
        name: a folder, a hub id, a GGUF file or a folder that holds one.
        add: what is added to its vocabulary.
        dtype: of what is written; None: as stored, float32 for a GGUF file, whose blocks bfloat16 would round again.
        tokenizer: instead of a GGUF file's own.
    """
    file = gguf.find(name)
    if file is None:
        model = load(name, device="cpu", dtype=dtype or _recorded_dtype(name))
    else:
        model = gguf.load(file, tokenizer, choose_dtype(dtype, {}, torch.device("cpu")))
    return _write(to_diffusion(model, add), out)


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
    config = ar_config_with_tokenizer(config_of(size, None if words is None else ids_end(words)), words)
    _check_mask(ar, words is not None, mask_id)
    name = f"random {size}"
    model = random_model(config, words, seed, name, dtype)
    if not ar:
        model = to_diffusion(model, Additions(mask_id))
        model.config["dcoder"]["stage"] = "random"
    return _write(model, out)


def plan_checkpoint(
    name: str, out: Path, add: Additions = Additions(), dtype: str | None = None, tokenizer: str | None = None
) -> RunPlan:
    """What `convert_checkpoint` would do, from the headers of the files; raises UserError as it does."""
    file = gguf.find(name)
    model = outline(name) if file is None else gguf.skeleton(file, tokenizer)
    recorded = None if file is not None else _recorded_dtype(name)
    number = choose_dtype(dtype or recorded, {}, torch.device("cpu"))
    made = diffusion_config(model, add)
    plan = RunPlan(f"convert {name}", {})
    count = sum(parameter.numel() for parameter in model.parameters())
    plan.add(
        "model", {"name": name, "layout": model.layout.name, "parameters": count},
        f"{name}: {model.layout.name}, {count:,} parameters",
    )  # fmt: skip
    config, known = made.config, len(made.new)
    added = f"{known} token{'s' if known != 1 else ''} added" if known else "all tokens are there"
    plan.add(
        "becomes", {"layout": made.layout.name, "mask_id": config["mask_token_id"], "vocab_size": config["vocab_size"]},
        f"{made.layout.name}, mask id {config['mask_token_id']}, {config['vocab_size']:,} rows of the vocabulary, {added}",
    )  # fmt: skip
    grown = (config["vocab_size"] - model.vocab_size) * config["hidden_size"]
    tables = 1 if config.get("tie_word_embeddings") else 2
    return _with_sizes(plan, count + max(0, grown) * tables, number, out)


def plan_initial(
    size: str,
    out: Path,
    tokenizer: str | None,
    sources: Sequence[Path],
    vocab_size: int,
    ar: bool,
    mask_id: int | None,
    dtype: str | None,
) -> RunPlan:
    """What `initialise` would do; no tokenizer is trained, and it counts as one of `vocab_size`. Raises as it does."""
    if size not in SIZES:
        config_of(size)
    words = tokenizer_of(tokenizer) if tokenizer else None
    if sources:
        next(_texts(sources))
    _check_mask(ar, tokenizer is not None or bool(sources), mask_id)
    rows = ids_end(words) if words is not None else vocab_size if sources else None
    config = ar_config_with_tokenizer(config_of(size, rows), words)
    network = empty_network(config, layout_of(config, size), "sdpa", torch.device("cpu"))
    if network.config.tie_word_embeddings:
        network.lm_head.weight = network.model.embed_tokens.weight
    count = sum(parameter.numel() for parameter in network.parameters())
    plan = RunPlan(f"convert --init {size}", {})
    kind = "AR" if ar else "diffusion"
    plan.add("model", {"size": size, "parameters": count, "kind": kind}, f"random {size}, {kind}, {count:,} parameters")
    if sources:
        plan.add("tokenizer", {"vocab_size": vocab_size}, f"byte-level BPE, {vocab_size:,} entries, trained first")
    return _with_sizes(plan, count, choose_dtype(dtype, {}, torch.device("cpu")), out)


def _with_sizes(plan: RunPlan, parameters: int, dtype: torch.dtype, out: Path) -> RunPlan:
    size = parameters * dtype.itemsize
    there = memory_bytes()
    of = "" if there is None else f" of {human_bytes(there)} here"
    plan.add("memory", {"bytes": size, "of": there}, f"{human_bytes(size)}{of}: all weights are read, {dtype}")
    if there is not None and size > there:
        plan.warnings.append(f"the weights, {human_bytes(size)}, are more than the {human_bytes(there)} that are here")
    plan.add_disk(out, size, "the checkpoint")
    return plan


def _check_mask(ar: bool, words: bool, mask_id: int | None) -> None:
    if not ar and not words and mask_id is None:
        raise UserError(
            "a diffusion model needs a mask token: give --tokenizer, --train-tokenizer or --mask-id, or --ar for an AR model"
        )


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

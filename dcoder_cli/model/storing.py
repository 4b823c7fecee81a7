"""Writing a checkpoint folder: config and weights as their layout stores them, the tokenizer, checksums of it all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dcoder_cli.base import checksums
from dcoder_cli.base.files import atomic_folder, write_json
from dcoder_cli.model.checkpoint import INDEX
from dcoder_cli.model.layouts import Layout

_SHARD_SIZE = "5GB"  # the Hugging Face default of the systems we exchange checkpoints with


def write(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    layout: Layout,
    tokenizer: Any | None,
    answer_length: int | None = None,
) -> None:
    """Write a checkpoint folder in the Hugging Face layout, all of it or none of it.

    Args:
        folder: the folder to make (replaced if it exists).
        config: config.json.
        weights: by transformers key; tied heads are stored once.
        layout: whose key names to store.
        tokenizer: saved beside the weights if given.
        answer_length: the new tokens that `generate` and `chat` ask for where nothing is said.
    """
    with atomic_folder(folder) as temporary:
        write_into(temporary, config, weights, layout, tokenizer, answer_length)
        checksums.write_record(temporary)


def write_into(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    layout: Layout,
    tokenizer: Any | None,
    answer_length: int | None = None,
) -> None:
    """The parts of a checkpoint into an existing folder, without atomicity: the caller has it. No weights: the rest alone."""
    from huggingface_hub import save_torch_state_dict

    names = stored_names(weights, config, layout)
    stored = {name: weights[key].detach().contiguous() for name, key in names.items()}
    save_torch_state_dict(stored, str(folder), max_shard_size=_SHARD_SIZE, metadata={"format": "pt"})
    write_beside(folder, config, tokenizer, answer_length)


def stored_names(weights: Iterable[str], config: Mapping[str, Any], layout: Layout) -> dict[str, str]:
    """Stored name -> transformers key of the weights to store: a tied head is stored once."""
    tied = layout.to_config(config).get("tie_word_embeddings")
    return {layout.to_stored(key): key for key in weights if not (tied and key == "lm_head.weight")}


def write_weights(folder: Path, shapes: Mapping[str, Tensor], whole: Callable[[str], Tensor], writes: bool) -> None:
    """Weights that no process has whole, into files of at most 5 GB, one file's in memory at a time.

    Args:
        folder: exists, for the process that writes.
        shapes: stored name -> a tensor of its shape and format, without values.
        whole: gathers one; every process calls it for every name, in the same order.
        writes: whether this process is the one that does.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    plan = split_torch_state_dict_into_shards(dict(shapes), max_shard_size=_SHARD_SIZE)
    for file, names in plan.filename_to_tensors.items():
        kept = {}
        for name in names:
            value = whole(name)
            if writes:
                kept[name] = value.detach().cpu().contiguous()
            del value
        if writes:
            save_file(kept, folder / file, metadata={"format": "pt"})
    if writes and plan.is_sharded:
        index = {"metadata": {"format": "pt", **plan.metadata}, "weight_map": plan.tensor_to_filename}
        write_json(folder / INDEX, index)


def write_beside(folder: Path, config: Mapping[str, Any], tokenizer: Any | None, answer_length: int | None) -> None:
    """What a checkpoint holds beside its weights: config.json, generation_config.json, the tokenizer."""
    write_json(folder / "config.json", dict(config))
    generation = {
        key: config[key]
        for key in ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
        if config.get(key) is not None
    }
    if answer_length is not None:
        generation["max_new_tokens"] = answer_length
    write_json(folder / "generation_config.json", generation)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))

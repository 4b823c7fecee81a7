"""Folders and files that hold something else than a checkpoint we read: what it is, and what to do, in one line.

Other formats of weights, quantised ones, adapters alone, downloads that were broken off. Nothing of them is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dcoder_cli.base.errors import UserError


class WeightFormat(NamedTuple):
    """Weights that we do not read: the names of their files, what they are, and what makes a checkpoint of them."""

    patterns: tuple[str, ...]
    what: str
    remedy: str


_SAVE_AGAIN = "load it with transformers and save it with save_pretrained, which writes safetensors"
_ORIGINAL = "give the folder of its safetensors, which its publisher has beside it"
GGUF = WeightFormat(
    ("*.gguf",),
    "GGUF weights, llama.cpp's",
    "make a diffusion checkpoint of it with `dcoder convert`, or give the folder of safetensors that it was made from",
)
# What comes first is named first where a folder holds several.
FORMATS = (
    WeightFormat(
        ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"),
        "a peft adapter without its model",
        "merge it into its model (peft's merge_and_unload) and save that",
    ),
    GGUF,
    WeightFormat(
        ("pytorch_model*.bin", "pytorch_model*.bin.index.json"),
        "pickled PyTorch weights, which can run code when they are read",
        _SAVE_AGAIN,
    ),
    WeightFormat(("tf_model*.h5", "*.h5"), "TensorFlow weights", "convert it to PyTorch with transformers 4 (from_tf=True)"),
    WeightFormat(("flax_model*.msgpack",), "Flax weights", "convert it to PyTorch with transformers 4 (from_flax=True)"),
    WeightFormat(
        ("*.onnx", "onnx/*.onnx", "openvino_model.*", "*.mlpackage", "rust_model.ot"), "an exported graph, not weights",
        "give the checkpoint that it was exported from",
    ),
    WeightFormat(("consolidated*.safetensors", "consolidated*.pth"), "weights under their maker's own names", _ORIGINAL),
    WeightFormat(("*.npz", "weights*.npz"), "MLX weights", _ORIGINAL),
    WeightFormat(("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"), "pickled PyTorch files, which can run code when they are read", _SAVE_AGAIN),
)  # fmt: skip

_POINTER = b"version https://git-lfs.github.com/spec/"


def is_pointer(file: Path) -> bool:
    """Whether a file is what Git LFS leaves in place of one that it did not bring."""
    try:
        with open(file, "rb") as handle:
            return handle.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def pointer(file: Path) -> UserError:
    """The refusal of a file of which `is_pointer` holds."""
    return UserError(f"{str(file)!r} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")


def refuse_pointers(folder: Path, *names: str) -> None:
    """Raises UserError where one of the files in a folder is a pointer of Git LFS."""
    for name in names:
        if is_pointer(folder / name):
            raise pointer(folder / name)


def no_folder(path: Path, name: str) -> UserError:
    """The refusal of a file that was given as a model."""
    found = next((one for one in FORMATS if any(path.match(pattern) for pattern in one.patterns)), None)
    if found is not None:
        return UserError(f"model {name!r} is a file of {found.what}; {found.remedy}")
    return UserError(f"model {name!r} is a file; give the folder that holds config.json")


def no_config(folder: Path, name: str) -> UserError:
    """The refusal of a folder that holds no config.json."""
    within = sorted(file.parent.name for file in folder.glob("*/config.json"))
    if within:
        remedy = f"; give one of its folders, such as {within[0]!r}"
    else:
        remedy = instead(folder) or "; give a folder in the Hugging Face layout"
    return UserError(f"model folder {name!r} has no config.json{remedy}")


def instead(folder: Path) -> str:
    """What a folder holds in place of safetensors and what to do about it, the end of a message; "" where it is nothing known."""
    if told := broken_off(folder):
        return told
    for one in FORMATS:
        for pattern in one.patterns:
            file = next(iter(sorted(folder.glob(pattern))), None)
            if file is not None:
                return f"; it holds {one.what} ({file.name}): {one.remedy}"
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others:
        return f"; it holds {others[0]!r}: a whole model is called model.safetensors, and parts need model.safetensors.index.json"
    return ""


def broken_off(folder: Path) -> str:
    """Of a download that did not end and what to do about it, the end of a message; "" where there is none."""
    # Where the hub's client keeps them, and nowhere else: what was given may be a home folder, or the root of a disk.
    places = (folder.glob("*.incomplete"), (folder / ".cache" / "huggingface" / "download").rglob("*.incomplete"))
    file = next(iter(sorted(file for place in places for file in place)), None)
    return "" if file is None else f"; a download was broken off ({file.name}): download it again"


SLOW_TOKENIZERS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "*.tiktoken")


def instead_of_tokenizer(folder: Path) -> str:
    """What a folder holds in place of a tokenizer that we read and what to do about it, the end of a message."""
    for pattern in SLOW_TOKENIZERS:
        for file in sorted(folder.glob(pattern)):
            return (
                f"; it holds {file.name}, a slow tokenizer's: load it once with transformers' AutoTokenizer and save it with "
                "save_pretrained, which writes tokenizer.json"
            )
    return broken_off(folder) or "; copy it there, or save it there with save_pretrained"


def refuse_adapter(folder: Path, name: str) -> None:
    """Raises UserError for peft's folder of an adapter: transformers loads the model that it names, whatever else lies there."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"model folder {name!r} holds {FORMATS[0].what} (adapter_config.json); {FORMATS[0].remedy}")


def refuse_quantised(config: Mapping[str, Any], name: str) -> None:
    """Raises UserError for a config.json whose weights are quantised (GPTQ, AWQ, bitsandbytes, fp8, compressed-tensors, ..)."""
    for key in ("quantization_config", "compression_config"):
        section = config.get(key)
        if section is not None:
            method = section.get("quant_method") if isinstance(section, Mapping) else None
            raise UserError(
                f"model {name!r} is quantised ({method or key}), and dcoder reads weights that are not; "
                "give the checkpoint that it was made from, in bfloat16 or float32"
            )

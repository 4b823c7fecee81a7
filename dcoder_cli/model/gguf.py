"""GGUF files: read as the checkpoint they were quantised from, for `dcoder convert`.

transformers dequantises the weights. Of the tokenizer it reads the vocabulary and merges, but a GGUF file only names the
pre-tokenizer (`tokenizer.ggml.pre`), and transformers reads a name that it does not know as GPT-2's: SmolLM2's digits
then stick to the spaces before them, other ids than the model was trained with. So the cuts are set here, by name.
"""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.layouts import LAYOUTS, layout_of
from dcoder_cli.model.loading import empty_network, fill
from dcoder_cli.model.special_ids import resolve
from dcoder_cli.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAGIC = b"GGUF"
_GPT2, _DIGITS = "gpt2", "digits, then gpt2"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# `tokenizer.ggml.pre` -> how text is cut before the merges, as llama.cpp's llama-vocab.cpp has it and as the
# tokenizer.json of the models that it names has it. A name that is not here is refused.
_CUTS = {
    "smollm": _DIGITS, "starcoder": _DIGITS, "refact": _DIGITS, "codeshell": _DIGITS,
    "gpt-2": _GPT2, "olmo": _GPT2, "phi-2": _GPT2,
    "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2, "stablelm2": _QWEN2,
    "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "smaug-bpe": _LLAMA3,
}  # fmt: skip


def find(name: str) -> Path | None:
    """The GGUF file that a path names: the file itself, or the one in a folder that holds no config.json; else None.

    Raises:
        UserError: a folder with several of them.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path if path.suffix.lower() == ".gguf" or _starts_as_one(path) else None
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf" and file.is_file())
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:6])
        raise UserError(f"model folder {name!r} holds {len(found)} GGUF files ({names}); name one of them")
    return found[0] if found else None


def skeleton(file: Path, tokenizer: str | None = None) -> Model:
    """The AR model of a GGUF file with weights on the meta device, float32 and without values.

    Args:
        tokenizer: a folder or hub id, instead of the file's own.

    Raises:
        UserError: no GGUF file, a damaged one, a model that dcoder does not read, a pre-tokenizer that it does not know.
    """
    with _read_once():
        header = _header(file)
        config = _config(file, header)
        layout = layout_of(config, str(file))
        words = load_tokenizer(tokenizer) if tokenizer is not None else _tokenizer(file, header)
    ids, findings = resolve(config, words, layout.diffusion, str(file))
    network = empty_network(config, layout, "sdpa", torch.device("cpu"))
    if network.config.tie_word_embeddings:
        network.lm_head.weight = network.model.embed_tokens.weight
    _check_tensors(file, header, network)
    return Model(network.eval(), config, layout, ids, findings, words, str(file))


def load(file: Path, tokenizer: str | None = None, dtype: torch.dtype = torch.float32) -> Model:
    """The AR model of a GGUF file, its weights dequantised, on the CPU. Args and errors are `skeleton`'s."""
    with _read_once():
        model = skeleton(file, tokenizer)
        theirs = _weights(file, dtype)
    weights = {key: value.to(dtype) for key, value in theirs.state_dict().items()}
    del theirs
    fill(model.network, weights, str(file))
    return model


def _weights(file: Path, dtype: torch.dtype) -> Any:
    with _told(file, "its weights cannot be read"):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype, **_dense(file))


@dataclass(frozen=True)
class _Header:
    """What a GGUF file says of itself.

    Attributes:
        architecture: such as `llama`.
        values: its other scalars, by key.
        tensors: stored name -> shape, innermost first.
    """

    architecture: str
    values: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]


def _starts_as_one(path: Path) -> bool:
    try:
        with open(path, "rb") as handle:
            return handle.read(4) == _MAGIC
    except OSError:
        return False


def _header(file: Path) -> _Header:
    try:
        if not _starts_as_one(file):
            raise UserError(
                f"model {str(file)!r} is no GGUF file (it does not begin with {_MAGIC.decode()}); copy it again"
            )
        import gguf
    except ImportError:
        raise UserError(f"reading {file.name!r} needs the package gguf: pip install 'dcoder[gguf]'") from None
    with _told(file, "it is damaged or cut off; copy it again"):
        reader = gguf.GGUFReader(file)
        values = {
            key: field.contents()
            for key, field in reader.fields.items()
            if len(field.data) == 1 or key.endswith((".tokens", ".token_type"))
        }
        tensors = {tensor.name: tuple(int(size) for size in tensor.shape) for tensor in reader.tensors}
        for tensor in reader.tensors:
            if tensor.data_offset + tensor.n_bytes > file.stat().st_size:
                raise ValueError(f"{tensor.name} lies beyond its end")
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not tensors:
        raise UserError(f"GGUF file {str(file)!r} holds no model (no architecture, or no weights); give a model's file")
    kind = values.get("general.type", "model")
    if kind != "model":
        raise UserError(f"GGUF file {str(file)!r} holds no model but: {kind}; give the model's file")
    if values.get("split.count", 1) != 1:
        raise UserError(
            f"GGUF file {str(file)!r} is one of {values['split.count']} parts; join them with llama-gguf-split --merge"
        )
    scaling = values.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" or any(name.startswith("rope_f") for name in tensors):
        raise UserError(
            f"GGUF file {str(file)!r} scales its rotary angles ({scaling if scaling != 'none' else 'rope_freqs'}), "
            "which transformers does not read from one; give the checkpoint that it was made of"
        )
    return _Header(architecture, values, tensors)


def _config(file: Path, header: _Header) -> dict[str, Any]:
    """config.json as the checkpoint would have it."""
    with _told(file, f"transformers does not read its architecture {header.architecture!r}"):
        from transformers import AutoConfig

        config: dict[str, Any] = AutoConfig.from_pretrained(file.parent, gguf_file=file.name).to_dict()
    if config.get("model_type") not in LAYOUTS:
        raise UserError(
            f"GGUF file {str(file)!r} is of architecture {header.architecture!r}; dcoder reads {', '.join(LAYOUTS)}"
        )
    for key in ("quantization_config", "_name_or_path", "transformers_version"):
        config.pop(key, None)
    epsilon = config.get("rms_norm_eps")
    if isinstance(epsilon, float):  # the file holds a float32: 9.999999747378752e-06 is 1e-05
        config["rms_norm_eps"] = float(f"{epsilon:.7g}")
    return config


def _check_tensors(file: Path, header: _Header, network: Any) -> None:
    """Raises UserError where the file holds another number of weights than the network that its config describes."""
    expected = len(network.state_dict()) - bool(network.config.tie_word_embeddings)
    if len(header.tensors) != expected:
        raise UserError(
            f"GGUF file {str(file)!r} holds {len(header.tensors)} weights, where its {header.architecture} has {expected}; "
            "it is of a variant that transformers does not read"
        )


def _tokenizer(file: Path, header: _Header) -> PreTrainedTokenizerBase:
    """The file's tokenizer, cutting text as the model that it was made of does."""
    with _told(file, "its tokenizer cannot be read; give --tokenizer"):
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        backend = theirs.backend_tokenizer
        named = {
            name: getattr(theirs, name)
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
            if getattr(theirs, name, None) is not None
        }
        template = theirs.chat_template
    if header.values.get("tokenizer.ggml.model") == "gpt2":
        _set_cuts(backend, file, header)
    from tokenizers import AddedToken

    kinds = zip(
        header.values.get("tokenizer.ggml.tokens", ()), header.values.get("tokenizer.ggml.token_type", ()), strict=False
    )
    backend.add_special_tokens(
        [
            AddedToken(text, special=True, normalized=False)
            for text, kind in kinds
            if kind == 3 and backend.token_to_id(text) is not None
        ]
    )  # control tokens; older releases of transformers leave them in pieces
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, clean_up_tokenization_spaces=False, **named
    )


def _set_cuts(backend: Any, file: Path, header: _Header) -> None:
    from tokenizers import Regex, pre_tokenizers

    name = header.values.get("tokenizer.ggml.pre")
    cuts = _CUTS.get(str(name))
    if cuts is None:
        raise UserError(
            f"GGUF file {str(file)!r} cuts text as {name!r}, which dcoder does not know; "
            "give the model's own tokenizer: --tokenizer FOLDER"
        )
    parts: list[Any] = []
    if cuts == _DIGITS:
        parts.append(pre_tokenizers.Digits(individual_digits=True))
    elif cuts != _GPT2:
        parts.append(pre_tokenizers.Split(Regex(cuts), behavior="isolated"))
    own = cuts in (_GPT2, _DIGITS)  # ByteLevel's own expression is GPT-2's
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own)]
    )


def _dense(file: Path) -> dict[str, Any]:
    """Releases of transformers that can keep the file's blocks are told to unpack them."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return (
        {"quantization_config": GgufConfig(dequantize=True)}
        if "dequantize" in inspect.signature(GgufConfig).parameters
        else {}
    )


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Within it a header is parsed once: transformers parses it anew for config, tokenizer and weights, seconds each."""
    try:
        import gguf
    except ImportError:  # told where it is needed
        yield
        return
    whole, kept = gguf.GGUFReader, dict[str, Any]()

    def reader(path: Any, mode: Any = "r") -> Any:
        if str(path) not in kept:
            kept[str(path)] = whole(path, mode)
        return kept[str(path)]

    if not isinstance(whole, type):  # an outer one does it
        yield
        return
    gguf.GGUFReader = reader
    try:
        yield
    finally:
        gguf.GGUFReader = whole


@contextlib.contextmanager
def _told(file: Path, what: str) -> Iterator[None]:
    """Whatever the libraries make of a file is one line, and their bars are not shown."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"GGUF file {str(file)!r}: {what} ({one_line(error)[:160]})") from None

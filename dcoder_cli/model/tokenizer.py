"""Tokenizers: loading them, telling them apart, and training one where there is none."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.base.runs import checkpoint_of
from dcoder_cli.model import formats
from dcoder_cli.model.text import decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
DREAM_BOS = "<|beginoftext|>"  # Dream's and DiffuCoder's, which `dcoder convert` adds
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
LARGEST_ID = 2**24  # ours: 16 times the largest vocabulary that we know of, of 10^6 tokens (XLM-V)
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)

# The same cuts as Qwen2's pre-tokenizer, so that a small-scale tokenizer splits code as the real one does:
# contractions, words with one leading non-letter, single digits, runs of punctuation, line ends, other white space.
_WORD_CUTS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# ChatML as Qwen2.5 writes it, without its built-in system message.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, of a run folder's last checkpoint, of the hub cache or of the hub.

    No code of the checkpoint's own is run: a Dream-style folder that names a custom class is read with the Qwen2
    tokenizer, which that class copies.

    Raises:
        UserError: nothing there, broken files, a tokenizer without a `tokenizers` (Rust) backend, or one that cuts at random.
    """
    folder = checkpoint_of(Path(path))
    name = str(folder)
    if folder.is_file():
        raise UserError(f"tokenizer {name!r} is a file; give the folder that holds it")
    looks_like_path = folder.is_dir() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path and not folder.is_dir():
        raise UserError(f"tokenizer folder {name!r} does not exist; give a folder with a tokenizer.json, or a hub name")
    if folder.is_dir():
        formats.refuse_pointers(folder, "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
        if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
            raise UserError(
                f"no tokenizer in {name!r}: it has neither tokenizer.json nor vocab.json{formats.instead_of_tokenizer(folder)}"
            )
        _refuse_huge_ids(folder)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        tokenizer = _from_folder_or_hub(name)
        if getattr(tokenizer, "backend_tokenizer", None) is not None:
            _try(tokenizer)
    except Exception as error:  # the library raises anything from OSError to bare Exception for a broken file
        where = f"tokenizer {name!r} cannot be read" if folder.is_dir() else f"tokenizer {name!r} cannot be found"
        hint = "" if folder.is_dir() else "; give a folder, or a hub name while online"
        if folder.is_dir() and not (folder / "tokenizer.json").is_file():
            hint = "; save it once as a fast tokenizer, which writes tokenizer.json"
        raise UserError(f"{where}: {one_line(error)[:200] or type(error).__name__}{hint}") from None
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"tokenizer {name!r} is a slow one; save it once as a fast tokenizer (tokenizer.json)")
    dropout = getattr(tokenizer.backend_tokenizer.model, "dropout", None)
    if dropout:
        raise UserError(
            f"tokenizer {name!r} cuts words at random, each time otherwise: its tokenizer.json has dropout = {dropout:g}; "
            "set it to null"
        )
    if not tokenizer("a = 1", add_special_tokens=False)["input_ids"]:
        raise UserError(f"tokenizer {name!r} makes no tokens of a text; mend its tokenizer.json")
    return tokenizer


def _refuse_huge_ids(folder: Path) -> None:
    """Raises UserError for ids over LARGEST_ID, before the library takes memory for all below them: minutes and gigabytes."""
    try:
        data = (folder / "tokenizer.json").read_bytes()
        if re.search(rb":\s*[0-9]{8,}", data) is None:
            return
        whole = json.loads(data)
        vocabulary = whole["model"].get("vocab")
        ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
        ids |= {token["content"]: token["id"] for token in whole.get("added_tokens") or []}
        token, largest = max(((token, number) for token, number in ids.items()), key=lambda entry: entry[1])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # the library says what is wrong
    if isinstance(largest, int) and largest > LARGEST_ID:
        raise _over(str(folder), token, largest)


def _over(name: str, token: str, largest: int) -> UserError:
    return UserError(
        f"tokenizer {name!r} gives the id {largest:,} to {token!r}, over {LARGEST_ID:,}; mend tokenizer.json"
    )


def _try(tokenizer: Any) -> None:
    """Use a tokenizer once: values of another kind in its config are found where they are used, not where they are read."""
    ids = tokenizer("a")["input_ids"]
    tokenizer("a", add_special_tokens=False)
    decode(tokenizer, ids)
    for token in tokenizer.all_special_tokens:
        if not isinstance(token, str):
            raise TypeError(f"a special token is {token!r}")
    for name in ("bos", "eos", "pad", "mask", "unk"):
        getattr(tokenizer, f"{name}_token_id")


def _from_folder_or_hub(name: str) -> PreTrainedTokenizerBase:
    if (Path(name) / "tokenizer.json").is_file():
        # Without AutoTokenizer, which brings torch: workers start in a quarter of the time.
        from transformers import PreTrainedTokenizerFast

        # Exactly what the file says. A model family's own class may add to it: Qwen2's normalises Unicode.
        return PreTrainedTokenizerFast.from_pretrained(name)
    from transformers import AutoTokenizer, Qwen2Tokenizer

    config = Path(name) / "tokenizer_config.json"
    if config.is_file() and "auto_map" in jsonl.document(config):
        return Qwen2Tokenizer.from_pretrained(name)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        return Qwen2Tokenizer.from_pretrained(name)


def ids_end(tokenizer: Any) -> int:
    """One more than the largest id: the rows that a model needs. `len(tokenizer)` counts tokens, and ids may have holes.

    Raises:
        UserError: there is no token, or an id that no model has a row for.
    """
    vocabulary = tokenizer.get_vocab()
    if not vocabulary:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no tokens; mend its tokenizer.json")
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if largest > LARGEST_ID:
        raise _over(tokenizer.name_or_path, token, largest)
    return 1 + int(largest)


def is_ordinary(tokenizer: Any, token: int) -> bool:
    """Whether a text that holds no special token can hold this one: a piece of the vocabulary, but no reserved one."""
    added = tokenizer.added_tokens_decoder.get(token)
    if token in tokenizer.all_special_ids or (added is not None and added.special):
        return False
    written = tokenizer.convert_ids_to_tokens(token)
    if written is None:
        return False
    text = decode(tokenizer, [token])
    return (
        "\ufffd" in text or token in tokenizer(text, add_special_tokens=False)["input_ids"]
    )  # a part of a character is one


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 (hex) of what decides how text becomes ids: normaliser, pre-tokenizer, vocabulary and merges.

    Added tokens do not count, so a checkpoint that gains a mask or pad token keeps its hash. `tokenizer` is a
    transformers tokenizer or a `tokenizers.Tokenizer`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    whole = json.loads(backend.to_str())
    added = {token["content"] for token in whole.get("added_tokens") or []}
    model = {key: value for key, value in whole["model"].items() if value not in ("", None, False)}
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {token: index for token, index in model["vocab"].items() if token not in added}
    if model.get("merges"):  # written as "a b" or ["a", "b"], depending on the library's version
        model["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    parts = {"normalizer": whole.get("normalizer"), "pre_tokenizer": whole.get("pre_tokenizer"), "model": model}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, min_frequency: int = 2, digits: int = 1
) -> PreTrainedTokenizerBase:
    """A byte-level BPE of at most `vocab_size` tokens, special tokens included, with the ChatML template.

    `<|endoftext|>` (id 0) is end of text and pad; `<|im_start|>` and `<|im_end|>` are 1 and 2. Any text decodes back
    unchanged. The same texts give the same tokenizer.

    Args:
        texts: what it is trained on.
        vocab_size: entries at most.
        min_frequency: a pair seen less often is never merged.
        digits: longest run of digits in one token: 1 as Qwen2; a tiny model copies numbers far better with 2.

    Raises:
        UserError: `digits` is not 1 to 3, or `vocab_size` has no room for the 256 bytes and the special tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"a vocabulary of {vocab_size} is too small: the 256 bytes and {len(SPECIAL_TOKENS)} special tokens "
            f"need {SMALLEST_VOCABULARY}"
        )
    if not 1 <= digits <= 3:
        raise UserError(f"digits = {digits}: a token may hold 1 to 3 digits")
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD_CUTS.replace("DIGITS", str(digits))), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )

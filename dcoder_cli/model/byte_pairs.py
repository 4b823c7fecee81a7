"""A byte-level BPE `tokenizer.json` in tiktoken's terms: how it cuts text, the ranks of byte strings, their ids.

Only what is understood is taken; all else is named in `NotUnderstood` and left to `tokenizers`.

Why merging gives the same ids. `tokenizers` merges the adjacent pair that stands first in its list of merges, tiktoken
the adjacent pair whose joined bytes have the lowest rank, both the leftmost first. Until a merge reaches across the ends
of a stretch of bytes, the merges within it are those of these bytes alone, whatever stands around. So a token that its
own bytes alone do not become is made in no text, and has no rank here; and of every other token the last two parts are
always the same pair. Two parts whose bytes join to a ranked token are therefore that pair, and ranks in the order of the
merges make both choose alike, step by step, for every text.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

# The two ways of cutting in use. Both name nothing but letters, numbers, white space and ASCII, so whether two engines
# cut alike is a question of single characters (`characters`). The group around all that looks at nothing behind it makes
# tiktoken a third faster and changes no match.
_BLANKS = r"|\s+(?!\S)|\s+"
_CL100K = re.compile(  # Llama 3 with {1,3}, Qwen2 and all after it with one number at a time, ours with {1,1} to {1,3}
    "("
    + re.escape(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}")
    + r"(?:\{1,[1-9]\}|\+)?"
    + re.escape(r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+")
    + ")"
    + re.escape(_BLANKS)
)
# What ByteLevel does by itself (GPT-2).
_GPT2 = rf"(?:'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+){_BLANKS}"
# The same behind Digits (SmolLM, StarCoder 2): numbers stand alone, and white space before one ends a piece.
_GPT2_BEHIND_DIGITS = r"(?:'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+)|\s+(?![^\s\p{N}])|\s+"

_MODEL_KEYS = {
    *("type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk"),
    *("byte_fallback", "ignore_merges", "vocab", "merges"),
}
_KEYS = {
    *("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer"),
    *("post_processor", "decoder", "model"),
}
# Without special tokens asked for, none of these touches an id.
_POST_PROCESSORS = ("ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing")
_ADDED_KEYS = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}


class NotUnderstood(Exception):
    """Something of a tokenizer.json that is not known to be the same in tiktoken; the message is a short phrase."""


@dataclass(frozen=True)
class BytePairs:
    """What tiktoken works by.

    Attributes:
        cut: regular expression whose matches are the pieces that merges stay in.
        tokens: byte strings in the order of their ranks, single bytes first.
        ids: [rank] the tokenizer's id of each.
        normalizes: text is brought to Unicode's NFC first.
        literals: a text that holds one of these is not for tiktoken: added tokens that are not special, which are one
            token in documents too, and ASCII characters that the vocabulary lacks.
    """

    cut: str
    tokens: tuple[bytes, ...]
    ids: npt.NDArray[np.uint32]
    normalizes: bool
    literals: tuple[str, ...]

    @property
    def single_bytes(self) -> frozenset[int]:
        """The bytes that the vocabulary has."""
        return _single_bytes(self.tokens)


def byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary (GPT-2): printable ones for themselves, then U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def understand(tokenizer_json: str) -> BytePairs:
    """The tokenizer of a tokenizer.json, with special tokens in a text read as text, without truncation and padding.

    Raises:
        NotUnderstood: it is of another kind, or has a part that is not known here.
    """
    try:
        return _understood(json.loads(tokenizer_json))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise NotUnderstood("a file of another form") from None


def _understood(whole: dict[str, Any]) -> BytePairs:
    _only(whole, _KEYS, "the file")
    normalizes = _normalizes(whole.get("normalizer"))
    cut = _cut(whole.get("pre_tokenizer"))
    for processor in _flat(whole.get("post_processor"), "processors"):
        if processor.get("type") not in _POST_PROCESSORS:
            raise NotUnderstood(f"post-processor {processor.get('type')}")
    tokens, ids = _ranked(whole["model"])
    lacking = {chr(byte) for byte in set(range(128)) - _single_bytes(tokens)}
    literals = _literals(whole.get("added_tokens") or [], normalizes) | lacking
    return BytePairs(cut, tokens, ids, normalizes, tuple(sorted(literals)))


def _only(part: Mapping[str, Any], known: set[str], name: str) -> None:
    strange = sorted(set(part) - known)
    if strange:
        raise NotUnderstood(f"{strange[0]!r} in {name}")


def _flat(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """A component as the steps of a Sequence."""
    if part is None:
        return []
    if part.get("type") == "Sequence":
        _only(part, {"type", key}, "a Sequence")
        return [step for inner in part[key] for step in _flat(inner, key)]
    return [part]


def _normalizes(part: Mapping[str, Any] | None) -> bool:
    steps = _flat(part, "normalizers")
    for step in steps:
        if step != {"type": "NFC"}:
            raise NotUnderstood(f"normalizer {step.get('type')}")
    return bool(steps)


def _cut(part: Mapping[str, Any] | None) -> str:
    steps = _flat(part, "pretokenizers")
    kinds = [step.get("type") for step in steps]
    if not steps or kinds[-1] != "ByteLevel" or len(steps) > 2:
        raise NotUnderstood(f"pre-tokenizer {' + '.join(map(str, kinds)) or 'none'}")
    last = steps[-1]
    _only(last, {"type", "add_prefix_space", "trim_offsets", "use_regex"}, "ByteLevel")
    if last.get("add_prefix_space", True):
        raise NotUnderstood("a space before every text")
    cuts_itself = last.get("use_regex", True)
    if len(steps) == 1 and cuts_itself:
        return _GPT2
    first = steps[0]
    if kinds[0] == "Digits" and cuts_itself:
        _only(first, {"type", "individual_digits"}, "Digits")
        return _GPT2_BEHIND_DIGITS.replace("NUMBER", r"\p{N}" if first["individual_digits"] else r"\p{N}+")
    if kinds[0] == "Split" and not cuts_itself:
        _only(first, {"type", "pattern", "behavior", "invert"}, "Split")
        known = _CL100K.fullmatch(first["pattern"].get("Regex", ""))
        if known is not None and first["behavior"] == "Isolated" and not first["invert"]:
            return f"(?:{known[1]}){_BLANKS}"
        raise NotUnderstood("the pre-tokenizer's pattern")
    raise NotUnderstood(f"pre-tokenizer {' + '.join(map(str, kinds))}")


def _ranked(model: Mapping[str, Any]) -> tuple[tuple[bytes, ...], npt.NDArray[np.uint32]]:
    if model.get("type") != "BPE":
        raise NotUnderstood(f"model {model.get('type')}")
    _only(model, _MODEL_KEYS, "the model")
    if model.get("dropout") is not None:
        raise NotUnderstood("dropout")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise NotUnderstood("a prefix or suffix of subwords")
    vocab: dict[str, int] = model["vocab"]
    if len(set(vocab.values())) < len(vocab):
        raise NotUnderstood("an id of two tokens")
    # Where every byte of a text is in the vocabulary, unk_token, fuse_unk and byte_fallback have nothing to act on; a
    # text with another byte is no task for tiktoken (`BytePairs.literals`).
    alphabet = {character: byte for character, byte in byte_alphabet().items() if character in vocab}
    merges = [_pair(merge) for merge in model["merges"]]
    # Tokens with another character, such as added ones with a space, are no bytes: nothing becomes them.
    of_bytes = re.compile(f"[{re.escape(''.join(alphabet))}]+")
    longer = [token for token in vocab if len(token) > 1 and of_bytes.fullmatch(token)]
    parts = _parts(vocab, merges, longer)
    made = {token for token, count in zip(longer, parts, strict=True) if count == 1}
    tokens = [*alphabet, *_order(merges, made)]
    if model.get("ignore_merges"):  # a piece that is in the vocabulary is its token, made by merges or not
        if 2 in parts:
            raise NotUnderstood("a token that is taken whole, though its two parts are not merged")
        tokens += [token for token in longer if token not in made]
    bytes_of = str.maketrans({character: chr(byte) for character, byte in alphabet.items()})
    as_bytes = tuple(token.translate(bytes_of).encode("latin-1") for token in tokens)
    return as_bytes, np.array([vocab[token] for token in tokens], np.uint32)


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """A merge of either spelling: "a b", or a list of two."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _parts(vocab: dict[str, int], merges: list[tuple[str, str]], tokens: Sequence[str]) -> list[int]:
    """Into how many parts `tokenizers` merges each token's own bytes."""
    from tokenizers import models

    tokenize = models.BPE(vocab=vocab, merges=merges).tokenize
    return [len(tokenize(token)) for token in tokens]


def _order(merges: Sequence[tuple[str, str]], made: set[str]) -> list[str]:
    """The tokens `made`, in the order of the merges that make them."""
    order: list[str] = []
    seen: set[str] = set()
    last = ""
    for left, right in merges:
        token = left + right
        if token == last or token not in made:
            continue
        if token in seen:  # which of its merges is the one that happens decides its rank
            raise NotUnderstood("merges of one token that stand apart")
        seen.add(token)
        order.append(token)
        last = token
    return order


def _single_bytes(tokens: Sequence[bytes]) -> frozenset[int]:
    return frozenset(token[0] for token in takewhile(lambda token: len(token) == 1, tokens))


def _literals(added: Sequence[Mapping[str, Any]], normalizes: bool) -> set[str]:
    """What to look for in a text: where none of these stands in it, no added token does."""
    found: set[str] = set()
    for token in added:
        _only(token, _ADDED_KEYS, "an added token")
        if not token.get("special"):
            found.add(token["content"])
            if normalizes:
                found.add(unicodedata.normalize("NFC", token["content"]))
    return found - {""}

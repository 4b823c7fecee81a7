"""Documents to ids: by tiktoken where that is proven to give the ids of `tokenizers`, by `tokenizers` elsewhere.

tiktoken is several times as fast; `tokenizers` is what every id is measured by. Before the first document `choose` has
to understand the tokenizer (`byte_pairs`), and to find both agree on hard texts and on a sample of the data. Then every
document is looked at: one with a character that is not known to be read alike (`characters`), or with the text of an
added token, goes to `tokenizers`, as does what tiktoken refuses. And to the end of the run some of the text is encoded
by both.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dcoder_cli.model.byte_pairs import BytePairs, NotUnderstood, understand
from dcoder_cli.model.characters import Characters

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ids = npt.NDArray[Any]

_CHECKED = 128  # one character in so many is encoded by both (ours): 4% of tiktoken's time
# Understanding a tokenizer and building tiktoken's takes as long as tiktoken saves on so much text (ours, measured: 0.9 s
# for the 151,643 tokens of Qwen2; 0.2 s saved a MB).
_WORTH_BYTES_A_TOKEN = 32


class EnginesDiffer(Exception):
    """tiktoken gave other ids than `tokenizers`: nothing that it made may be used. The message shows the text."""


class TextEncoder:
    """Encodes documents: special tokens in them are text, and nothing is cut off, put before or filled up.

    Travels to other processes as a tokenizer.json and what tiktoken works by.
    """

    def __init__(self, tokenizer: Tokenizer, pairs: BytePairs | None, dtype: Any) -> None:
        """Takes `tokenizer` over, and sets it for documents.

        Args:
            pairs: what `understand` makes of it; None leaves all to `tokenizers`.
            dtype: of the ids.

        Raises:
            NotUnderstood: see `Characters`, or an id is beyond `dtype`.
        """
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a document is text, not the end of it
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._dtype, self._pairs = dtype, pairs
        self._seen = self._checked = 0
        if pairs is not None:
            from tiktoken import Encoding

            if pairs.ids.max() > np.iinfo(dtype).max:
                raise NotUnderstood("ids beyond the size of the vocabulary")
            self._characters = Characters(pairs, self.tokenizer.pre_tokenizer)
            self._literals = re.compile("|".join(map(re.escape, pairs.literals)) or "(?!)")
            self._ids = pairs.ids.astype(dtype)
            ranks = {token: rank for rank, token in enumerate(pairs.tokens)}
            # `encode_to_numpy` looks for special tokens and needs one to look for. It never matches: none is allowed.
            self._encoding = Encoding(
                "documents", pat_str=pairs.cut, mergeable_ranks=ranks, special_tokens={"\0": len(ranks)}
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.tokenizer.to_str(), self._pairs, self._dtype)

    def without_tiktoken(self) -> TextEncoder:
        """One that leaves all to `tokenizers`."""
        return TextEncoder(self.tokenizer, None, self._dtype)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text.

        Raises:
            EnginesDiffer: for one of the texts that both encode.
        """
        found = [self.by_tiktoken(text) for text in texts]
        left = iter(self.by_tokenizers([text for text, ids in zip(texts, found, strict=True) if ids is None]))
        for text, ids in zip(texts, found, strict=True):
            if ids is None:
                continue
            self._seen += len(text)
            if self._checked * _CHECKED <= self._seen:
                self._checked += len(text)
                self._compare(text, ids)
        return [next(left) if ids is None else ids for ids in found]

    def by_tiktoken(self, text: str) -> Ids | None:
        """The ids of a text, or None where it is not one for tiktoken."""
        if self._pairs is None or self._literals.search(text) or not self._characters.are_same(text):
            return None
        try:
            ranks = self._encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())
        except ValueError:  # its regular expressions give up on a run of white space of nearly a million characters
            return None
        ids: Ids = self._ids[ranks]
        return ids

    def by_tokenizers(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text."""
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(entry.ids, self._dtype) for entry in encoded]

    def prove(self, texts: Iterable[str]) -> None:
        """Raises EnginesDiffer unless both agree on every text that is one for tiktoken."""
        for text in texts:
            ids = self.by_tiktoken(text)
            if ids is not None:
                self._compare(text, ids)

    def _compare(self, text: str, ids: Ids) -> None:
        if not np.array_equal(ids, self.by_tokenizers([text])[0]):
            raise EnginesDiffer(f"tiktoken and tokenizers differ on the text that begins {text[:40]!r}")


def _restored(tokenizer_json: str, pairs: BytePairs | None, dtype: Any) -> TextEncoder:
    from tokenizers import Tokenizer

    return TextEncoder(Tokenizer.from_str(tokenizer_json), pairs, dtype)


def choose(tokenizer: Tokenizer, dtype: Any, size: int, sample: Iterable[str]) -> tuple[TextEncoder, str]:
    """The encoder, and the engine's name, with the reason where it is `tokenizers`.

    Args:
        tokenizer: is taken over by the encoder.
        dtype: of the ids.
        size: bytes of text to encode, about.
        sample: texts out of the data; read only where tiktoken comes into question.
    """
    try:
        if importlib.util.find_spec("tiktoken") is None:
            raise NotUnderstood("tiktoken is not installed")
        if size < _WORTH_BYTES_A_TOKEN * tokenizer.get_vocab_size():
            raise NotUnderstood("little text")
        pairs = understand(tokenizer.to_str())
        encoder = TextEncoder(tokenizer, pairs, dtype)
        encoder.prove(hard_texts(encoder, pairs))
        encoder.prove(sample)
    except (NotUnderstood, EnginesDiffer) as reason:
        return TextEncoder(tokenizer, None, dtype), f"tokenizers ({reason})"
    return encoder, "tiktoken"


_HARD_LINES = (
    "I'm you're he'll they've it's don't we'd I'M YOU'RE HE'LL 'S 'T 'RE 'VE 'M 'LL 'D ''s '' 's' \"'t\" x'sy",
    "'ſ 'K x'ſ 'ſa",
    "1 12 123 1234 12345 123456 1234567 0x1F 1_000 1e-10 3.14 ٣٤٥٦٧ ½¼ Ⅷ ²³ 一二三 a1b2 1a 12ab345",
    "e\u0301 é a\u0308\u0323 Å Å \u1e9b\u0323 ＡＢ ﬁ ﬀ 가 \u1100\u1161 \u0915\u093c क़ ก็ שָׁ اَ ½ i̇ ẞ ß ŉ ǰ",
    "👩‍👩‍👧 🇩🇪 👍🏽 ☕️ 🧑🏿‍💻 e\u20e3 \U0001d4b3\U00010400 𠮷 \ufeff \u200b \u200d \u2060 \ufffd \ue000 \U0010ffff",
    "größe ÀÉÎ naïve Ελληνικά русский 日本語です 中文 한국어 العربية עברית ไทย हिन्दी ǅ ʰ ª º",
    "<|endoftext|><|im_start|>user<|im_end|> <s></s> [INST] <unk> <|fim_prefix|><tool_call> <mask>",
)


def hard_texts(encoder: TextEncoder, pairs: BytePairs) -> Iterator[str]:
    """Texts at which tokenizers are known to part: blanks, line ends, numbers, scripts, marks, runs, tokens' own texts."""
    yield ""
    blanks = (" ", "\t", "\n", "\r\n", "\n ", " \n", "\t\n", "\r", "\x0b", "\x0c")
    for unit in (*blanks, "\x85", "\u00a0", "\u2028", "\u3000"):
        for times in (1, 2, 3, 4, 5, 8, 15, 16, 17, 64, 200):
            run = unit * times
            yield from (run, f"a{run}b", f"1{run}2", f"){run}(", f"{run}'s", f"x = {run}\n{run}y")
    for code in range(128):
        yield from (f"a{chr(code)}b {chr(code)} 1{chr(code)}2", f"\n{chr(code)}\n", f"'{chr(code)}{chr(code)}x")
    for line in _HARD_LINES:
        yield from (line, *line.split(" "))
    for token in encoder.tokenizer.get_added_tokens_decoder().values():
        yield from (token.content, f"a {token.content} b", token.content * 3)
    for unit in ("a", "ab", "A", "=", "-", "_", "#", "(", "0", "10", "é", "中", "👍", "a1", "aaab", "'s", "x ", "\\n"):
        yield unit * 3000
    random_letters = random.Random(0)
    yield "".join(random_letters.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/", k=20_000))
    yield "".join(random_letters.choices("etaoinshrdlu", k=20_000))
    step = max(1, len(pairs.tokens) // 1000)
    tokens = [token.decode("utf-8", "ignore") for token in pairs.tokens[::step]]
    yield from tokens
    yield "".join(tokens)

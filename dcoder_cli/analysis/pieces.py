"""Tokens as pieces of text, for pictures, the replay and the live view."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.base import console
from dcoder_cli.base.errors import UserError

if TYPE_CHECKING:
    from dcoder_cli.decoding.trajectory import Trajectory

from dcoder_cli.model.text import continuation


class Pieces:
    """Each token as the text it adds behind other text; what was decoded once is remembered.

    Tokens that only together make a character (a byte-level tokenizer splits some) show at the first of them, the
    others as "". Special tokens are shown by name, and as "·" where they repeat, as pads do. Without a tokenizer the
    ids stand for the tokens.
    """

    def __init__(self, tokenizer: Any | None) -> None:
        self.tokenizer = tokenizer
        self.special: set[int] = set()
        if tokenizer is not None:
            added = tokenizer.added_tokens_decoder.items()
            self.special = set(tokenizer.all_special_ids) | {id_ for id_, token in added if token.special}
            self._before = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        self._seen: dict[tuple[int, ...], str] = {}

    def of(self, tokens: Sequence[int], text: str) -> list[str]:
        """The pieces of an answer that reads `text`: where a text begins with it, its tokenizer may leave a space out."""
        texts = self(tokens)
        if texts and text and _indent("".join(texts)) == _indent(text) + 1:
            texts[0] = texts[0][1:]
        return texts

    def __call__(self, tokens: Sequence[int]) -> list[str]:
        if self.tokenizer is None:
            return [f"{token} " for token in tokens]
        texts: list[str] = []
        while len(texts) < len(tokens):
            start = len(texts)
            if tokens[start] in self.special:
                repeats = start > 0 and tokens[start - 1] == tokens[start]
                texts.append("·" if repeats else self._decode((tokens[start],)))
                continue
            # Up to 4 tokens can share one UTF-8 character; if none completes it, the bytes are broken.
            widths = range(1, min(4, len(tokens) - start) + 1)
            spans = ((width, self._decode(tuple(tokens[start : start + width]))) for width in widths)
            width, text = next(((width, text) for width, text in spans if "\ufffd" not in text), (1, "\ufffd"))
            texts.extend([text, *[""] * (width - 1)])
        return texts

    def _decode(self, tokens: tuple[int, ...]) -> str:
        text = self._seen.get(tokens)
        if text is None:
            text = self._seen[tokens] = continuation(self.tokenizer, self._before, tokens, skip_special=False)
        return text


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def tokenizer_of(trajectories: Sequence[Trajectory], file: str | Path) -> Any | None:
    """The tokenizer of the model that wrote a file's trajectories; None where it is not to be found here.

    Looked for in the model's folder as it is named, then under the file's own folder, which may have been moved together
    with the model's. No hub is asked. A tokenizer that cannot be read, or that lacks one of the tokens, is noted and left.
    """
    names = {one.model for one in trajectories}
    if len(names) != 1 or not (name := names.pop()):
        return None
    parts = Path(name).parts
    places = [Path(name).expanduser(), *(Path(file).parent.joinpath(*parts[at:]) for at in range(len(parts)))]
    files = ("tokenizer.json", "vocab.json")
    folder = next((place for place in places if any((place / one).is_file() for one in files)), None)
    if folder is None:
        return None
    from dcoder_cli.model.tokenizer import ids_end, load_tokenizer

    try:
        tokenizer = load_tokenizer(folder)
    except UserError as error:
        console.note(f"note: showing ids: {error}")
        return None
    largest = max((token for one in trajectories for token in one.tokens), default=0)
    if largest >= ids_end(tokenizer):
        console.note(f"note: showing ids: the tokenizer in {str(folder)!r} has no id {largest} of {str(file)!r}")
        return None
    return tokenizer

"""Special ids, resolved once from config and tokenizer, and the conflicts between the two.

No id and no token string is hard-coded: checkpoints disagree (DiffuCoder-Instruct's tokenizer pads
with another id than its config), so the resolved values and the disagreements are both reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dcoder_cli.base import console
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.functions import short
from dcoder_cli.model import chat, text
from dcoder_cli.model.layouts import arguments_of, layout_of
from dcoder_cli.model.tokenizer import is_ordinary


@dataclass(frozen=True)
class SpecialIds:
    """The ids with a meaning to the method; None where a checkpoint has no such token.

    Attributes:
        mask: the absorbing token of the diffusion; None for AR models.
        pad: fills rows; in stage 3 it is supervised and ends the answer.
        bos: stands at position 0 of a packed row where the model was trained so.
        eos: end of document.
        end_of_turn: end of an assistant turn.
        stops: every id at which generated text ends (eos, pads, end of turn).
        tokens: rows of the vocabulary that are tokens, from the first, where spare ones follow; None: all.
    """

    mask: int | None
    pad: int | None
    bos: int | None
    eos: int | None
    end_of_turn: int | None
    stops: frozenset[int]
    tokens: int | None = None

    def forbid(self, logits_NV: Any) -> None:
        """Set to -inf what is never committed: the mask, and spare rows of the vocabulary."""
        logits_NV[:, self.mask] = float("-inf")
        if self.tokens is not None:
            logits_NV[:, self.tokens :] = float("-inf")


@dataclass(frozen=True)
class Finding:
    """Something about a checkpoint that its user should know."""

    subject: str
    message: str


def resolve(
    config: Mapping[str, Any], tokenizer: Any | None, needs_mask: bool, name: str
) -> tuple[SpecialIds, list[Finding]]:
    """Special ids of a checkpoint and the conflicts found.

    The mask comes from the config, because the weights were trained with it; pad comes from the tokenizer where there
    is one, because it made the training rows; eos is the config's.

    Args:
        config: the checkpoint's config.json.
        tokenizer: a transformers tokenizer, or None.
        needs_mask: whether this is a diffusion checkpoint.
        name: the checkpoint, for messages.

    Raises:
        UserError: a diffusion checkpoint has no mask token, an id lies outside the vocabulary, or a layout's key is missing.
    """
    findings: list[Finding] = []
    config_eos = _ids(config, "eos_token_id")
    mask = _prefer("mask", _first(config, "mask_token_id"), _of(tokenizer, "mask"), "config", findings)
    pad = _prefer("pad", _of(tokenizer, "pad"), _first(config, "pad_token_id"), "tokenizer", findings)
    bos = _prefer("bos", _first(config, "bos_token_id"), _of(tokenizer, "bos"), "config", findings)
    eos = _prefer("eos", config_eos[0] if config_eos else None, _of(tokenizer, "eos"), "config", findings)
    end_of_turn = None
    try:
        end = chat.end_of_turn(tokenizer, name)
        end_of_turn = None if end is None else end.id
    except chat.Refused as refused:  # the model may still be used without chats
        findings.append(Finding("chat template", str(refused)))
    if end_of_turn is None:
        end_of_turn = _first(_recorded(config), "end_of_turn_token_id")

    vocabulary = int(arguments_of(config, layout_of(config, name))["vocab_size"])
    if needs_mask and mask is None:
        raise UserError(
            f"the config of {name!r} has no mask_token_id, so it is no diffusion checkpoint; make one with `dcoder convert`"
        )
    if not needs_mask:
        mask = None
    candidates = [*config_eos, _of(tokenizer, "eos"), pad, _first(config, "pad_token_id"), end_of_turn]
    named = [("mask", mask), ("pad", pad), ("bos", bos), ("eos", eos), ("end of turn", end_of_turn)]
    for subject, value in (*named, *(("end", value) for value in candidates)):
        if value is not None and not 0 <= value < vocabulary:
            raise UserError(
                f"the {subject} id {value} of {name!r} lies outside its vocabulary of {vocabulary}; mend config.json"
            )
    if tokenizer is not None:
        _check_rows(tokenizer, vocabulary, name)
    if mask is not None:
        others = {"eos": eos, "end of turn": end_of_turn, "pad": pad, "bos": bos}
        if (also := also_means(mask, others, tokenizer, name)) is not None:
            findings.append(Finding("mask", f"the mask id {mask} is also {also[0]}; {also[1]}"))
    if needs_mask and pad is not None and pad == eos:
        findings.append(Finding("pad", f"pad and eos are one id ({pad}); answers end at the first of it"))

    stops = frozenset(value for value in candidates if value is not None and value != mask)
    return SpecialIds(mask, pad, bos, eos, end_of_turn, stops, _tokens(config, vocabulary, name)), findings


def _tokens(config: Mapping[str, Any], vocabulary: int, name: str) -> int | None:
    """How many rows are tokens, as `dcoder convert` recorded it. Raises UserError where that is no such number."""
    tokens = _recorded(config).get("tokens")
    if tokens is not None and (type(tokens) is not int or not 0 < tokens <= vocabulary):
        raise UserError(
            f"config.json of {name!r} has dcoder.tokens = {tokens!r}; it must be a whole number from 1 to {vocabulary}"
        )
    return tokens


def _check_rows(tokenizer: Any, rows: int, name: str) -> None:
    """Raises UserError where a token has no row of its own."""
    tokens: dict[int, str] = {}
    for token, number in tokenizer.get_vocab().items():
        if number in tokens:
            raise UserError(
                f"the tokenizer of {name!r} gives the id {number} to {short(tokens[number])} and to {short(token)}; mend tokenizer.json"
            )
        tokens[number] = token
    if (end := 1 + max(tokens, default=-1)) > rows:
        raise UserError(
            f"the tokenizer of {name!r} has ids up to {end - 1} but the model only {rows} rows; "
            "give it the tokenizer that it was trained with"
        )


def warn_of_mask(findings: Sequence[Finding]) -> None:
    """Say on stderr that the mask is also another token: for commands that tell of no other finding."""
    for finding in findings:
        if finding.subject == "mask":
            console.warn(finding.message)


def also_means(mask: int, ids: Mapping[str, int | None], tokenizer: Any | None, name: str) -> tuple[str, str] | None:
    """What a mask id means besides, and what comes of it; None where it is the mask's alone.

    Args:
        ids: the other special ids, by what they are called.
    """
    for what, value in ids.items():
        if value == mask:
            ends = what in ("eos", "end of turn")
            return f"the {what} token", "text cannot end there" if ends else "every one in a row reads as masked"
    if tokenizer is None:
        return None
    if is_ordinary(tokenizer, mask):
        return f"the ordinary token {short(text.decode(tokenizer, [mask]))}", "every one in a text reads as masked"
    with suppress(UserError):  # no template, or one that takes no such chat
        if mask in chat.encode(tokenizer, [{"role": "user", "content": "?"}], name).ids:
            token = short(tokenizer.convert_ids_to_tokens(mask))
            return f"{token}, which the chat template writes", "every one in a chat reads as masked"
    return None


def _recorded(config: Mapping[str, Any]) -> Mapping[str, Any]:
    recorded = config.get("dcoder")
    return recorded if isinstance(recorded, Mapping) else {}


def _ids(config: Mapping[str, Any], key: str) -> list[int]:
    """The ids under a key of a config: none, one or several. Raises UserError for what is no id."""
    value = config.get(key)
    ids = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    if any(type(one) is not int for one in ids):
        raise UserError(f"config.json has {key} = {value!r}; it must be a token id, a whole number")
    return ids


def _first(config: Mapping[str, Any], key: str) -> int | None:
    ids = _ids(config, key)
    return ids[0] if ids else None


def _of(tokenizer: Any | None, name: str) -> int | None:
    value = getattr(tokenizer, f"{name}_token_id", None) if tokenizer is not None else None
    return None if value is None else int(value)


def _prefer(subject: str, first: int | None, second: int | None, source: str, findings: list[Finding]) -> int | None:
    if first is not None and second is not None and first != second:
        other = "tokenizer" if source == "config" else "config"
        findings.append(Finding(subject, f"the {source} says {first}, the {other} {second}; {first} is used"))
    return second if first is None else first

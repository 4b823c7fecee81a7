"""What is said beside an answer that shows nothing."""

from __future__ import annotations

from collections.abc import Sequence

from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.model.backbone import Model

_LEAST = 8  # new tokens without an end, as a first try against empty answers; ours


def is_empty(model: Model, trajectory: Trajectory) -> bool:
    """Whether a decoding has no text to show. Without a tokenizer: whether it ends at once."""
    if model.tokenizer is None:
        return not trajectory.tokens or trajectory.tokens[0] in model.ids.stops
    return not trajectory.text.strip()


def _ends(model: Model, trajectory: Trajectory) -> bool:
    """Whether an end or pad token is among the new ones."""
    return any(token in model.ids.stops for token in trajectory.tokens)


def empty_note(model: Model, results: Sequence[Trajectory], in_chat: bool = False) -> str | None:
    """One line on the empty answers among `results`, with what to try; None where all say something.

    Args:
        in_chat: name settings as the conversation sets them (`/set key=value`), not as options.
    """
    empty = [result for result in results if is_empty(model, result)]
    if not empty:
        return None
    asked = int(empty[0].settings.get("max_new_tokens", len(empty[0].tokens)))
    most, least = (
        ("/set max_new_tokens=", "/set min_new_tokens=") if in_chat else ("--max-new-tokens ", "--min-new-tokens ")
    )
    ended = [_ends(model, result) for result in empty]
    tries = [f"{least}{_LEAST}"] if asked > _LEAST and any(ended) else []
    if model.answer_length is not None and model.answer_length < asked:
        tries.insert(0, f"{most}{model.answer_length} (trained; {asked} now)")
    elif asked > 4 * _LEAST:
        tries.insert(0, f"{most}{asked // 2} ({asked} now)")
    which = "the answer is empty"
    if len(results) > 1:
        named = ", ".join(one.id for one in empty[:5]) + (", .." if len(empty) > 5 else "")
        which = f"{len(empty)} of {len(results)} answers are empty ({named})"
    blank = "no text" if not any(result.text for result in empty) else "nothing but white space"
    where = " before the first end or pad token" if all(ended) else "" if any(ended) else ", and no end or pad token"
    return f"{which}: {blank}{where}" + (f"; try {' or '.join(tries)}" if tries else "")

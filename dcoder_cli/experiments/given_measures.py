"""What each model of `quickstart --model` is measured by: held-out loss, holes filled, tasks solved, decoding order.

Held-out documents are those that `dcoder tokenize` held out; tasks are micro's, whose functions no training holds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.benchmarks.passk import wilson
from dcoder_cli.experiments.budget import ANSWER, AR_ANSWER, HOLE

if TYPE_CHECKING:
    from dcoder_cli.analysis.series import Series
    from dcoder_cli.model.backbone import Model

CONTEXT = (24, 8)  # most lines before and after a hole (ours): about the tokens of a row
LINE = (4, 40)  # characters of a line that is a hole (ours): shorter ones say little, longer ones are tables
MARKS = "=(["  # one of which a line has, or it ends with ":" (ours): code, and no prose of a docstring
INDENT = 8  # tokens that an AR model has for the indentation of its line
BATCH = 16


@dataclass(frozen=True)
class Hole:
    """A line of held-out code without its indentation, and what stands around it."""

    before: str
    line: str
    after: str


def holes(texts: Sequence[str], count: int, seed: int) -> list[Hole]:
    """Single lines of documents, at most one a document, drawn anew for each seed; fewer where there are fewer documents."""
    found: list[Hole] = []
    order = list(texts)
    random.Random(seed).shuffle(order)
    for text in order:
        lines = text.split("\n")
        places = [
            place
            for place, line in enumerate(lines)
            if LINE[0] <= len(line.strip()) <= LINE[1]
            and 2 <= place < len(lines) - 2
            and not line.lstrip().startswith("#")
            and (any(mark in line for mark in MARKS) or line.endswith(":"))
        ]
        if not places:
            continue
        place = random.Random(f"{seed} {len(found)}").choice(places)
        line = lines[place]
        indent = line[: len(line) - len(line.lstrip())]
        before = "\n".join([*lines[max(0, place - CONTEXT[0]) : place], indent])
        after = "\n" + "\n".join(lines[place + 1 : place + 1 + CONTEXT[1]])
        found.append(Hole(before, line.strip(), after))
        if len(found) == count:
            break
    return found


def documents(data: Path, tokenizer: Any) -> list[str]:
    """The held-out documents of a pretraining folder as text."""
    from dcoder_cli.data.packing import unpack
    from dcoder_cli.data.shards import ShardSet
    from dcoder_cli.model.text import decode

    shards = ShardSet.open(data, "heldout")
    special = shards.manifest["special_tokens"]
    bos = special["bos"]["id"] if "bos" in special else None
    rows = shards.rows(range(len(shards)))["tokens"]
    return [decode(tokenizer, ids) for ids in unpack(rows, special["eos"]["id"], bos)]


def fitted(hole: Hole, tokenizer: Any, room: int) -> tuple[Hole, list[int]] | None:
    """A hole with as many whole lines around it as `room` tokens hold, and the line's ids; None where it has over HOLE."""
    from dcoder_cli.model.text import encode_after

    ids = encode_after(tokenizer, hole.before[-20:] or "\n", hole.line)
    before, after = hole.before.split("\n"), hole.after.split("\n")
    while 0 < len(ids) <= HOLE:
        kept = Hole("\n".join(before), hole.line, "\n".join(after))
        if len(tokenizer(kept.before)["input_ids"]) + len(tokenizer(kept.after)["input_ids"]) + len(ids) <= room:
            return kept, ids
        if len(before) > 1:
            del before[0]
        elif len(after) > 1:
            del after[-1]
        else:
            break
    return None


def filled(model: Model, asked: Sequence[Hole], count: int, room: int, seed: int) -> dict[str, Any]:
    """How many of `count` holes a model fills with the very line, given the line's own number of tokens, one token a step;
    and, where that is given, how many of these tokens are the line's own.

    The fast mode: what stands around a hole is computed once, the hole in every step. An AR model sees what stands before
    alone, and its first line that is not blank counts.

    Args:
        asked: more than `count`: lines of over HOLE tokens are passed over.
        room: tokens of a row; lines around a hole that it does not hold are left out, the same ones for every model of one
            tokenizer.
    """
    from dcoder_cli.decoding.requests import Infill, Settings
    from dcoder_cli.decoding.sampler import decode

    fitting = (one for one in (fitted(hole, model.tokenizer, room) for hole in asked) if one is not None)
    sized = list(islice(fitting, count))
    if model.is_diffusion:
        settings = Settings(seed=seed, mode="fast", commit="schedule", early_stop=False)
        lengths = [len(ids) for _, ids in sized]
        prompts: list[Any] = [Infill(hole.before, hole.after) for hole, _ in sized]
        found = decode(model, prompts, settings, lengths=lengths, batch_size=BATCH)
        written = [one.text.strip() for one in found]
        pairs = [pair for one, (_, ids) in zip(found, sized, strict=True) for pair in zip(one.tokens, ids, strict=True)]
        tokens = {"tokens": {"of": len(pairs), **share(sum(own == token for own, token in pairs), len(pairs))}}
    else:
        tokens = {}
        prompts = [hole.before.rpartition("\n")[0] + "\n" for hole, _ in sized]
        found = decode(model, prompts, Settings(seed=seed, max_new_tokens=HOLE + INDENT), batch_size=BATCH)
        written = [one.text.strip().split("\n")[0] for one in found]
    right = [text == hole.line for text, (hole, _) in zip(written, sized, strict=True)]
    examples = [
        {"line": hole.line, "written": text, "right": good}
        for text, (hole, _), good in zip(written, sized, right, strict=True)
    ]
    return {"holes": len(right), **share(sum(right), len(right)), **tokens, "examples": examples[:8]}


def solved(model: Model, tasks: int, seed: int, unsafe: bool) -> tuple[dict[str, Any], Any]:
    """pass@1 on micro's held-out tasks, asked by chat, at temperature 0, and what was decoded.

    Diffusion models answer in the fast mode and have ANSWER tokens; an AR model has AR_ANSWER, as it may explain first.
    """
    from dcoder_cli.benchmarks import answers, suites
    from dcoder_cli.benchmarks.judging import Judging
    from dcoder_cli.benchmarks.protocols import choose
    from dcoder_cli.decoding.requests import Settings

    suite = suites.load("micro", limit=tasks)
    tokens, mode = (ANSWER, "fast") if model.is_diffusion else (AR_ANSWER, "exact")
    settings = Settings(max_new_tokens=tokens, mode=mode, seed=seed)  # type: ignore[arg-type]
    asked = answers.ask(model, suite, choose(model, instruct=True))
    with Judging(suite, unsafe=unsafe) as judging:
        result = answers.answer(model, asked, settings, judging, batch_size=BATCH)
    passed = sum(row["status"] == "passed" for row in result.judged)
    return {"tasks": len(result.judged), **share(passed, len(result.judged))}, result


def orders(model: Model, tasks: int, temperatures: Sequence[float], seed: int) -> list[Series]:
    """AR-ness of answers to micro's tasks at each temperature, one token a step, without filters, ties by the model."""
    from dcoder_cli.analysis.series import Measure, Series
    from dcoder_cli.benchmarks import answers, suites
    from dcoder_cli.benchmarks.protocols import choose
    from dcoder_cli.decoding.requests import Settings
    from dcoder_cli.decoding.sampler import decode

    prompts = answers.ask(model, suites.load("micro", limit=tasks), choose(model, instruct=True)).prompts
    found = []
    for temperature in temperatures:
        settings = Settings(max_new_tokens=ANSWER, temperature=temperature, seed=seed)
        decoded = decode(model, prompts, settings, batch_size=BATCH)
        label = f"T={temperature:g}"
        found.append(Series(label, decoded, Measure()(decoded), model.name, temperature, model.tokenizer))
    return found


def lost(model: Model, data: Path, rows: int) -> dict[str, Any]:
    """The held-out loss in nats a token and by tenth of t; see `training.evaluation.evaluate`."""
    from dcoder_cli.training.evaluation import heldout

    found = heldout(model, str(data), rows)
    return {"loss": found["loss"], "by_t": found["by_t"], "rows": found["rows"]}


def share(good: int, total: int) -> dict[str, Any]:
    """A share with its 95% interval (Wilson)."""
    low, high = wilson(good / total, total) if total else (0.0, 1.0)
    return {"right": good, "share": good / total if total else None, "low": low, "high": high}

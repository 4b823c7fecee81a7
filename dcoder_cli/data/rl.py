"""Prompts for reinforcement learning, with tests (AceCode-87K's fields, the paper's hard subset) or a number to find.

Hard: the mean pass rate of two models' inferences is in the bottom 20%, and their spread in the top 60% (DiffuCoder's
released code) or the top 40% (its text, A.4). With the baseline `constant` a prompt records what the best constant answer passes, and the reward `code` credits
only what is above it. Where a question does not address the reader ("you"), it is also offered as code to complete, built from a
reference solution's signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dcoder_cli.base import checksums
from dcoder_cli.base.console import bar
from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.base.files import check_replaceable, write_jsonl
from dcoder_cli.base.plan import RunPlan
from dcoder_cli.data.code_doctests import TrialRunner, questions, tried
from dcoder_cli.data.code_pairs import check_tables
from dcoder_cli.data.constants import constant_share
from dcoder_cli.data.decontaminate import load_contamination
from dcoder_cli.data.dropped import BadRow, Dropped, Tally
from dcoder_cli.data.filters import FilterSettings
from dcoder_cli.data.formats import ChatEncoder
from dcoder_cli.data.manifest import MANIFEST, hashes_of, read_manifest, write_manifest
from dcoder_cli.data.ngrams import word_codes
from dcoder_cli.data.plans import plan_of
from dcoder_cli.data.problems import HARD_MODELS, RlProblem, hard_subset, read_problem, why_unusable
from dcoder_cli.data.prompts import PROMPTS, Ids, prompts_of
from dcoder_cli.data.records import Record, read_records
from dcoder_cli.data.selection import in_heldout
from dcoder_cli.data.sources import Source, Unit, parse_sources, plan_units
from dcoder_cli.data.workspace import open_workspace
from dcoder_cli.data.writing import describe, nothing_left
from dcoder_cli.model.chat import Refused
from dcoder_cli.model.tokenizer import load_tokenizer

T = TypeVar("T")

_FILES = {"train": "prompts.jsonl", "heldout": "heldout-prompts.jsonl"}
# Lowest share by mean pass rate and highest share by spread. DiffuCoder A.4 says "the top 40%" of the spread; the
# released code keeps a spread at or above its 40th percentile, which is the top 60%.
HARD = {"released": (0.2, 0.6), "paper": (0.2, 0.4)}


@dataclass(frozen=True)
class RlSettings:
    """Settings of `dcoder tokenize rl`. `hard` applies to rows that have `inferences`; others all stay.

    `hard`: which of them stay. `released` as the authors' code, `paper` as the text (see HARD), `all`.
    `hard_mean`, `hard_spread`: shares in their place. `hard_given`: it was asked for, and is refused where it changes nothing.

    `baseline`: `constant` gives credit only for tests beyond those that the best constant answer passes; `none` for each.
    """

    sources: tuple[str, ...]
    out: str
    tokenizer: str
    max_prompt_tokens: int = 200  # DiffuCoder B.1
    hard: str = "released"
    hard_mean: float | None = None
    hard_spread: float | None = None
    complete: bool = True
    from_code: bool = False
    baseline: str = "none"  # as the paper's pass rate of tests (DiffuCoder 5)
    system: str | None = None
    seed: int = 0
    heldout: float = 0.0
    hard_given: bool = False
    exclude: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()
    filters: FilterSettings = field(default_factory=lambda: FilterSettings(near_duplicates=0.0, code_filters="none"))
    overwrite: bool = False
    quiet: bool = False


def tokenize_rl(settings: RlSettings, trial: TrialRunner | None = None) -> dict[str, Any]:
    """Rows to `prompts.jsonl` in `settings.out`; returns the manifest. One process; a stopped run starts again.

    `trial`: from code, runs the references (`execution.trials`).

    Raises:
        UserError: wrong settings, sources or columns, or nothing left.
    """
    tokenizer, chat, sources, units = _ready(settings)
    dropped, idle, ids = Dropped(), Tally(), Ids()
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
    with open_workspace(Path(settings.out), settings.overwrite) as workspace:
        workspace.resume({"kind": "rl"}, quiet=True)
        records = (
            (sources[unit.source].label, record)
            for unit in units
            for piece in unit.pieces
            for record in (questions(piece) if settings.from_code else read_records(piece))
        )
        heard = _progress("reading rows", records, settings.quiet)
        asked = _problems(heard, dropped, idle, settings.from_code)
        problems = list(_unique(asked, settings.filters, dropped, settings.from_code))
        read = len(problems) + dropped.count()
        if settings.from_code:
            assert trial is not None
            problems = tried(problems, trial, dropped)
        _check_effects(problems, settings)
        shares: list[float] = []
        for problem in _progress("making prompts", _hard(problems, settings, dropped), settings.quiet):
            share = constant_share(problem.hidden, problem.entry_point)
            if share == 1 and (settings.from_code or settings.baseline == "constant"):
                dropped.add("a constant answer passes every test", problem.task_id)
                continue
            shares += [share] if problem.hidden else []
            split = "heldout" if in_heldout(_digest(problem.question), settings.heldout, settings.seed) else "train"
            baseline = share if settings.baseline == "constant" else None
            for row in prompts_of(problem, settings.complete, baseline, ids):
                row["messages"] = chat.with_system(row["messages"])  # training renders what stands in the file
                try:
                    text = chat.prompt(row["messages"])
                except Refused as refused:
                    dropped.add(refused.reason, row["task_id"])
                    continue
                length = len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False))
                if length > settings.max_prompt_tokens:
                    dropped.add("prompt too long", row["task_id"], f"{length} tokens")
                else:
                    rows[split].append(row)
        if not rows["train"]:
            raise nothing_left("prompt", "the filters", read, str(dropped), sources)
        files = []
        for split, chosen in rows.items():
            if chosen:
                path = workspace.result / _FILES[split]
                write_jsonl(path, chosen)
                sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
                files.append({"file": path.name, "split": split, "rows": len(chosen), "sha256": sha256})
        end = chat.end_of_turn
        manifest = {
            **describe("rl", settings, tokenizer, settings.tokenizer),
            "special_tokens": {"end_of_turn": {"id": end.id, "token": end.token}},
            "splits": {split: _counts(chosen) for split, chosen in rows.items() if chosen},
            "sources": [{"name": source.label, "weight": 1.0} for source in sources],
            "questions_read": read,
            "constant_answers": _constant_answers(shares),
            "idle_tests": asdict(idle),
            "renamed": asdict(ids.renamed),
            "dropped": dropped.report(),
            "files": files,
        }
        manifest = write_manifest(workspace.result, manifest)
        workspace.publish()
    return manifest


def plan_rl(settings: RlSettings) -> RunPlan:
    """What `tokenize_rl` would do, once its settings are checked; nothing is written. Raises UserError as it does."""
    tokenizer, _, sources, units = _ready(settings)
    check_replaceable(Path(settings.out), settings.overwrite, MANIFEST, "finished data")
    return plan_of("rl", settings, tokenizer, sources, units, Path(settings.out))


def _ready(settings: RlSettings) -> tuple[Any, ChatEncoder, list[Source], list[Unit]]:
    settings.filters.check()
    if settings.hard not in (*HARD, "all"):
        raise UserError(f"--hard {settings.hard} is unknown; use {', '.join(HARD)} or all")
    for name, share in (("--hard-mean", settings.hard_mean), ("--hard-spread", settings.hard_spread)):
        if share is not None and settings.hard == "all":
            raise UserError(f"{name} {share} with --hard all, which keeps every row; leave one of them out")
        if share is not None and not 0 < share <= 1:
            raise UserError(f"{name} {share} must be a share above 0, up to 1")
    if not 0 <= settings.heldout < 1:
        raise UserError(f"--heldout {settings.heldout} must be a share from 0 to below 1")
    if settings.max_prompt_tokens < 1:
        raise UserError(f"--max-prompt-tokens {settings.max_prompt_tokens} must be 1 or more")
    if settings.baseline not in ("none", "constant"):
        raise UserError(f"--baseline {settings.baseline!r} is unknown; use none or constant")
    tokenizer = load_tokenizer(settings.tokenizer)
    chat = ChatEncoder(tokenizer, settings.system)
    sources = parse_sources(settings.sources)
    if any(source.weight != 1 for source in sources):
        raise UserError("rl sources take no weight (SRC@W): an epoch asks each prompt once")
    units, _ = plan_units(sources, settings.extensions, settings.exclude)
    if settings.from_code:
        check_tables(sources, units)
    return tokenizer, chat, sources, units


def _progress(label: str, rows: Iterable[T], quiet: bool) -> Iterator[T]:
    """The rows, one by one, with a bar: tens of thousands of questions take minutes."""
    with bar(label, None, quiet=quiet, late=True) as progress:
        for row in rows:
            yield row
            progress.advance()


def load_prompts(folder: str | Path, split: str = "train") -> list[dict[str, Any]]:
    """The prompts of an `rl` folder: task_id, style, messages, source, and what a completion is held against.

    That is tests {shown, hidden, and where the tests need them prelude and setup: code}, entry_point and, if asked for, baseline, or, in the style "math", answer: the final number as text.

    Raises:
        UserError: another kind of data, no such split, or a file that is not what the manifest says.
    """
    manifest = read_manifest(folder)
    if manifest["kind"] != "rl":
        raise UserError(f"{str(folder)!r} holds {manifest['kind']} rows, not prompts; use: dcoder tokenize rl")
    entries = [entry for entry in manifest["files"] if entry["split"] == split]
    if not entries:
        raise UserError(f"{str(folder)!r} has no {split} prompts; make some with: dcoder tokenize rl --heldout 0.05")
    path = Path(folder) / entries[0]["file"]
    found = checksums.first_damaged([(path, hashes_of(entries[0]))], "prompt file", "copy or make them again")
    if found is not None:
        raise found
    return [row for _, row in PROMPTS.rows(path)]


def _counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {"rows": len(rows), "documents": len({row["task_id"].removesuffix("/complete") for row in rows})}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


def _problems(
    records: Iterable[tuple[str, Record]], dropped: Dropped, idle: Tally, from_code: bool
) -> Iterator[RlProblem]:
    """The usable rows; the first of each source must be one, or its columns are wrong. `idle`: their tests left out."""
    heard: set[str] = set()
    for label, record in records:
        name = record.name
        if not isinstance(record.value, dict) and not from_code:
            raise UserError(f"{name} is a text file; rl needs .jsonl, .json, .parquet or hub:NAME, or --from-code")
        if record.problem is not None:
            dropped.add(record.problem, name)
            continue
        assert isinstance(record.value, dict)
        try:
            problem = read_problem(record.value, name, label)
        except BadRow as bad:
            if label not in heard:
                raise
            dropped.add(bad.reason, name)
            continue
        finally:
            heard.add(label)
        reason = why_unusable(problem)
        if reason is not None:
            dropped.add(reason, name)
            continue
        for test in problem.idle:
            idle.add(f"{name} ({one_line(test)[:80]!r})")
        yield problem


def _unique(
    problems: Iterable[RlProblem], filters: FilterSettings, dropped: Dropped, from_code: bool
) -> Iterator[RlProblem]:
    """Those that no benchmark has and no other asks; from code the reference must not be a benchmark's either."""
    contamination = None
    if filters.decontaminate:
        contamination = load_contamination(filters.decontaminate, filters.benchmarks, filters.decontaminate_ngram)
    seen: set[bytes] = set()
    for problem in problems:
        text = f"{problem.question}\n{problem.reference}" if from_code else problem.question
        found = contamination.find(word_codes(text)) if contamination is not None else None
        if found is not None:
            dropped.add(f"contaminated by {found.partition(':')[0]}", problem.task_id, found)
        elif filters.exact_duplicates and _digest(problem.question) in seen:
            dropped.add("exact duplicate", problem.task_id)
        else:
            seen.add(_digest(problem.question))
            yield problem


def _check_effects(problems: list[RlProblem], settings: RlSettings) -> None:
    """Raises UserError for an option that changes nothing with these rows."""
    chosen = {
        "--hard": settings.hard if settings.hard_given or settings.hard != RlSettings.hard else None,
        "--hard-mean": settings.hard_mean,
        "--hard-spread": settings.hard_spread,
    }
    given = [f"{name} {value}" for name, value in chosen.items() if value not in (None, "all")]
    if problems and given and not any(problem.pass_rates for problem in problems):
        models = " or ".join(HARD_MODELS)
        raise UserError(f"{given[0]} changes nothing: no row has inferences of {models}; leave it out")
    if problems and settings.baseline == "constant" and not any(problem.hidden for problem in problems):
        raise UserError("--baseline constant changes nothing: no row has tests; leave it out")


def _hard(problems: list[RlProblem], settings: RlSettings, dropped: Dropped) -> Iterator[RlProblem]:
    known = [problem for problem in problems if problem.pass_rates]
    chosen: dict[int, bool] = {}
    if settings.hard != "all" and known:
        shares = zip((settings.hard_mean, settings.hard_spread), HARD[settings.hard], strict=True)
        low, wide = (default if given is None else given for given, default in shares)
        hard = hard_subset([problem.pass_rates for problem in known], low, wide)
        chosen = {id(problem): bool(value) for problem, value in zip(known, hard, strict=True)}
    for problem in problems:
        if chosen.get(id(problem), True):
            yield problem
        else:
            dropped.add("not hard", problem.task_id, f"mean pass rate {np.mean(problem.pass_rates):.2f}")


def _constant_answers(shares: list[float]) -> dict[str, Any]:
    """How far one constant for an answer gets: over the questions with tests, the shares of tests that the best passes."""
    return {
        "questions": len(shares),
        "mean_share": round(float(np.mean(shares)), 4) if shares else 0.0,
        "half_or_more": sum(share >= 0.5 for share in shares),
    }

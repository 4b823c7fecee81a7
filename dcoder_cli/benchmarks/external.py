"""Judging samples that any system made: the same judged.jsonl and results.json as an evaluation here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dcoder_cli.base.errors import UserError, valid_text
from dcoder_cli.base.files import write_json, write_jsonl
from dcoder_cli.benchmarks import suites
from dcoder_cli.benchmarks.evaluation import Result, summarize
from dcoder_cli.benchmarks.judging import Judging
from dcoder_cli.benchmarks.samples import key_of, read_elsewhere


def judge_file(
    file: Path,
    task: str,
    out: Path,
    subset: str | None = None,
    data: Path | None = None,
    workers: int | None = None,
    python: str | None = None,
    unsafe: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Judge and score a samples file (see `samples.read_elsewhere`); nothing is written before all is judged.

    Scores are over the tasks that have samples; `tasks` and `tasks_of_benchmark` of the result say how many those are.

    Args:
        progress: called with how many samples have been judged, of how many.

    Raises:
        UserError: a broken line of the file (named), data not found, `out` in use.
        WorkFailed: several samples in a row could not be judged.
    """
    if (out / "judged.jsonl").exists() or out.is_file():
        raise UserError(f"--out {str(out)!r} holds results already; choose another folder")
    # `all` has every id that a samples file of MBPP may have
    suite = suites.load(task, subset or ("all" if task == "mbpp" else None), data)
    rows = read_elsewhere(file, suite)
    named = {row["task_id"] for row in rows}
    items = {item.task_id: item for item in suite.items if item.task_id in named}
    suite = suites.only(suite, tuple(items.values()))
    judged = {}
    with Judging(suite, workers, unsafe, python) as judging:
        futures = [judging.submit(items[row["task_id"]], row["sample"], row["solution"]) for row in rows]
        for number, (row, future) in enumerate(zip(rows, futures, strict=True), 1):
            judged[key_of(row)] = future.result()
            if progress is not None:
                progress(number, len(rows))
        tier = judging.tier
    result = summarize(suite, {key_of(row): row for row in rows}, judged, tier, [key_of(row) for row in rows])
    result.record.update(samples_from=valid_text(str(file)), protocol=None)
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "judged.jsonl", result.judged)
    write_json(out / "results.json", result.record)
    return result

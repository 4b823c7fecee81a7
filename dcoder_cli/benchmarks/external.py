"""Judging samples that any system made: the same samples.jsonl, judged.jsonl and results.json as an evaluation here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from dcoder_cli.base.errors import UserError, valid_text
from dcoder_cli.base.files import check_folder, write_json
from dcoder_cli.benchmarks import suites
from dcoder_cli.benchmarks.benchmark import Row
from dcoder_cli.benchmarks.evaluation import Result, summarize
from dcoder_cli.benchmarks.external_samples import read_samples
from dcoder_cli.benchmarks.judging import Judging
from dcoder_cli.benchmarks.samples import Key, Store, key_of


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
    column: str | None = None,
    extract: bool = False,
) -> Result:
    """Judge and score a samples file (see `external_samples.read_samples`).

    What is judged is written at once, so that a call that was stopped goes on. Scores are over the tasks that have
    samples; `tasks` and `tasks_of_benchmark` of the result say how many those are.

    Args:
        progress: called with how many more samples have been judged, of how many in all.

    Raises:
        UserError: a broken line of the file (named), data not found, `out` in use.
        WorkFailed: several samples in a row could not be judged.
    """
    check_folder(out)
    begun = (out / "judged.jsonl").exists() and (out / "settings.json").exists()
    if (out / "results.json").exists() or ((out / "judged.jsonl").exists() and not begun):
        raise UserError(f"--out {str(out)!r} holds results already; choose another folder")
    suite = suites.load(task, subset or suites.find(task).widest or None, data)
    rows = read_samples(file, suite, column, extract)
    named = {row["task_id"] for row in rows}
    items = {item.task_id: item for item in suite.items if item.task_id in named}
    suite = suites.only(suite, tuple(items.values()))
    identity = {
        "task": suite.task, "subset": suite.subset, "data_sha256": suite.sha256, "column": column, "extract": extract,
        "samples_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }  # fmt: skip
    keys = [key_of(row) for row in rows]
    tell = progress or (lambda more, total: None)
    with Judging(suite, workers, unsafe, python) as judging, Store(out, identity) as store:
        for row in rows:
            if key_of(row) not in store.samples:
                store.add("samples", row)
        known = {key for key in keys if store.judged.get(key, {}).get("status", "infrastructure") != "infrastructure"}
        tell(len(known), len(rows))
        waiting: dict[Key, Future[Row]] = {}
        try:
            for row in rows:
                if key_of(row) not in known:
                    waiting[key_of(row)] = judging.submit(items[row["task_id"]], row["sample"], row["solution"])
            for key in list(waiting):
                store.add("judged", waiting[key].result())
                del waiting[key]
                tell(1, len(rows))
        except BaseException:  # Ctrl-C too: what is judged by now is kept
            for future in waiting.values():
                if future.done() and not future.cancelled() and future.exception() is None:
                    store.add("judged", future.result())
            raise
        store.merge(keys)
        result = summarize(suite, store.samples, store.judged, judging.tier, keys)
    result.record.update(samples_from=valid_text(str(file)), protocol=None, column=column, extract=extract)
    write_json(out / "results.json", result.record)
    return result

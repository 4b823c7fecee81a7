"""From judged samples to scores: pass@k with intervals, and counts of what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dcoder_cli.base.errors import WorkFailed
from dcoder_cli.benchmarks import suites
from dcoder_cli.benchmarks.benchmark import Row, Suite
from dcoder_cli.benchmarks.passk import pass_at_k, pass_at_k_mean
from dcoder_cli.benchmarks.samples import Key

_MANY = (1, 2, 5, 10, 20, 50, 100, 200)


def ks(samples: int) -> list[int]:
    """The k of pass@k that are reported for so many samples a task: all up to 10, then round ones."""
    if samples <= 10:
        return list(range(1, samples + 1))
    return [*range(1, 11), *(k for k in _MANY if 10 < k < samples), samples]


def rights(judged: Iterable[Row], metric: str) -> dict[str, tuple[int, int]]:
    """For each task the number of samples and of right ones; samples lost to infrastructure are not counted."""
    found: dict[str, tuple[int, int]] = {}
    right = suites.right(metric)
    for row in judged:
        if row["status"] != "infrastructure":
            total, good = found.get(row["task_id"], (0, 0))
            found[row["task_id"]] = (total + 1, good + right(row))
    return found


def scores(suite: Suite, judged: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """For each metric `pass@k` with mean and the ends of its 95% interval, in percent, and the interval's name.

    Raises:
        WorkFailed: nothing was judged.
    """
    found = {}
    for metric in suite.metrics:
        counted = list(rights(judged, metric).values())
        if not counted:
            raise WorkFailed("no sample could be judged; see `dcoder doctor`")
        totals, goods = [total for total, _ in counted], [good for _, good in counted]
        found[metric] = {
            f"pass@{k}": {
                "score": round(100 * estimate.mean, 3),
                "low": round(100 * estimate.low, 3),
                "high": round(100 * estimate.high, 3),
                "interval": estimate.interval,
            }
            for k in ks(min(totals))
            for estimate in [pass_at_k_mean(totals, goods, k)]
        }
    return found


def per_task(judged: Iterable[Row], metric: str, k: int = 1) -> dict[str, float]:
    """pass@k of each task, for paired comparisons."""
    return {task_id: pass_at_k(total, good, k) for task_id, (total, good) in rights(judged, metric).items()}


def counts(samples: Mapping[Key, Row], judged: Iterable[Row]) -> dict[str, int]:
    """How many samples were empty, unfinished (no end of turn and no stop), too long for the context, or broken."""
    status = [row["status"] for row in judged]
    return {
        "samples": len(samples),
        "empty": sum(not row["text"].strip() for row in samples.values()),
        "unfinished": sum(row.get("finished") is False for row in samples.values()),
        "prompt_too_long": sum(bool(row.get("prompt_too_long")) for row in samples.values()),
        "syntax_error": status.count("syntax"),
        "timeout": status.count("timeout"),
        "memory": status.count("memory"),
        "infrastructure": status.count("infrastructure"),
    }


def rates(samples: Iterable[Row]) -> dict[str, Any]:
    """Tokens, forward passes (each sample's own) and tokens a second of decoding, over samples made here."""
    rows = [row for row in samples if row.get("forwards")]
    tokens, forwards = sum(row["tokens"] for row in rows), sum(row["forwards"] for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    return {
        "tokens": tokens,
        "forwards": forwards,
        "tokens_per_forward": round(tokens / forwards, 3) if forwards else None,
        "decoding_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 2) if seconds else None,
    }

"""Published scores in percent, for tables beside measured ones (DiffuCoder, tables 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass

from dcoder_cli.benchmarks import suites

COLUMNS = (
    "HumanEval", "HumanEval+", "MBPP", "MBPP+", "EvalPlus", "BigCodeBench-C full", "BigCodeBench-C hard",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A row of the paper; `scores` in the order of COLUMNS."""

    system: str
    instruct: bool
    scores: tuple[float | None, ...]


_BASE = {
    "Qwen2.5-Coder base": (61.6, 51.8, 75.9, 61.4, 56.6, 46.1, 16.2),
    "OpenCoder-8B base": (66.5, 63.4, 79.9, 70.4, 66.9, 40.5, 9.5),
    "LLaDA base": (35.4, 30.5, 50.1, 42.1, 36.3, 18.9, 4.1),
    "Dream base": (56.7, 50.0, 68.7, 57.4, 53.7, 23.6, 4.1),
    "DiffuCoder base": (67.1, 60.4, 74.2, 60.9, 60.6, 40.2, 12.8),
    "DiffuCoder stage 1, 65B tokens": (39.0, 31.7, 48.4, 38.3, None, None, None),
    "DiffuCoder stage 1, 720B tokens": (31.1, 23.3, 38.8, 31.3, None, None, None),
    "DiffuCoder stage 2, 16B tokens": (66.5, 61.0, 71.9, 57.1, None, None, None),
}
_INSTRUCT = {
    "Qwen2.5-Coder-Instruct": (90.2, 85.4, 83.9, 72.0, 78.7, 50.7, 21.6),
    "Qwen2.5-Coder + SFT": (82.9, 75.6, 80.1, 66.1, 70.9, 46.9, 16.2),
    "LLaDA-Instruct": (35.4, 31.7, 31.5, 28.6, 30.2, 16.5, 2.7),
    "Dream-Instruct": (57.9, 53.7, 68.3, 56.1, 54.9, 10.6, 0.7),
    "DiffuCoder-Instruct": (72.0, 65.2, 75.1, 61.9, 63.6, 35.7, 12.2),
    "+ coupled-GRPO": (73.2, 68.3, 78.6, 67.5, 67.9, 40.4, 10.8),
    "+ coupled-GRPO (LOO)": (70.7, 62.2, 79.6, 68.5, 65.4, 41.2, 13.5),
    "full-mask GRPO": (66.5, 59.1, 77.0, 65.1, 62.1, 38.0, 8.8),
    "de-coupled GRPO": (68.9, 62.8, 78.3, 66.4, 64.6, 40.4, 10.8),
}
TABLE: tuple[Published, ...] = (
    *(Published(system, False, scores) for system, scores in _BASE.items()),
    *(Published(system, True, scores) for system, scores in _INSTRUCT.items()),
)


def rows(task: str, subset: str, instruct: bool) -> list[tuple[str, dict[str, float]]]:
    """The published systems of a kind (base or instruct) with their pass@1 by metric; none where the paper has none."""
    columns = suites.find(task).published.get(subset, {})
    places = {metric: COLUMNS.index(column) for metric, column in columns.items()}
    found = []
    for one in TABLE:
        scores = {metric: score for metric, place in places.items() if (score := one.scores[place]) is not None}
        if one.instruct == instruct and scores:
            found.append((one.system, scores))
    return found

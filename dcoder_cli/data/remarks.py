"""What is said of a data set at the end, beside its tables of rows and of what was dropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_TALLIES = {
    "idle_tests": "tests left out since they check nothing",
    "renamed": "questions renamed, as an id was taken",
}


def remarks(manifest: dict[str, Any]) -> Iterator[str]:
    """A line for each thing that happened."""
    for licence, count in manifest.get("licence_headers_stripped", {}).items():
        yield f"licence headers stripped: {count:,} {licence}"
    for name, words in _TALLIES.items():
        if (met := manifest.get(name)) and met["count"]:
            yield f"{words}: {met['count']:,}, such as {met['examples'][0]}"
    if (constants := manifest.get("constant_answers")) and constants["questions"]:
        yield (
            f"the best constant answer passes {constants['mean_share']:.0%} of a question's hidden tests in the mean, and half or "
            f"more on {constants['half_or_more']:,} of {constants['questions']:,}"
        )

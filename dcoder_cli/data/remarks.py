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
    asked = manifest.get("filters", {}).get("licence", "keep")
    dropped = [reason for reason in manifest["dropped"] if reason.startswith("licence header")]
    headers = [*manifest.get("licence_headers_stripped", {}), *dropped]
    if asked != "keep" and not headers:
        yield f"--licence {asked}: no document begins with such a header"
    for name, words in _TALLIES.items():
        if (met := manifest.get(name)) and met["count"]:
            yield f"{words}: {met['count']:,}, such as {met['examples'][0]}"
    if (constants := manifest.get("constant_answers")) and constants["questions"]:
        yield (
            f"the best constant answer passes {constants['mean_share']:.0%} of a question's hidden tests in the mean, and half or "
            f"more on {constants['half_or_more']:,} of {constants['questions']:,}"
        )


def show(manifest: dict[str, Any], out: str, seconds: float, as_json: bool) -> None:
    """Print a manifest's tables of rows and of what was dropped, and its remarks; or all of it as JSON."""
    from rich.table import Table

    from dcoder_cli.base import console

    if as_json:
        console.emit_json({"out": out, "seconds": round(seconds, 3), **manifest})
        return
    screen = console.stdout()
    table = Table(title=f"{manifest['kind']}: {out}")
    for name in ("split", "rows", "documents", "tokens", "padding"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, split in manifest["splits"].items():
        counts = (split.get(key) for key in ("rows", "documents", "tokens", "padding_tokens"))
        table.add_row(name, *("" if count is None else f"{count:,}" for count in counts))
    screen.print(table)
    if manifest["dropped"]:
        table = Table(title="dropped")
        for name in ("reason", "documents", "for example"):
            table.add_column(name, justify="right" if name == "documents" else "left")
        for reason, entry in manifest["dropped"].items():
            table.add_row(reason, f"{entry['documents']:,}", entry["examples"][0] if entry["examples"] else "")
        screen.print(table)
    for line in remarks(manifest):
        screen.print(line, markup=False)
    screen.print(
        f"tokenizer {manifest['tokenizer']['name']}, {manifest['tokenizer']['vocab_size']:,} tokens; {seconds:.1f} s"
    )

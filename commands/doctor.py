"""`dcoder doctor`."""

from __future__ import annotations

from typing import Any

import typer

from dcoder_cli.base import console, options

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def doctor(
    json: options.Json = False,
) -> None:
    """Show what works here: versions, GPU, flash-attn, sandbox, hub, benchmark data."""
    from dcoder_cli.benchmarks.environment import describe

    found = describe()
    if json:
        console.emit_json(found)
        return
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in _rows(found):
        table.add_row(f"{key}  ", value)
    console.stdout().print(table, markup=False)
    if found["sandbox"]["tier"] == "C":
        console.warn("no sandbox holds here; on Linux, apt install bubblewrap")


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("dcoder", found["dcoder"]), ("python", f"{found['python']} on {found['system']}")]
    rows += [(name, version or "not installed") for name, version in found["packages"].items()]
    for name, one in found["optional"].items():
        rows.append((name, one["version"] or f"no: not installed (pip install '{one['install']}')"))
    rows.append(("processors", str(found["processors"])))
    for gpu in found["gpu"] or [None]:
        text = "none" if gpu is None else f"{gpu['name']}, {gpu['memory_gib']} GiB, {gpu['compute_capability']}"
        rows.append(("GPU", text))
    flash = found["flash_attn"]
    rows.append(("flash-attn", f"{flash['version']}" if flash["loads"] else f"no: {flash['why']}"))
    box = found["sandbox"]
    rows.append(("sandbox", f"tier {box['tier']}: {box['means']}"))
    rows += [(f"  not tier {name}", why) for name, why in box["why_not_better"].items()]
    rows.append(("hub", found["hub"]))
    for name, place in found["benchmarks"].items():
        rows.append((name, place or "no data here (--data FILE, or DCODER_BENCHMARKS)"))
    return rows

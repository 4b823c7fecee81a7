"""`dcoder presets`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dcoder_cli.base import console, options, presets
from dcoder_cli.base.errors import UserError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True)


@app.callback()
def _root() -> None:
    """List and show the presets for GPU sizes."""


@app.command("list")
def list_presets(json: options.Json = False) -> None:
    """Name every preset and what it is for."""
    rows = {name: _headline(name) for name in presets.names()}
    if json:
        console.emit_json(rows)
        return
    for name, line in rows.items():
        console.stdout().print(f"{name:10}  {line}", markup=False)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The preset.")],
    section: Annotated[
        str | None, typer.Option("--section", help="Only this section, for example launch (an Accelerate config file).")
    ] = None,
    json: options.Json = False,
) -> None:
    """Print a preset: what it changes, the commands to run, every value."""
    values: Any = presets.load(name)
    if section is not None:
        if section not in values:
            raise UserError(f"preset {name!r} has no section {section!r}; it has {', '.join(values)}")
        values = values[section]
    if json:
        console.emit_json(values)
    elif section is not None:
        import yaml

        console.stdout().print(yaml.safe_dump(values, sort_keys=False), end="", markup=False)
    else:
        console.stdout().print(presets.text(name), end="", markup=False)


def _headline(name: str) -> str:
    return presets.text(name).splitlines()[0].removeprefix("#").strip()

"""`dcoder inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from dcoder_cli.base import console, options

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Checkpoint: a folder or a hub id.")],
    json: options.Json = False,
) -> None:
    """Show a checkpoint's architecture, special ids, conflicts and memory needs."""
    from dcoder_cli.model.inspection import inspect as look

    result = look(model)
    if json:
        console.emit_json(result)
        return
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    shift = "hidden state i-1 predicts token i" if result["shift"] else "hidden state i predicts token i"
    shape = f"{result['layers']} layers, {result['heads']} heads ({result['kv_heads']} key/value), FFN {result['intermediate_size']}"
    rows = [
        ("system", f"{result['system']} ({result['kind']})"),
        ("parameters", f"{result['parameters']:,} ({', '.join(result['dtypes'])})"),
        ("shape", f"hidden {result['hidden_size']}, {shape}{', tied head' if result['tied_head'] else ''}"),
        ("vocabulary", f"{result['vocab_size']:,} rows, tokenizer {result['tokenizer_size'] or 'none'}"),
        ("context", f"{result['context']:,} tokens"),
        ("shift", shift),
    ]
    for key, value in result["ids"].items():
        if key != "stops" and value is not None:
            rows.append((key.replace("_", " "), f"{value}  {result['tokens'].get(key, '')}"))
    rows.append(("text ends at", ", ".join(map(str, result["ids"].get("stops", [])))))
    for key, value in result["record"].items():
        if key != "shift":
            rows.append((key, str(value)))
    need = result["memory_gib"]
    rows.append(
        (
            "memory",
            f"{need['load_bfloat16']} GiB to load in bfloat16, {need['train_adamw']} GiB to train with AdamW, plus activations",
        )
    )
    for key, value in rows:
        table.add_row(f"{key}  ", value)
    console.stdout().print(table, markup=False)
    for finding in result["findings"]:
        console.warn(f"{finding['subject']}: {finding['message']}")

"""`dcoder convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcoder_cli.base import console
from dcoder_cli.base.errors import UserError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def convert(
    model: Annotated[
        str | None, typer.Argument(help="AR checkpoint (folder or hub id) to convert; none with --init.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("diffusion-model"),
    init: Annotated[
        str | None, typer.Option("--init", help="Random weights of this size: tiny, qwen2.5-coder-0.5b ... -32b.")
    ] = None,
    ar: Annotated[bool, typer.Option("--ar", help="With --init: keep it an AR model (for train-stage 0).")] = False,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="With --init: a folder or hub id with the tokenizer.")
    ] = None,
    train_tokenizer: Annotated[
        list[Path] | None,
        typer.Option(
            "--train-tokenizer", help="With --init: train a byte-level BPE on this file or folder (repeatable)."
        ),
    ] = None,
    vocab_size: Annotated[int, typer.Option("--vocab-size", help="Entries of the trained tokenizer.")] = 1024,
    mask_id: Annotated[
        int | None, typer.Option("--mask-id", help="Use this id as the mask token instead of adding one.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random weights.")] = 0,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Number format to write: float32, bfloat16 (default: as read).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --out if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Turn an AR checkpoint into a diffusion checkpoint, or make a new one.

    Examples:

      dcoder convert Qwen/Qwen2.5-Coder-7B --out start-7b

      dcoder convert --init tiny --ar --train-tokenizer src/ --out ar-tiny
    """
    if (model is None) == (init is None):
        raise UserError("give either a MODEL to convert or --init SIZE for random weights")
    if init is None and (tokenizer or train_tokenizer or ar):
        raise UserError("--tokenizer, --train-tokenizer and --ar go with --init; a converted model keeps its tokenizer")
    if tokenizer and train_tokenizer:
        raise UserError("give either --tokenizer or --train-tokenizer, not both")
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {str(out)!r} exists already; choose another folder or add --force")
    from dcoder_cli.model import conversion

    if init is not None:
        result = conversion.initialise(
            init, out, tokenizer, train_tokenizer or [], vocab_size, ar, mask_id, seed, dtype
        )
    else:
        assert model is not None
        result = conversion.convert_checkpoint(model, out, mask_id, dtype)
    if json:
        console.emit_json(result)
        return
    console.stdout().print(
        f"wrote {out}: {result['system']}, {result['parameters']:,} parameters, mask id {result['ids']['mask']}",
        markup=False,
    )
    for finding in result["findings"]:
        console.warn(f"{finding['subject']}: {finding['message']}")

"""`dcoder convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcoder_cli.base import console, options
from dcoder_cli.base.checksums import RECORD
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import check_replaceable
from dcoder_cli.base.locks import locked
from dcoder_cli.base.options import Needs

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


NEEDS = (
    Needs(
        ("train_tokenizer", "ar", "seed"), lambda call: call["init"] is not None,
        "a converted model keeps its weights and tokenizer; it goes with --init",
    ),
    Needs(
        ("tokenizer",), lambda call: call["init"] is not None or _is_gguf(call["model"]),
        "a converted model keeps its tokenizer; it goes with --init or a GGUF file",
    ),
    Needs(
        ("rows_multiple",), lambda call: call["init"] is None,
        "it is of a vocabulary that a conversion adds to; give a MODEL to convert",
    ),
    Needs(
        ("vocab_size",), lambda call: call["train_tokenizer"],
        "it is of the tokenizer that --train-tokenizer trains; give that, or leave it out",
    ),
    Needs(("mask_id",), lambda call: not call["ar"], "an AR model has no mask token; leave out --ar or --mask-id"),
)  # fmt: skip


def _is_gguf(model: str | None) -> bool:
    from dcoder_cli.model import gguf

    return model is not None and gguf.find(model) is not None


@app.command()
def convert(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="AR checkpoint to convert: a folder, a hub id or a GGUF file; none with --init."),
    ] = None,
    out: options.Out = Path("diffusion-model"),
    init: Annotated[
        str | None, typer.Option("--init", help="Random weights of this size: tiny, qwen2.5-coder-0.5b ... -32b.")
    ] = None,
    ar: Annotated[bool, typer.Option("--ar", help="With --init: keep it an AR model (for train-stage 0).")] = False,
    tokenizer: options.Tokenizer = None,
    train_tokenizer: Annotated[
        list[Path] | None,
        typer.Option(
            "--train-tokenizer", help="With --init: train a byte-level BPE on this file or folder (repeatable)."
        ),
    ] = None,
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", help="Entries of the trained tokenizer.", callback=options.within(1, 2**24))
    ] = 1024,
    mask_id: Annotated[
        int | None,
        typer.Option(
            "--mask-id",
            help="Use this id, which means nothing else, as the mask token instead of adding one.",
        ),
    ] = None,
    rows_multiple: Annotated[
        int, typer.Option("--rows-multiple", min=1, help="A vocabulary that grows, grows to a multiple of this.")
    ] = 64,
    seed: options.Seed = 0,
    dtype: options.Dtype = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Turn an AR checkpoint into a diffusion checkpoint, or make a new one.

    Qwen2 and Llama take Dream's layout, Qwen3 that of dLLM's a2d-qwen3. All keep
    the AR model's shift: hidden state i-1 predicts token i.

    Examples:

      dcoder convert Qwen/Qwen2.5-Coder-7B --out start-7b

      dcoder convert SmolLM2-135M-Instruct.Q4_1.gguf --out start-135m

      dcoder convert --init tiny --ar --train-tokenizer src/ --out ar-tiny
    """
    options.refuse_unused(options.given(context), context.params, NEEDS)
    if (model is None) == (init is None):
        raise UserError("give either a MODEL to convert or --init SIZE for random weights")
    if tokenizer and train_tokenizer:
        raise UserError("give either --tokenizer or --train-tokenizer, not both")
    check_replaceable(out, force, RECORD, "a checkpoint that dcoder wrote")
    from dcoder_cli.model import conversion
    from dcoder_cli.model.convert import Additions

    add = Additions(mask_id, rows_multiple)
    if dry_run:
        from dcoder_cli.base import plan as plans

        if init is not None:
            sources = train_tokenizer or []
            found = conversion.plan_initial(init, out, tokenizer, sources, vocab_size, ar, mask_id, dtype)
        else:
            found = conversion.plan_checkpoint(str(model), out, add, dtype, tokenizer)
        return plans.show(found, json)
    with locked(out):
        check_replaceable(out, force, RECORD, "a checkpoint that dcoder wrote")
        if init is not None:
            result = conversion.initialise(
                init, out, tokenizer, train_tokenizer or [], vocab_size, ar, mask_id, seed, dtype
            )
        else:
            assert model is not None
            result = conversion.convert_checkpoint(model, out, add, dtype, tokenizer)
    if json:
        console.emit_json(result)
        return
    console.stdout().print(
        f"wrote {out}: {result['system']}, {result['parameters']:,} parameters, mask id {result['ids']['mask']}",
        markup=False,
    )
    for finding in result["findings"]:
        console.warn(f"{finding['subject']}: {finding['message']}")

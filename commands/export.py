"""`dcoder export`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dcoder_cli.base import console, options
from dcoder_cli.base.locks import locked

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

_MIB = 2**20


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Checkpoint: a folder, a run folder (its last), or a hub id.")],
    out: options.Out,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Cast the weights: float32, bfloat16 or float16 [as stored].")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="The hub's identifier, such as apache-2.0 [none stated].")
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", help="Scores for the card: a folder of `dcoder eval`; repeatable."),
    ] = None,
    arness: Annotated[
        list[Path] | None,
        typer.Option("--arness", help="Decoding order for the card: arness.json of `dcoder arness`; repeatable."),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Write a folder that other people's code loads, with a model card.

    AutoModel loads Dream and LLaDA layouts through their public code, A2D once the
    package dllm is imported, AR models through transformers itself.
    The card's numbers come from the run's own files and from those of --results and --arness, which must be of
    these weights. Then: hf upload OWNER/NAME DIR

    Examples:

      dcoder export runs/grpo --out diffucoder-mine --dtype bfloat16 --license apache-2.0

      dcoder export runs/sft/checkpoints/best --out sft-0.5b --results scores --arness order/arness.json
    """
    from dcoder_cli.benchmarks.publish import publish

    def progress(total: int, work: Callable[[Callable[[float], None]], None]) -> None:
        with console.bar("writing weights, MiB", total / _MIB, quiet=json) as bar:
            work(lambda written: bar.advance(written / _MIB))

    with locked(out):
        facts = publish(model, out, dtype, licence, results or [], arness or [], force, progress)
    if json:
        console.emit_json(facts)
        return
    _show(facts)


def _show(facts: dict[str, Any]) -> None:
    model = facts["model"]
    console.stdout().print(
        f"wrote {facts['out']}: {model['system']}, {model['parameters']:,} parameters in {model['dtype']}, "
        f"{len(facts['stages'])} stages, {len(facts['scores'])} scores, {len(facts['arness'])} orders in the card",
        markup=False,
    )
    if facts["auto_map"]:
        public = facts["public"]
        console.note(
            f"AutoModel loads it with the code of {public['repository']} (transformers {public['transformers']}, trust_remote_code)"
        )
    elif model["kind"] == "ar":
        console.note(f"no auto_map: {facts['why_not']}")
    else:
        console.warn(f"no auto_map, so AutoModel does not load it: {facts['why_not']}")
    if model["dtype"] == "float32" and 4 * model["parameters"] > 2**30:
        console.note(
            "the weights are float32, as trained; --dtype bfloat16 halves them, as the published checkpoints are"
        )
    console.note(f"to publish: hf upload OWNER/NAME {shlex.quote(facts['out'])}")

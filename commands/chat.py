"""`dcoder chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcoder_cli.base import config as configs
from dcoder_cli.base import console, presets
from dcoder_cli.base.errors import UserError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def chat(
    model: Annotated[str, typer.Option("--model", help="Checkpoint with a chat template: folder or hub id.")] = "",
    system: Annotated[str | None, typer.Option("--system", help="The system message.")] = None,
    load: Annotated[Path | None, typer.Option("--load", help="Continue a conversation written by /save.")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Take the generate section of a preset.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of generate, key=value: temperature=0.7, steps=64, block_length=32 .."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch/--no-watch", help="Show answers being denoised, or as text from the left.")
    ] = True,
    device: Annotated[str | None, typer.Option("--device", help="cuda, cpu, mps [what is there].")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16 [float32 on a CPU].")] = None,
    attention: Annotated[str, typer.Option("--attention", help="sdpa, flash_attention_2, flex or eager.")] = "sdpa",
    json: Annotated[bool, typer.Option("--json", help="Print trajectory records, one JSON line an answer.")] = False,
) -> None:
    """Talk with a model: several turns, answers shown as they are denoised.

    Lines from a pipe are turns too, and the answers then are plain text. /help lists the commands of a conversation.

    Examples:

      dcoder chat --model runs/sft/checkpoints/last --set temperature=0.4 --set block_length=32

      printf 'Write add(a, b).\\nNow in C.\\n' | dcoder chat --model runs/sft/checkpoints/last
    """
    if not model:
        raise UserError("--model is missing; give a checkpoint folder or hub id")
    layers = [presets.section(preset, "generate")] if preset else []
    settings = configs.merge(*layers, configs.parse_assignments(sets or []))
    from dcoder_cli.decoding.requests import Settings, with_length
    from dcoder_cli.model import backbone, checkpoint
    from dcoder_cli.terminal.chat import Session
    from dcoder_cli.terminal.conversation import converse

    known = with_length(settings, checkpoint.local_answer_length(model))
    configs.build(Settings, known, where="the settings of chat")  # before the model is loaded
    if console.world_size() > 1:
        raise UserError(f"chat runs in one process, not {console.world_size()}; start it without a launcher")
    loaded = backbone.load(model, device, dtype, attention)
    session = Session(loaded, settings, system)
    if load is not None:
        session.load(load)
        if system is not None:
            session.system = system
    for finding in loaded.findings if not json else []:
        console.note(f"note: {finding.subject}: {finding.message}")
    converse(session, watch, json)

"""`dcoder chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcoder_cli.base import config as configs
from dcoder_cli.base import console, options, presets
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.options import Needs

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


NEEDS = (
    Needs(("preset",), lambda call: call["load"] is None, "--load brings the conversation's own settings; use --set"),
    Needs(("watch",), lambda call: not call["json"], "--json draws nothing; leave one of them out"),
)


@app.command()
def chat(
    context: typer.Context,
    model: options.Model = None,
    system: options.System = None,
    load: Annotated[Path | None, typer.Option("--load", help="Continue a conversation written by /save.")] = None,
    preset: options.Preset = None,
    sets: options.Set = None,
    watch: Annotated[
        bool, typer.Option("--watch/--no-watch", help="Show answers being denoised, or as text from the left.")
    ] = True,
    device: options.Device = None,
    dtype: options.Dtype = None,
    attention: options.Attention = "sdpa",
    cuda_graphs: options.CudaGraphs = False,
    json: options.Json = False,
) -> None:
    """Talk with a model: several turns, answers shown as they are denoised.

    Lines from a pipe are turns too, and the answers then are plain text. /help lists the commands of a conversation.
    --set takes the settings of `dcoder generate` by name: temperature=0.7, steps=64, block_length=32 ..

    Examples:

      dcoder chat --model runs/sft/checkpoints/last --set temperature=0.4 --set block_length=32

      printf 'Write add(a, b).\\nNow in C.\\n' | dcoder chat --model runs/sft/checkpoints/last
    """
    written = options.given(context)
    options.refuse_unused(written, context.params, NEEDS)
    if not model:
        raise UserError("--model is missing; give a checkpoint folder or hub id")
    layers = [presets.section(preset, "generate")] if preset else []
    settings = configs.merge(*layers, configs.parse_assignments(sets or []))
    from dcoder_cli.decoding import unused
    from dcoder_cli.decoding.requests import Settings, with_length
    from dcoder_cli.model import checkpoint, loading
    from dcoder_cli.terminal.chat import Session
    from dcoder_cli.terminal.conversation import converse

    known = with_length(settings, checkpoint.local_answer_length(model))
    configs.build(Settings, known, where="the settings of chat")  # before the model is loaded
    unused.refuse(written | options.given_by_set(sets), known, lambda: unused.any_diffusion([model]))
    if console.world_size() > 1:
        raise UserError(f"chat runs in one process, not {console.world_size()}; start it without a launcher")
    loaded = loading.load(model, device, dtype, attention, cuda_graphs)
    session = Session(loaded, settings, system)
    if load is not None:
        session.load(load)
        session.set(sets or [])
        if system is not None:
            session.system = system
    for finding in loaded.findings if not json else []:
        console.note(f"note: {finding.subject}: {finding.message}")
    converse(session, watch, json)

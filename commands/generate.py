"""`dcoder generate`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from dcoder_cli.base import config as configs
from dcoder_cli.base import console, options, presets
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import check_file
from dcoder_cli.base.options import Needs
from dcoder_cli.base.ranges import Range, few

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


NEEDS = (
    Needs(
        ("infill_by",), lambda call: call["infill_lengths"],
        "it chooses among --infill-lengths, which are missing; give such as 8,16,32",
    ),
    Needs(
        ("max_new_tokens",), lambda call: not call["infill_lengths"],
        "--infill-lengths says how many tokens are written; leave one of them out",
    ),
    Needs(("chat",), lambda call: not (call["chat"] and call["infill"]), "an infill is plain text; leave one of them out"),
    Needs(("nproc",), lambda call: not call["watch"], "--watch shows the decoding of one process; leave one of them out"),
    Needs(
        ("delay",), lambda call: call["watch"] or call["replay"],
        "it slows --watch and --replay, and neither is given; leave it out",
    ),
    Needs(
        ("system",), lambda call: call["file"] or (call["chat"] is not False and not call["infill"]),
        "it is of a chat, and the prompt goes as it stands; give --chat, or leave it out",
    ),
)  # fmt: skip


@app.command()
@options.takes_sampling
def generate(
    context: typer.Context,
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; none or - reads stdin.")] = None,
    model: options.Model = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="A .jsonl with prompt, messages, ids or prefix and suffix, or text with a prompt a line; .gz and .zst too.",
        ),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="Wrap the prompt in the chat template (default: if the checkpoint was instruction-tuned here).",
        ),
    ] = None,
    system: options.System = None,
    infill: Annotated[bool, typer.Option("--infill", help="Write the text at <FILL> in each prompt.")] = False,
    infill_lengths: options.InfillLengths = None,
    infill_by: Annotated[
        str | None,
        typer.Option(
            "--infill-by", help="Choose it by first-step (one forward each) or final confidence [first-step]."
        ),
    ] = None,
    preset: options.Preset = None,
    *,
    sampling: dict[str, Any],
    n: options.Samples = 1,
    batch_size: options.BatchSize = 8,
    dry_run: options.DryRun = False,
    nproc: options.NProc = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    attention: options.Attention = "sdpa",
    cuda_graphs: options.CudaGraphs = False,
    trajectories: Annotated[
        Path | None, typer.Option("--trajectories", help="Also write the trajectories to this JSONL file.")
    ] = None,
    watch: options.Watch = False,
    delay: Annotated[
        float | None, typer.Option("--delay", help="With --watch: seconds to wait after each step [0; --replay: 0.05].")
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            metavar="FILE",
            help="Show a saved trajectory being denoised once more: the samples whose ids are given, else the first.",
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="With --infill: print the whole program, not the hole's text alone.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Generate text from prompts with any model and unmasking rule.

    Without the options of the sampler: the checkpoint's answer length (else 256), the surest of lowest entropy first (LLaDA: by confidence),
    temperature 0. --preset takes the section `generate`.

    Examples:

      dcoder generate --model runs/sft/checkpoints/last "Write a function that adds two numbers."

      dcoder generate --model runs/sft/checkpoints/last --watch "Write a function that adds two numbers."

      dcoder generate --model apple/DiffuCoder-7B-Base --raw --infill "def add(a, b):<FILL>print(add(1, 2))"

      dcoder generate --model runs/sft/checkpoints/last --mode fast --threshold 0.9 --cache dual "Write a function."

      dcoder generate --replay quickstart/trajectories-stage-4.jsonl --delay 0.1
    """
    Range(0, 3600, also=" seconds").check("--delay", delay)
    if replay is not None:
        _replay(context, replay, prompts or [], model or "", delay)
        return
    written = options.given(context)
    options.refuse_unused(written, context.params, NEEDS)
    if not model:
        raise UserError("--model is missing; give a checkpoint folder or hub id")
    if trajectories is not None:
        check_file(trajectories, "--trajectories")
    if watch and json:
        raise UserError("--watch draws for people and --json prints for programs; give one of them")
    lengths = _lengths(infill_lengths)
    if whole and json:
        raise UserError("--whole prints a program for people, and --json has its parts; give one of them")
    if watch and lengths is not None:
        raise UserError("--watch shows one decoding and --infill-lengths may try several; give one of them")
    from dcoder_cli.decoding import unused
    from dcoder_cli.decoding.requests import Infill, Settings, with_length
    from dcoder_cli.model import checkpoint
    from dcoder_cli.terminal import remarks
    from dcoder_cli.terminal import watch as watching

    layers = [presets.section(preset, "generate")] if preset else []
    chosen: dict[str, Any] = configs.merge(*layers, sampling)
    where = "the settings of generate"
    known = with_length(chosen, checkpoint.local_answer_length(model))
    configs.build(Settings, known, where=where)
    unused.refuse(written, known, lambda: unused.any_diffusion([model]))
    unused.refuse_repeats(n, known, lambda: unused.any_diffusion([model]))

    from dcoder_cli.decoding import prompts as reading
    from dcoder_cli.decoding import ranks, requests, spread, trajectory
    from dcoder_cli.model.loading import load
    from dcoder_cli.model.outline import outline
    from dcoder_cli.training import launcher

    if not dry_run:
        launcher.spread(nproc, device)
    ranks.join()
    # What is on stdin is there once.
    found = ranks.gathered(reading.collect(prompts or [], file) if console.rank() == 0 else None)[0]
    if "chat" in written and not any(isinstance(prompt, str) for _, prompt in found):
        raise UserError(f"{written['chat']} has no effect: no prompt of {file} is plain text; leave it out")
    reading.prepare(found, infill=infill)  # whether each has its gap, before the model is loaded
    loaded = (
        outline(model, device, dtype, attention, cuda_graphs)
        if dry_run
        else load(model, ranks.device(device), dtype, attention, cuda_graphs)
    )
    if chat is None:
        chat = loaded.config.get("dcoder", {}).get("stage") in ("sft", "grpo") and not infill
        options.refuse_unused(written, {**context.params, "chat": chat}, NEEDS)
    names, asked = [name for name, _ in found], reading.prepare(found, chat, system, infill)
    if whole and not all(isinstance(prompt, Infill) for prompt in asked):
        raise UserError("--whole prints a program around its hole, and a prompt has none; give --infill and <FILL>")
    chosen = {"rule": loaded.default_rule, **with_length(chosen, loaded.answer_length)}
    settings = configs.build(Settings, chosen, where=where)
    ids = reading.sample_names(names, n)
    encoded = [requests.encode_prompt(loaded, prompt, name) for name, prompt in zip(names, asked, strict=True)]
    repeated = [prompt for prompt in encoded for _ in range(n)]  # each is made ids of once, not once a sample
    if dry_run:
        return _plan(loaded, repeated, settings, ids, lengths, batch_size, device, dtype, preset, nproc, json)
    if not json:
        for finding in loaded.findings:
            console.note(f"note: {finding.subject}: {finding.message}")
    viewer = watching.viewer(loaded, settings, ids, delay or 0.0) if watch else None
    with (
        viewer or contextlib.nullcontext(),
        console.bar(
            "generate",
            -(-len(repeated) // console.world_size()),
            quiet=json or viewer is not None or len(repeated) == 1,
        ) as bar,
    ):
        results = spread.decode(
            loaded,
            repeated,
            settings,
            infill_lengths=lengths,
            infill_by=infill_by or "first-step",
            ids=ids,
            batch_size=batch_size,
            on_commit=viewer.on_commit if viewer else None,
            on_done=viewer.on_done if viewer else lambda _: bar.advance(),
        )
    ranks.leave()
    for result in results:
        if json:
            console.emit_json(result.to_json())
            continue
        if len(results) > 1:
            console.emit_text(f"# {result.id}")
        before, after = (result.prefix, result.suffix or "") if whole else ("", "")
        if viewer is not None:
            around = console.visible(before), console.visible(after)
            console.write_terminal(f"{around[0]}{viewer.coloured(result)}{around[1]}\n")
        else:
            console.emit_text(before + result.text + after)
        if len(results) > 1:
            console.emit_text("")
    if trajectories is not None and console.rank() == 0:  # after the answers: a disk that is full takes these alone
        trajectory.write(trajectories, results)
    empty = remarks.empty_note(loaded, results)
    if empty is not None:
        console.note(f"note: {console.visible(empty)}")
    unfinished = sum(not result.settings["finished"] for result in results)
    if not json:
        seconds = sum(result.settings["seconds"] / result.settings["batch"] for result in results)
        tokens = sum(len(result.tokens) for result in results)
        forwards = sum(result.settings["forwards"] / result.settings["batch"] for result in results)
        rate = sum(len(result.tokens) / result.settings["forwards"] for result in results) / len(results)
        ends = f", {unfinished} without an end" if unfinished else ""
        console.note(
            f"{tokens} tokens in {forwards:.0f} forwards, {rate:.1f} tokens a forward, "
            f"{tokens / max(seconds, 1e-9):,.0f} tok/s{ends}"
        )


def _plan(
    model: Any, prompts: list[Any], settings: Any, ids: list[str], lengths: list[int] | None, batch_size: int,
    device: str | None, dtype: str | None, preset: str | None, nproc: int | None, json: bool,
) -> None:  # fmt: skip
    from dataclasses import replace

    from dcoder_cli.base import plan as plans
    from dcoder_cli.decoding import requests
    from dcoder_cli.training import launcher
    from dcoder_cli.training.memory import foresee

    longest = replace(settings, max_new_tokens=max(lengths)) if lengths else settings
    requests.encode(model, prompts, longest, ids, None)
    work = foresee.Decodings(model, longest, len(prompts), max((prompt.length for prompt in prompts), default=0))
    plan = plans.RunPlan("generate", configs.to_dict(settings))
    plan.add("model", model.name, f"{model.name}: {model.layout.name}")
    hardware = presets.hardware(preset) if preset and "hardware" in presets.load(preset) else None
    foresee.add_decoding(plan, [work], batch_size, device, dtype, launcher.planned(nproc, {}).processes, hardware)
    plans.show(plan, json)


def _replay(context: typer.Context, file: Path, names: list[str], model: str, delay: float | None) -> None:
    """Show a saved trajectory. Raises UserError for options of a decoding, which here is done already."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        given = source is not None and source.name == "COMMANDLINE"
        if given and name not in ("replay", "delay", "prompts", "model"):
            raise UserError(f"{parameter.opts[0]} is of decoding, and --replay {file} is decoded already; leave it out")
    from dcoder_cli.terminal import replay

    replay.replay(file, names, model or None, replay.DELAY if delay is None else delay)


def _lengths(text: str | None) -> list[int] | None:
    """Numbers of --infill-lengths."""
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--infill-lengths {text!r} must be numbers with commas between, such as 8,16,32") from None
    few("--infill-lengths", found)
    return found

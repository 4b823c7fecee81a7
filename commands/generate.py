"""`dcoder generate`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dcoder_cli.base import config as configs
from dcoder_cli.base import console, presets
from dcoder_cli.base.errors import UserError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def generate(
    context: typer.Context,
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; none or - reads stdin.")] = None,
    model: Annotated[str, typer.Option("--model", help="Checkpoint: folder or hub id.")] = "",
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
    system: Annotated[str | None, typer.Option("--system", help="With --chat: the system message.")] = None,
    infill: Annotated[bool, typer.Option("--infill", help="Write the text at <FILL> in each prompt.")] = False,
    infill_lengths: Annotated[
        str | None, typer.Option("--infill-lengths", help="With --infill: choose the hole's tokens, such as 8,16,32.")
    ] = None,
    infill_by: Annotated[
        str | None,
        typer.Option(
            "--infill-by", help="Choose it by first-step (one forward each) or final confidence [first-step]."
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Take the generate section of a preset.")] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", help="Masks after the prompt [the checkpoint's answer length, else 256]."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps [one a token].")] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            "--rule",
            help="entropy, confidence, margin, random, left-to-right, or a public sampler's name [entropy; LLaDA: confidence].",
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 is argmax [0].")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Nucleus [off].")] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Most likely tokens only [off; compat dream: config.json's, else 50].")
    ] = None,
    tie_break: Annotated[
        Literal["model", "left", "right", "random", "topk"] | None,
        typer.Option(
            "--tie-break",
            help="Which of equal scores comes first: the model's own order, left, right, random, or torch.topk's [model; compat: topk].",
        ),
    ] = None,
    alg_temperature: Annotated[
        float | None, typer.Option("--alg-temperature", help="Randomness in which tokens are committed [0].")
    ] = None,
    block_length: Annotated[
        int | None, typer.Option("--block-length", help="Semi-autoregressive blocks [one block].")
    ] = None,
    cfg_scale: Annotated[float | None, typer.Option("--cfg-scale", help="Classifier-free guidance [off].")] = None,
    stop_penalty: Annotated[
        float | None, typer.Option("--stop-penalty", help="Subtract from the logits of end and pad tokens [0].")
    ] = None,
    min_new_tokens: Annotated[
        int | None, typer.Option("--min-new-tokens", help="No end or pad among the first so many [0].")
    ] = None,
    compat: Annotated[
        str | None, typer.Option("--compat", help="dream or llada: that public sampler, quirks included.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="exact, or fast: approximate, with the options to --early-stop [exact]."),
    ] = None,
    cache: Annotated[
        str | None, typer.Option("--cache", help="Fast: keys kept around a block: none, prefix, dual [dual].")
    ] = None,
    commit: Annotated[
        str | None,
        typer.Option(
            "--commit", help="Fast: threshold, factor, entropy-bound or schedule [by its parameter; threshold]."
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Fast: commit all above this confidence [0.9].")
    ] = None,
    factor: Annotated[
        float | None, typer.Option("--factor", help="Fast: commit n while (n + 1)(1 - confidence n) is below it [1].")
    ] = None,
    entropy_bound: Annotated[
        float | None, typer.Option("--entropy-bound", help="Fast: nats a step's tokens may hold together [0.1].")
    ] = None,
    cache_refresh: Annotated[
        int | None, typer.Option("--cache-refresh", help="Fast: renew kept keys every so many steps [each block].")
    ] = None,
    early_stop: Annotated[
        bool | None,
        typer.Option("--early-stop/--no-early-stop", help="Fast: end a row with its first end token [yes]."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the draws [0].")] = None,
    n: Annotated[int, typer.Option("--n", help="Samples a prompt.")] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows decoded together.")] = 8,
    device: Annotated[str | None, typer.Option("--device", help="cuda, cpu, mps [what is there].")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16 [float32 on a CPU].")] = None,
    attention: Annotated[str, typer.Option("--attention", help="sdpa, flash_attention_2, flex or eager.")] = "sdpa",
    trajectories: Annotated[
        Path | None, typer.Option("--trajectories", help="Also write the trajectories to this JSONL file.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show the text being denoised, live (of a batch, its first row).")
    ] = False,
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
    json: Annotated[bool, typer.Option("--json", help="Print trajectory records, one JSON line a sample.")] = False,
) -> None:
    """Generate text from prompts with any model and unmasking rule.

    Examples:

      dcoder generate --model runs/sft/checkpoints/last "Write a function that adds two numbers."

      dcoder generate --model runs/sft/checkpoints/last --watch "Write a function that adds two numbers."

      dcoder generate --model apple/DiffuCoder-7B-Base --raw --infill "def add(a, b):<FILL>print(add(1, 2))"

      dcoder generate --model runs/sft/checkpoints/last --mode fast --threshold 0.9 --cache dual "Write a function."

      dcoder generate --replay quickstart/trajectories-stage-4.jsonl --delay 0.1
    """
    if delay is not None and not 0 <= delay < float("inf"):
        raise UserError(f"--delay {delay} must be 0 seconds or more")
    if replay is not None:
        _replay(context, replay, prompts or [], model, delay)
        return
    if not model:
        raise UserError("--model is missing; give a checkpoint folder or hub id")
    if n < 1:
        raise UserError(f"--n {n} must be at least 1")
    if compat not in (None, "dream", "llada"):
        raise UserError(f"--compat {compat!r} is unknown; use dream or llada")
    if watch and json:
        raise UserError("--watch draws for people and --json prints for programs; give one of them")
    if system is not None and (chat is False or infill):
        raise UserError(
            f"--system is a chat's, and {'--infill' if infill else '--raw'} makes none of a text; leave one of them out"
        )
    lengths = _lengths(infill_lengths)
    if infill_by is not None and lengths is None:
        raise UserError(
            f"--infill-by {infill_by} chooses among --infill-lengths, which are missing; give such as 8,16,32"
        )
    if delay is not None and not watch:
        raise UserError(f"--delay {delay:g} slows --watch and --replay, and neither is given; leave it out")
    if whole and json:
        raise UserError("--whole prints a program for people, and --json has its parts; give one of them")
    if watch and lengths is not None:
        raise UserError("--watch shows one decoding and --infill-lengths may try several; give one of them")
    from dcoder_cli.decoding.requests import Infill, Settings, with_length
    from dcoder_cli.model import checkpoint
    from dcoder_cli.terminal import remarks
    from dcoder_cli.terminal import watch as watching

    given = {
        "max_new_tokens": max_new_tokens, "steps": steps, "rule": rule, "temperature": temperature, "top_p": top_p,
        "top_k": top_k, "alg_temperature": alg_temperature, "block_length": block_length, "cfg_scale": cfg_scale,
        "stop_penalty": stop_penalty, "min_new_tokens": min_new_tokens, "tie_break": tie_break, "compat": compat, "seed": seed,
        "mode": mode, "cache": cache, "commit": commit, "threshold": threshold, "factor": factor,
        "entropy_bound": entropy_bound, "cache_refresh": cache_refresh, "early_stop": early_stop,
    }  # fmt: skip
    layers = [presets.section(preset, "generate")] if preset else []
    chosen: dict[str, Any] = configs.merge(*layers, {key: value for key, value in given.items() if value is not None})
    where = "the settings of generate"
    configs.build(Settings, with_length(chosen, checkpoint.local_answer_length(model)), where=where)

    from dcoder_cli.decoding import prompts as reading
    from dcoder_cli.decoding import sampler, trajectory
    from dcoder_cli.model.backbone import load

    found = reading.collect(prompts or [], file)
    loaded = load(model, device, dtype, attention)
    if chat is None:
        chat = loaded.config.get("dcoder", {}).get("stage") in ("sft", "grpo") and not infill
    names, asked = [name for name, _ in found], reading.prepare(found, chat, system, infill)
    if whole and not all(isinstance(prompt, Infill) for prompt in asked):
        raise UserError("--whole prints a program around its hole, and a prompt has none; give --infill and <FILL>")
    chosen = {"rule": loaded.default_rule, **with_length(chosen, loaded.answer_length)}
    settings = configs.build(Settings, chosen, where=where)
    arguments = configs.to_dict(settings)
    ids = [f"{name}/{index}" if n > 1 else name for name in names for index in range(n)]
    repeated = [prompt for prompt in asked for _ in range(n)]
    if not json:
        for finding in loaded.findings:
            console.note(f"note: {finding.subject}: {finding.message}")
    viewer = watching.viewer(loaded, settings, ids, delay or 0.0) if watch else None
    with (
        viewer or contextlib.nullcontext(),
        console.bar("generate", len(repeated), quiet=json or viewer is not None or len(repeated) == 1) as bar,
    ):
        results = sampler.generate(
            loaded,
            repeated,
            **arguments,
            infill_lengths=lengths,
            infill_by=infill_by or "first-step",
            ids=ids,
            batch_size=batch_size,
            on_commit=viewer.on_commit if viewer else None,
            on_done=viewer.on_done if viewer else lambda _: bar.advance(),
        )
    if trajectories is not None:
        trajectory.write(trajectories, results)
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
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--infill-lengths {text!r} must be numbers with commas between, such as 8,16,32") from None

"""`dcoder arness`: how close to left-to-right a model decodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from dcoder_cli.base import console, options
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import check_folder
from dcoder_cli.base.machine import BENCHMARKS_VARIABLE
from dcoder_cli.base.options import Needs
from dcoder_cli.benchmarks import suites
from dcoder_cli.benchmarks.benchmark import ByAnswer

if TYPE_CHECKING:
    from dcoder_cli.analysis.measure import Findings
    from dcoder_cli.analysis.sensitivity import Sensitivity
    from dcoder_cli.analysis.series import Series

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


# What is decoded with where nothing is said, as the paper: A.2 (low-confidence remasking), 4.1 (length), B.2.
PAPER: dict[str, Any] = {"max_new_tokens": 512, "rule": "confidence", "temperature": 0.2, "top_p": 0.95}
_DECODED = "it is of decoding, and --trajectories are decoded already; give --model, or leave it out"
TEXTS = suites.names(lambda one: isinstance(one.judged, ByAnswer))
NEEDS = (
    Needs(
        (*options.SAMPLING, "temperatures", "n", "batch_size", "device", "dtype", "sensitivity", "dry_run", "nproc"),
        lambda call: call["model"], _DECODED,
    ),
    Needs(("limit", "data", "unsafe_exec"), lambda call: call["task"], "it is of --task; give that, or leave it out"),
    Needs(("unsafe_exec",), lambda call: {*call["task"]} - {*TEXTS}, f"{', '.join(TEXTS)} runs no code; leave it out"),
    Needs(("end_id",), lambda call: call["until"] == "end", "it is of --until end; give that, or leave it out"),
    Needs(
        ("tokenizer",), lambda call: call["trajectories"] and call["out"],
        "it shows the text of --trajectories in the pictures of --out; give both, or leave it out",
    ),
    Needs(
        ("tie_break",), lambda call: not call["sensitivity"],
        "--sensitivity runs left, random and model; leave one of them out",
    ),
)  # fmt: skip


@app.command()
@options.takes_sampling
def arness(
    context: typer.Context,
    trajectories: list[Path] = typer.Option(
        [], "--trajectories", metavar="FILE", help="A trajectory file of any system; repeatable."
    ),
    model: options.Models = None,
    label: list[str] = typer.Option(
        [], "--label", metavar="TEXT", help="Name of each --trajectories, then of each --model."
    ),
    prompts: list[Path] = typer.Option(
        [], "--prompts", metavar="FILE", help="Prompts as of `dcoder generate --prompts`; repeatable."
    ),
    task: list[str] = typer.Option(
        [], "--task", help="A benchmark of `dcoder eval` to run --model on, with pass@k beside AR-ness; repeatable."
    ),
    data: options.Benchmark = None,
    limit: options.Limit = None,
    unsafe_exec: options.UnsafeExec = False,
    *,
    sampling: dict[str, Any],
    temperatures: options.Temperatures = None,
    sensitivity: bool = typer.Option(
        False,
        "--sensitivity",
        help="Decode under ties left, random and model, with and without top-p: what is the model's?",
    ),
    n: options.Samples = 1,
    batch_size: options.BatchSize = 8,
    dry_run: options.DryRun = False,
    nproc: options.NProc = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    local_k: int = typer.Option(
        9, help="Local AR-ness@1 to @k.", callback=options.within(1, 10_000)
    ),  # DiffuCoder fig. 3
    global_k: int = typer.Option(
        4, help="Global AR-ness@1 to @k.", callback=options.within(1, 10_000)
    ),  # DiffuCoder fig. 3
    convention: Literal["defined", "paper"] = typer.Option(
        "defined",
        help="Divide local@k by the steps with k predecessors (left-to-right is 1.0), or by all, as the paper.",
    ),
    ties: Literal["random", "left-to-right"] = typer.Option(
        "random", help="Tokens of one step: mean over their orders, or read left to right (upper bound)."
    ),
    until: Literal["all", "end"] = typer.Option("all", help="Measure all new tokens, or those up to the end of turn."),
    end_id: list[int] = typer.Option(
        [], "--end-id", help="An id that ends an answer, for --until end; repeatable.", callback=options.within(0)
    ),
    tokenizer: options.Tokenizer = None,
    out: options.MaybeOut = None,
    json: options.Json = False,
) -> None:
    """Measure how close to left-to-right a model decodes (AR-ness), with pictures.

    Without the options of the sampler, as the paper: 512 new tokens (or the answer length that all models
    were taught), by confidence, temperature 0.2, top-p 0.95.

    Examples:

      dcoder arness --trajectories run-a.jsonl --trajectories run-b.jsonl --out order/

      dcoder arness --model runs/sft --prompts prompts.jsonl --temperatures 0.2,0.7,1.0,1.2 --out order/

      dcoder arness --model apple/DiffuCoder-7B-Instruct --task humaneval --task gsm8k --temperatures 0.2,1.2 --n 10

      dcoder arness --model runs/sft --task micro --max-new-tokens 40 --sensitivity --out order/
    """
    model = model or []
    written = options.given(context)
    options.refuse_unused(written, {**context.params, "model": model}, NEEDS)
    if out is not None:
        check_folder(out)
    sources = [*trajectories, *model]
    if not sources and not (prompts or task):
        raise UserError("nothing to measure; give --trajectories FILE or --model MODEL with --prompts FILE or --task")
    if label and len(label) != len(sources):
        raise UserError(
            f"{len(label)} --label for {len(sources)} --trajectories and --model; give one for each, or none"
        )
    if bool(model) != bool(prompts or task):
        given = "--prompts" if prompts else "--task"
        raise UserError("--model needs --prompts FILE or --task" if model else f"{given} needs --model MODEL to run on")
    if data is not None and len(task) > 1:
        raise UserError(
            f"--data is the file of one --task, and {len(task)} are given; set {BENCHMARKS_VARIABLE} instead"
        )
    if temperatures is not None and "temperature" in sampling:
        raise UserError(f"{written['temperature']} and {written['temperatures']}: give one of them")
    settings = {**PAPER, **sampling}
    if model and "max_new_tokens" not in sampling:
        settings["max_new_tokens"] = _length(model, sampling.get("block_length"))
    temperature = settings.pop("temperature")
    temperature_list = [temperature] if temperatures is None else _temperatures(temperatures)
    if sensitivity:
        _check_sensitivity(settings["rule"], settings["top_p"])
    if model:
        from dcoder_cli.decoding import unused

        warmest = {**settings, "temperature": max(temperature_list)}
        if sensitivity:
            warmest["tie_break"] = "random"  # one of those that it goes through; its draws need the seed
        unused.refuse(written, warmest, lambda: unused.any_diffusion(model))
        coldest = {**settings, "temperature": min(temperature_list)}
        unused.refuse_repeats(n, coldest, lambda: all(unused.any_diffusion([one]) for one in model))
    from dcoder_cli.analysis import measure as measuring
    from dcoder_cli.analysis import series as decoded
    from dcoder_cli.base.runs import distinct, model_labels

    measure = decoded.Measure(local_k, global_k, convention, ties, until, tuple(end_id))
    names = distinct(label or [*(path.stem for path in trajectories), *model_labels(model)])
    reader = _tokenizer(tokenizer)
    series = [
        decoded.of_file(path, measure, name, reader)
        for path, name in zip(trajectories, names[: len(trajectories)], strict=True)
    ]
    # What stands in the record, None where it is off.
    settings = {
        "steps": None, "block_length": None, "tie_break": None, "seed": 0, **settings,
        "top_p": settings["top_p"] if settings["top_p"] < 1 else None, "batch_size": batch_size,
    }  # fmt: skip
    findings = measuring.Findings(series)
    if model:
        from dcoder_cli.benchmarks import decoding_order
        from dcoder_cli.decoding.requests import Settings
        from dcoder_cli.training import launcher

        plan = decoding_order.OrderPlan(
            Settings(**{name: value for name, value in settings.items() if name != "batch_size"}),
            tuple(temperature_list),
            sensitivity,
            n,
            batch_size,
            device,
            dtype,
            unsafe_exec,
        )
        asked = [*decoding_order.of_files(prompts), *decoding_order.of_tasks(task, data, limit)]
        places = list(zip(model, names[len(trajectories) :], strict=True))
        if dry_run:
            from dcoder_cli.base import plan as plans

            return plans.show(decoding_order.plan_of(places, asked, plan, launcher.planned(nproc, {}).processes), json)
        launcher.spread(nproc, device)
        with console.bar("decoding", plan.total(len(places), asked) / console.world_size(), quiet=json) as bar:
            decoding_order.run(findings, measure, places, asked, plan, bar.advance)
    record = {"trajectories": [*map(str, trajectories)], "model": model, "prompts": [*map(str, prompts)]}
    if task:
        record |= {"tasks": task, "limit": limit}
    if model:
        departures = {
            name: {"paper": value, "here": here}
            for name, value in PAPER.items()
            if (here := settings.get(name, temperature_list)) not in (value, [value])
        }
        record |= {"temperatures": temperature_list, "n": n, **settings, "sensitivity": sensitivity}
        record["departures"] = departures
    record |= {"convention": convention, "ties": ties, "until": until}
    files = measuring.write(findings, out, record) if out is not None and console.rank() == 0 else []
    if json:
        told = {"departures": record["departures"]} if model else {}
        console.emit_json({**findings.to_json(), **told, "settings": record, "files": [str(file) for file in files]})
    else:
        _show(findings)
        if files:
            console.note(f"report: {files[0]}")


def _length(models: list[str], block_length: int | None) -> int:
    """New tokens where none are given: the models' answer length where they agree, else 512 (DiffuCoder 4.1).

    One for all models, because AR-ness at different lengths does not compare.
    """
    from dcoder_cli.decoding.requests import with_length
    from dcoder_cli.model.checkpoint import local_answer_length

    lengths = {local_answer_length(name) for name in models}
    agreed = lengths.pop() if len(lengths) == 1 else None
    return int(with_length({"block_length": block_length}, agreed).get("max_new_tokens", PAPER["max_new_tokens"]))


def _check_sensitivity(rule: str, top_p: float) -> None:
    """Raises UserError where --sensitivity has nothing to compare."""
    if top_p >= 1:
        raise UserError(f"--top-p {top_p:g} with --sensitivity, which compares a top-p below 1 with none; leave it out")
    if rule in ("random", "origin", "left-to-right"):
        raise UserError(
            f"--rule {rule} scores no two places alike, so --sensitivity has nothing to compare; use another rule"
        )


def _temperatures(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--temperatures {text!r} must be numbers separated by commas, such as 0.2,1.0") from None
    options.few("--temperatures", values)
    if any(not 0 <= value < float("inf") for value in values):
        raise UserError(f"--temperatures {text!r} must be 0 (argmax) or more")
    return values


def _tokenizer(name: str | None) -> Any | None:
    if name is None:
        return None
    from dcoder_cli.model.tokenizer import load_tokenizer

    return load_tokenizer(name)


def _show(findings: Findings) -> None:
    if findings.sensitivity:
        _show_sensitivity(findings)
    else:
        _show_series(findings.series)
    for label, profile in findings.profiles.items():
        fit = profile["fit"]
        line = (
            "does not fall off with the distance from the prompt"
            if fit["decay_length"] is None
            else f"{fit['floor'] + fit['rise']:.3f} next to the prompt, {fit['floor']:.3f} far away, "
            f"decay length {fit['decay_length']:.3g} tokens"
        )
        console.stdout().print(f"{label}: first-step confidence {line}", markup=False)


def _show_series(series: list[Series]) -> None:
    from rich.table import Table
    from rich.text import Text

    from dcoder_cli.analysis.measure import interval, share_text, tie_warnings, tied_text

    first = series[0]
    columns = [(kind, k) for kind in ("local", "global") for k in sorted({1, first.numbers[kind]["k"][-1]})]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("series", overflow="fold", min_width=8)
    table.add_column("n", justify="right")
    table.add_column("tied", justify="right")
    for kind, k in columns:
        table.add_column(f"{kind}@{k}", justify="right", no_wrap=True)
    for one in series:
        cells = [interval(one.numbers[kind], k - 1) for kind, k in columns]
        table.add_row(Text(one.label), str(one.numbers["samples"]), tied_text(one.numbers), *cells)
    console.stdout().print(table)
    for one in series:
        if one.passes:
            scores = ", ".join(f"{name} {share_text(share)}" for name, share in one.ends().items())
            console.stdout().print(f"{one.label}: {scores}", markup=False)
    for line in tie_warnings(series):
        console.warn(line)


def _show_sensitivity(findings: Findings) -> None:
    for label, found in findings.sensitivity.items():
        console.stdout().print(f"{label}: what the order owes to the model, and what to ties", markup=False)
        console.stdout().print(_sensitivity_table(found))
        for sentence in found.sentences():
            console.stdout().print(sentence, markup=False)


def _sensitivity_table(found: Sensitivity) -> Any:
    from rich.table import Table

    columns, rows = found.table()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < 3 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table

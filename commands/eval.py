"""`dcoder eval`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcoder_cli.base import config, console, options, presets
from dcoder_cli.base.errors import StoppedByUser, UserError
from dcoder_cli.base.files import check_folder
from dcoder_cli.base.options import Needs
from dcoder_cli.benchmarks import suites
from dcoder_cli.benchmarks.benchmark import ByAnswer, ByUnittests

if TYPE_CHECKING:
    from dcoder_cli.benchmarks.evaluation import Result
    from dcoder_cli.benchmarks.sweep import Sweep

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Score models, or samples made elsewhere, on code and reasoning benchmarks.

    Examples:

      dcoder eval micro --model quickstart/runs/sft/checkpoints/last --n 10

      dcoder eval evalplus --model apple/DiffuCoder-7B-Instruct --speed 1,2,4

      dcoder eval judge samples.jsonl --task humaneval+ --out judged/
    """


_BESIDE = suites.names(lambda one: isinstance(one.judged, ByUnittests))
_TEXTS = suites.names(lambda one: isinstance(one.judged, ByAnswer))
_DATED = suites.names(lambda one: one.dated)
_GAPS = suites.names(lambda one: one.gaps)
_RUNS_CODE = (
    Needs(("python",), lambda call: call["task"] in _BESIDE, f"it is of {', '.join(_BESIDE)}; leave it out"),
    Needs(
        ("unsafe_exec", "workers"), lambda call: call["task"] not in _TEXTS, f"{', '.join(_TEXTS)} runs no code; leave it out",
    ),
)  # fmt: skip
NEEDS = (
    *_RUNS_CODE,
    Needs(("since", "until"), lambda call: call["task"] in _DATED, f"it is of {', '.join(_DATED)}; leave it out"),
    Needs(("infill_lengths",), lambda call: call["task"] in _GAPS, f"it is of {', '.join(_GAPS)}; leave it out"),
    Needs(
        ("max_new_tokens",), lambda call: call["task"] not in _GAPS, "--infill-lengths says how long a gap may be; use that, or leave it out",
    ),
)  # fmt: skip


@options.takes_sampling
def evaluate(
    context: typer.Context,
    model: options.Models = None,
    out: options.MaybeOut = None,
    n: options.Samples = 1,
    limit: options.Limit = None,
    subset: options.Subset = None,
    since: options.Since = None,
    until: options.Until = None,
    data: options.Benchmark = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="diffucoder, dream, qwen or llada [by the checkpoint].")
    ] = None,
    instruct: Annotated[
        bool | None, typer.Option("--instruct/--base", help="Ask by chat or plain text [by the checkpoint].")
    ] = None,
    preset: options.Preset = None,
    *,
    sampling: dict[str, Any],
    temperatures: options.Temperatures = None,
    speed: Annotated[
        str, typer.Option("--speed", help="Divide the steps by these and show the drop, such as 1,2,4.")
    ] = "1",
    infill_lengths: options.InfillLengths = None,
    assignments: options.Set = None,
    batch_size: options.MaybeBatchSize = None,
    dry_run: options.DryRun = False,
    nproc: options.NProc = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    attention: options.Attention = "sdpa",
    cuda_graphs: options.CudaGraphs = False,
    workers: options.Judges = None,
    python: options.Python = None,
    unsafe_exec: options.UnsafeExec = False,
    json: options.Json = False,
) -> None:
    task = str(context.info_name)
    written = options.given(context) | options.given_by_set(assignments)
    options.refuse_unused(written, {**context.params, "task": task}, NEEDS)
    if not model:
        raise UserError("--model is missing; give a checkpoint folder or hub id")
    given = options.with_set(sampling, assignments)
    lengths = _numbers("--infill-lengths", infill_lengths, int)
    temperature_list, speeds = _numbers("--temperatures", temperatures, float), _numbers("--speed", speed, int)
    if "temperature" in given and temperature_list:
        raise UserError(f"{written['temperature']} and {written['temperatures']}: give one of them")
    layer, rows = presets.evaluation(preset)
    settings = {**layer, **given}
    from dcoder_cli.benchmarks import sweep
    from dcoder_cli.decoding import unused
    from dcoder_cli.decoding.requests import Settings
    from dcoder_cli.training import launcher

    known = config.build(Settings, {key: settings.pop(key) for key in ("temperature", "seed") if key in settings})
    if not temperature_list and ("temperature" in given or "temperature" in layer):
        temperature_list = (known.temperature,)
    for one in model:  # before any is loaded
        unused.refuse_for_kind(written, one)
    chosen = sweep.Options(
        subset, data, limit, protocol, instruct, settings, temperature_list, speeds, lengths or sweep.INFILL_LENGTHS, n,
        known.seed, batch_size or rows, device, dtype, attention, cuda_graphs, workers, python, unsafe_exec, written, since, until,
    )  # fmt: skip
    check_folder(place := out or sweep.default_folder(task, model))
    if dry_run:
        from dcoder_cli.base import plan as plans

        processes = launcher.planned(nproc, {}).processes
        return plans.show(sweep.plan(model, task, place, chosen, processes, console.note), json)
    launcher.spread(nproc, device)

    def progress(label: str, total: int, work: Callable[[Callable[[int], None]], Result]) -> Result:
        with console.bar(label, total, quiet=json) as bar:
            return work(bar.advance)

    try:
        done = sweep.run(model, task, place, chosen, console.note, progress)
    except KeyboardInterrupt:
        raise StoppedByUser(f"stopped; the same command goes on with what is in {str(place)!r}") from None
    if json:
        alone = done.runs[0].result.record if len(done.runs) == 1 else {}
        if len({_label(done, run) for run in done.runs}) == 1 < len(done.runs):  # the parts of one task
            alone = {
                "scores": {name: score for run in done.runs for name, score in run.result.record["scores"].items()}
            }
        runs = [{"model": run.model, "folder": str(run.folder), **run.result.record} for run in done.runs]
        console.emit_json({**alone, **done.summary, **({"runs": runs} if len(runs) > 1 else {}), "out": str(place)})
    else:
        _show(done, n)
        console.note(f"results: {place}")


for _benchmark in suites.table().values():
    app.command(_benchmark.name, help=_benchmark.summary)(evaluate)


@app.command("judge")
def judge(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON lines with task_id and solution (or completion, or resps): a text, or a list of texts."
        ),
    ],
    task: Annotated[str, typer.Option("--task", help="The benchmark the samples are of.")],
    out: options.Out,
    extract: Annotated[
        bool, typer.Option("--extract", help="Take the program out of a chat's answer, as evaluations here do.")
    ] = False,
    column: Annotated[
        str | None, typer.Option("--column", help="Where the answers stand [solution, completion or resps].")
    ] = None,
    subset: options.Subset = None,
    data: options.Benchmark = None,
    workers: options.Judges = None,
    python: options.Python = None,
    unsafe_exec: options.UnsafeExec = False,
    json: options.Json = False,
) -> None:
    """Judge samples made by any system.

    Examples:

      dcoder eval judge samples.jsonl --task humaneval+ --out judged/

      dcoder eval judge answers.jsonl --column answer --extract --task mbpp --out judged/
    """
    options.refuse_unused(options.given(context), context.params, _RUNS_CODE)
    from dcoder_cli.benchmarks.external import judge_file

    try:
        with console.bar(f"judging {task}", None, quiet=json) as bar:
            result = judge_file(
                file, task, out, subset, data, workers, python, unsafe_exec,
                lambda more, total: bar.advance(more, total=total), column, extract,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise StoppedByUser(f"stopped; the same command goes on with what is judged in {str(out)!r}") from None
    counts = result.record["counts"]
    syntax = [str(row.get("why")) for row in result.judged if row["status"] == "syntax"]
    halves = sum(why.startswith("UnicodeEncodeError") for why in syntax)
    if halves:
        console.note(f"{halves} of {counts['samples']} samples hold half of a surrogate pair, which no Python does")
    others = counts["syntax_error"] - halves
    if not extract and 2 * others > counts["samples"]:
        console.note(
            f"{others} of {counts['samples']} samples are no Python; if they are a chat's answers, judge "
            "them again with --extract, into another --out"
        )
    if json:
        return console.emit_json({**result.record, "out": str(out)})
    console.stdout().print(_table([(str(file.name), result.record["scores"])], []))
    _counts(result.record)
    console.note(f"results: {out}")


def _numbers(flag: str, text: str | None, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    if text is None:
        return ()
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    options.few(flag, values)
    least = 0 if kind is float else 1
    if not values or len(set(values)) != len(values) or any(not least <= value < 1e9 for value in values):
        raise UserError(f"{flag} {text!r} must be different numbers, at least {least}, with commas between")
    return values


def _show(done: Sweep, n: int) -> None:
    names = [_label(done, run) for run in done.runs]
    rows: dict[str, dict[str, Any]] = {}
    for name, run in zip(names, done.runs, strict=True):  # the parts of a task stand in one row
        rows[name] = {**rows.get(name, {}), **run.result.record["scores"]}
    measured = list(rows.items())
    mean = suites.find(done.summary["task"]).mean
    measured += [("mean of the parts", {mean: {"pass@1": one[mean]}}) for one in done.summary["means"]]
    console.stdout().print(_table(measured, done.summary["published"]))
    for name, run in zip(names, done.runs, strict=True):
        parts = len({one.task for one in done.runs}) > 1
        _counts(run.result.record, f"{name} {run.task}" if parts else name if len(names) > 1 else "")
    for drop in done.summary["speed"]:
        console.stdout().print(
            f"{drop['metric']} at {drop['speed']}x the speed: {_change(drop)} against {drop['against']}x"
            f"{_times(drop['times_tokens_per_second'])}",
            markup=False,
        )
    for one in done.summary["comparisons"]:
        console.stdout().print(
            f"{one['metric']}: {one['model']} {_change(one)} against {one['against']} on {one['tasks']} tasks",
            markup=False,
        )


def _label(done: Sweep, run: Any) -> str:
    among = done.runs
    pieces = [run.model, run.result.record["protocol"]]
    pieces += [f"T={run.temperature:g}"] if len({one.temperature for one in among}) > 1 else []
    pieces += [f"{run.speed}x"] if len({one.speed for one in among}) > 1 else []
    return " ".join(pieces)


def _table(measured: list[tuple[str, Any]], published: list[Any]) -> Any:
    """Scores in percent: what was measured with its 95% interval, then the paper's pass@1."""
    from rich.table import Table
    from rich.text import Text

    columns: list[tuple[str, str]] = []
    for _, scores in measured:
        for metric, by_k in scores.items():
            last = list(by_k)[-1]
            columns += [(metric, k) for k in dict.fromkeys(["pass@1", last]) if (metric, k) not in columns]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("pass@k, %", overflow="fold")
    for metric, k in columns:
        table.add_column(f"{metric} {k}", justify="right", no_wrap=True)
    for name, scores in measured:
        found = [scores.get(metric, {}).get(k) for metric, k in columns]
        table.add_row(
            Text(name),
            *["" if one is None else f"{one['score']:.1f} [{one['low']:.1f}, {one['high']:.1f}]" for one in found],
        )
    for row in published:
        cells = [row["scores"].get(metric) if k == "pass@1" else None for metric, k in columns]
        table.add_row(
            Text(f"{row['system']} (paper)"), *["" if cell is None else f"{cell:.1f}" for cell in cells], style="dim"
        )
    return table


def _counts(record: dict[str, Any], name: str = "") -> None:
    counts, rates = record["counts"], record["rates"]
    tasks = f"{record['tasks']} tasks"
    if record["tasks"] != record["tasks_of_benchmark"]:
        tasks = f"{record['tasks']} of {record['tasks_of_benchmark']} tasks"
    said = [f"{value} {key.replace('_', ' ')}" for key, value in counts.items() if key != "samples"]
    line = f"{tasks}, {counts['samples']} samples: {', '.join(said)}"
    if rates["tokens_per_second"]:
        line += f"; {rates['tokens_per_second']:,.0f} tok/s, {rates['forwards']:,} forwards"
    departs = ", ".join(
        f"{name} {_told(one['here'])} (there {_told(one['protocol'])})"
        for name, one in record.get("departures", {}).items()
    )
    tier = f"; sandbox tier {record['sandbox_tier']}" if record["sandbox_tier"] else ""
    console.stdout().print(f"{name + ': ' if name else ''}{line}{tier}", markup=False)
    if departs:
        console.stdout().print(f"departs from the protocol {record['protocol']}: {departs}", markup=False)


def _told(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _change(one: dict[str, Any]) -> str:
    return f"{one['difference']:+.1f} points [{one['low']:+.1f}, {one['high']:+.1f}]"


def _times(value: float | None) -> str:
    return f", {value:.2f} times the tokens a second" if value else ""

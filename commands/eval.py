"""`dcoder eval`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcoder_cli.base import config, console
from dcoder_cli.base.errors import Stopped, UserError

if TYPE_CHECKING:
    from dcoder_cli.benchmarks.evaluation import Result
    from dcoder_cli.benchmarks.sweep import Campaign

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True)

_TASKS = {
    "humaneval": "HumanEval: 164 functions to complete.",
    "humaneval+": "HumanEval+ (EvalPlus): the same with 80 times the tests.",
    "mbpp": "MBPP: functions from a description; subsets test (500), all (974), sanitized (427).",
    "mbpp+": "MBPP+ (EvalPlus): 378 functions with 35 times the tests.",
    "evalplus": "HumanEval+ and MBPP+, and the mean of their scores.",
    "bigcodebench": "BigCodeBench; subsets complete-full, complete-hard, instruct-full, instruct-hard.",
    "gsm8k": "GSM8K: questions with numbers, 8-shot, strict and flexible.",
    "humaneval-infilling": "HumanEval-Infilling; subsets single, multi, span.",
    "micro": "Our own micro tasks, inside the package: 210 with functions held out, then micro-kinds.",
    "micro-kinds": "150 micro tasks whose combinations of operations and wordings occur in no training task.",
}


@app.callback()
def _root() -> None:
    """Score models, or samples made elsewhere, on code and reasoning benchmarks.

    Examples:

      dcoder eval micro --model quickstart/runs/sft/checkpoints/last --n 10

      dcoder eval evalplus --model apple/DiffuCoder-7B-Instruct --speed 1,2,4

      dcoder eval judge samples.jsonl --task humaneval+ --out judged/
    """


def evaluate(
    context: typer.Context,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Checkpoint: folder or hub id; repeat it to compare.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for results [eval/TASK-MODEL].")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples a task, for pass@1 to pass@n.")] = 1,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many tasks.")] = None,
    subset: Annotated[str | None, typer.Option("--subset", help="A part of the benchmark.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The benchmark's file [DCODER_BENCHMARKS, hub or EvalPlus' cache].")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="diffucoder, dream, qwen or llada [by the checkpoint].")
    ] = None,
    instruct: Annotated[
        bool | None, typer.Option("--instruct/--base", help="Ask by chat or plain text [by the checkpoint].")
    ] = None,
    temperatures: Annotated[
        str | None, typer.Option("--temperatures", help="One evaluation each, such as 0.2,0.3,0.4 [the protocol's].")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", help="New tokens [the protocol's].")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps [one a token].")] = None,
    speed: Annotated[
        str, typer.Option("--speed", help="Divide the steps by these and show the drop, such as 1,2,4.")
    ] = "1",
    infill_lengths: Annotated[
        str | None, typer.Option("--infill-lengths", help="Lengths to choose a gap's from [8,16,32,64].")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Any other sampler setting, key=value; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draws.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows decoded together.")] = 8,
    device: Annotated[str | None, typer.Option("--device", help="cuda, cpu, mps [what is there].")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16 [float32 on a CPU].")] = None,
    attention: Annotated[str, typer.Option("--attention", help="sdpa, flash_attention_2, flex or eager.")] = "sdpa",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Samples judged at a time [one a processor].")
    ] = None,
    python: Annotated[
        str | None, typer.Option("--python", help="bigcodebench: the interpreter with its libraries.")
    ] = None,
    unsafe_exec: Annotated[
        bool, typer.Option("--unsafe-exec", help="Run model-written code even where no sandbox holds.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    if not model:
        raise UserError("--model is missing; give a checkpoint folder or hub id")
    task = str(context.info_name)
    settings = config.parse_assignments(assignments or [])
    settings |= {k: v for k, v in (("max_new_tokens", max_new_tokens), ("steps", steps)) if v is not None}
    for name, flag in (("temperature", "--temperatures"), ("seed", "--seed")):
        if name in settings:
            raise UserError(f"--set {name} has an option of its own: {flag}")
    temperature_list, speeds = _numbers("--temperatures", temperatures, float), _numbers("--speed", speed, int)
    lengths = _numbers("--infill-lengths", infill_lengths, int)
    from dcoder_cli.benchmarks import protocols
    from dcoder_cli.benchmarks import sweep as campaign

    options = campaign.Options(
        subset, data, limit, protocol, instruct, settings, temperature_list, speeds,
        lengths or protocols.INFILL_LENGTHS, n, seed, batch_size, device, dtype, attention, workers, python, unsafe_exec,
    )  # fmt: skip
    place = out or campaign.default_folder(task, model)

    def progress(label: str, total: int, work: Callable[[Callable[[int], None]], Result]) -> Result:
        with console.bar(label, total, quiet=json) as bar:
            return work(bar.advance)

    try:
        done = campaign.run(model, task, place, options, console.note, progress)
    except KeyboardInterrupt:
        raise Stopped(f"stopped; the same command goes on with what is in {str(place)!r}") from None
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


for _name, _summary in _TASKS.items():
    app.command(_name, help=_summary)(evaluate)


@app.command("judge")
def judge(
    file: Annotated[
        Path, typer.Argument(help="JSON lines with task_id and solution (or completion, or resps); lists of them too.")
    ],
    task: Annotated[str, typer.Option("--task", help="The benchmark the samples are of.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for samples, judged.jsonl and results.json.")],
    extract: Annotated[
        bool, typer.Option("--extract", help="Take the program out of a chat's answer, as evaluations here do.")
    ] = False,
    column: Annotated[
        str | None, typer.Option("--column", help="Where the answers stand [solution, completion or resps].")
    ] = None,
    subset: Annotated[str | None, typer.Option("--subset", help="A part of the benchmark.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The benchmark's file [DCODER_BENCHMARKS, hub or EvalPlus' cache].")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Samples judged at a time [one a processor].")
    ] = None,
    python: Annotated[
        str | None, typer.Option("--python", help="bigcodebench: the interpreter with its libraries.")
    ] = None,
    unsafe_exec: Annotated[
        bool, typer.Option("--unsafe-exec", help="Run model-written code even where no sandbox holds.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Judge samples made by any system.

    Examples:

      dcoder eval judge samples.jsonl --task humaneval+ --out judged/

      dcoder eval judge answers.jsonl --column answer --extract --task mbpp --out judged/
    """
    from dcoder_cli.benchmarks.external import judge_file

    try:
        with console.bar(f"judging {task}", None, quiet=json) as bar:
            result = judge_file(
                file, task, out, subset, data, workers, python, unsafe_exec,
                lambda more, total: bar.advance(more, total=total), column, extract,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Stopped(f"stopped; the same command goes on with what is judged in {str(out)!r}") from None
    counts = result.record["counts"]
    if not extract and 2 * counts["syntax_error"] > counts["samples"]:
        console.note(
            f"{counts['syntax_error']} of {counts['samples']} samples are no Python; if they are a chat's answers, judge "
            "them again with --extract, into another --out"
        )
    if json:
        console.emit_json({**result.record, "out": str(out)})
        return
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
    least = 0 if kind is float else 1
    if not values or len(set(values)) != len(values) or any(not least <= value < 1e9 for value in values):
        raise UserError(f"{flag} {text!r} must be different numbers, at least {least}, with commas between")
    return values


def _show(done: Campaign, n: int) -> None:
    names = [_label(done, run) for run in done.runs]
    rows: dict[str, dict[str, Any]] = {}
    for name, run in zip(names, done.runs, strict=True):  # the parts of a task stand in one row
        rows[name] = {**rows.get(name, {}), **run.result.record["scores"]}
    measured = list(rows.items())
    measured += [("mean of plus", {"evalplus": {"pass@1": mean["evalplus"]}}) for mean in done.summary["means"]]
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


def _label(done: Campaign, run: Any) -> str:
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
    tier = f"; sandbox tier {record['sandbox_tier']}" if record["sandbox_tier"] else ""
    console.stdout().print(f"{name + ': ' if name else ''}{line}{tier}", markup=False)


def _change(one: dict[str, Any]) -> str:
    return f"{one['difference']:+.1f} points [{one['low']:+.1f}, {one['high']:+.1f}]"


def _times(value: float | None) -> str:
    return f", {value:.2f} times the tokens a second" if value else ""

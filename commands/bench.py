"""`dcoder bench`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dcoder_cli.base import console, options
from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.base.options import Needs
from dcoder_cli.base.ranges import few

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True)

Shape = Annotated[
    str | None, typer.Option("--shape", help="Random weights of a size: tiny, 0.5b, 1.5b, 3b, 7b, 14b, 32b [tiny].")
]
Batch = Annotated[str, typer.Option("--batch", help="Rows at a time (grpo: completions); several as 1,8.")]
NewTokens = Annotated[str, typer.Option("--new-tokens", help="New tokens of a row; several as 64,256.")]
PromptTokens = Annotated[
    int, typer.Option("--prompt-tokens", min=1, help="Of the longest prompt; the others have from half of it on.")
]
Repeats = Annotated[int, typer.Option("--repeats", help="Timed runs of each of the two, in turn.")]

NEEDS = {
    "generate": (
        Needs(
            ("threshold",), lambda values: "fast" in values["mode"].split(","),
            "it is of the fast mode, which --mode leaves out; leave it out too",
        ),
    ),
    "train": (), "grpo": (), "tokenize": (), "judge": (),
}  # fmt: skip


@app.callback()
def _root() -> None:
    """Measure speed and memory on this machine, beside a plain reference."""


@app.command()
def generate(
    context: typer.Context,
    model: options.Model = None,
    shape: Shape = None,
    batch: Batch = "1,8",
    new_tokens: NewTokens = "32",
    prompt_tokens: PromptTokens = 32,
    mode: Annotated[str, typer.Option("--mode", help="exact or fast, or both as exact,fast.")] = "exact,fast",
    steps: options.Steps = None,
    rule: options.Rule = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    threshold: options.Threshold = None,
    repeats: Repeats = 5,
    device: options.Device = None,
    dtype: options.Dtype = None,
    cuda_graphs: options.CudaGraphs = False,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Measure decoding beside plain loops that must give its tokens.

    Plain, exact: whole rows, all logits and sorts at every step, a choice row by row, as the public samplers do. Plain, fast:
    a row after another, with its own cache. Fast rows do not stop early.

    Examples:

      dcoder bench generate --shape 7b --dtype bfloat16 --batch 1,8,32 --new-tokens 256

      dcoder bench generate --model runs/sft/checkpoints/last --mode exact --temperature 0.4 --top-p 0.95
    """
    from dcoder_cli.timing import generate as timing

    written = options.given(context)
    options.refuse_unused(written, {"mode": mode}, NEEDS["generate"])
    named = {"steps": steps, "rule": rule, "temperature": temperature, "top_p": top_p, "threshold": threshold}
    settings = {name: value for name, value in named.items() if value is not None}
    modes = mode.split(",")
    timing.check_modes(modes)
    asked = timing.GenerateBench(
        _numbers("--batch", batch), _numbers("--new-tokens", new_tokens), prompt_tokens, modes, settings, model, shape,
        repeats, device, dtype, seed, cuda_graphs,
    )  # fmt: skip
    timing.refuse_unused({name: text for name, text in written.items() if name in settings}, asked)
    _run("generate", timing, asked, json)


@app.command()
def train(
    model: options.Model = None,
    shape: Shape = None,
    batch: Batch = "4",
    row_tokens: Annotated[str, typer.Option("--row-tokens", help="Tokens of a row; several as 256,1024.")] = "256",
    repeats: Repeats = 5,
    device: options.Device = None,
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Measure a step of stages 1 to 3 beside one with all logits.

    Forward pass in --dtype, gradients, clipping and AdamW, in one micro-batch; weights and moments are float32, as in training.
    The learning rate is 0, so that every step begins with the same weights; losses and gradients are compared entry by entry.

    Examples:

      dcoder bench train --shape 0.5b --dtype bfloat16 --batch 8 --row-tokens 1024
    """
    from dcoder_cli.timing import train as timing

    lengths = _numbers("--row-tokens", row_tokens, least=2)
    _run(
        "train",
        timing,
        timing.TrainBench(_numbers("--batch", batch), lengths, model, shape, repeats, device, dtype, seed),
        json,
    )


@app.command()
def grpo(
    model: options.Model = None,
    shape: Shape = None,
    batch: Batch = "8",
    group: Annotated[int, typer.Option("--group", min=1, help="Completions of one prompt.")] = 4,
    new_tokens: NewTokens = "64",
    prompt_tokens: PromptTokens = 32,
    repeats: Repeats = 5,
    device: options.Device = None,
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Measure an update of coupled-GRPO beside a plain one.

    Plain: every pass of every completion a whole row with all logits. Frozen log-probabilities and the policy's, the clipped loss with its KL term, gradients and AdamW, in one micro-batch.
    Rollouts and verdicts have benches of their own. Tokens are the completions' scored ones.

    Examples:

      dcoder bench grpo --shape 0.5b --dtype bfloat16 --batch 16 --group 8 --new-tokens 256
    """
    from dcoder_cli.timing import grpo as timing

    lengths = _numbers("--new-tokens", new_tokens)
    asked = timing.GrpoBench(
        _numbers("--batch", batch), lengths, prompt_tokens, group, model, shape, repeats, device, dtype, seed
    )
    _run("grpo", timing, asked, json)


@app.command()
def tokenize(
    sources: Annotated[
        list[str] | None, typer.Argument(help="As of `dcoder tokenize` [Python's own library].", show_default=False)
    ] = None,
    tokenizer: options.Tokenizer = None,
    megabytes: Annotated[
        float,
        typer.Option(
            "--megabytes", help="Text to take of the sources, at most.", callback=options.within(above=0, most=1e6)
        ),
    ] = 4.0,
    workers: Annotated[int, typer.Option("--workers", help="Processes that tokenize.")] = 1,
    repeats: Repeats = 5,
    json: options.Json = False,
) -> None:
    """Measure `dcoder tokenize pretrain` beside a plain loop.

    Filters are off, since the loop has none: it encodes document after document. Without --tokenizer one is trained on the text.

    Examples:

      dcoder bench tokenize src --tokenizer Qwen/Qwen2.5-Coder-0.5B --megabytes 50 --workers 8
    """
    from dcoder_cli.timing import tokenize as timing

    _run("tokenize", timing, timing.TokenizeBench(sources or (), megabytes, tokenizer, workers, repeats), json)


@app.command()
def judge(
    programs: Annotated[int, typer.Option("--programs", help="Programs to judge.")] = 64,
    workers: options.Judges = None,
    repeats: Repeats = 5,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Measure the judge beside a fresh `python` for every program.

    The programs are references of our own micro tasks, one in four under a wrong name; so the plain way needs no sandbox.

    Examples:

      dcoder bench judge --programs 200 --workers 8
    """
    from dcoder_cli.timing import judge as timing

    _run("judge", timing, timing.JudgeBench(programs, workers, repeats, seed), json)


def _run(name: str, timing: Any, asked: Any, json: bool) -> None:
    """Run a bench and show what it found. Raises WorkFailed where ours and the plain way disagree."""
    from dcoder_cli.timing import report

    with console.bar(f"bench {name}", timing.runs(asked), quiet=json) as bar:
        found = timing.bench(asked, lambda what: bar.advance(1, what))
    if json:
        console.emit_json(found)
    else:
        for line in report.table(found):
            console.stdout().print(line, markup=False, highlight=False, soft_wrap=True)
    wrong = [one for one in found["cases"] if one["agreement"]["agree"] is False]
    if wrong:
        where = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in wrong[0]["asked"].items())
        raise WorkFailed(
            f"dcoder and the plain reference disagree in {len(wrong)} of {len(found['cases'])} cases ({where})"
        )


def _numbers(option: str, text: str, least: int = 1) -> list[int]:
    """`1,8` as numbers. Raises UserError."""
    try:
        found = [int(one) for one in text.split(",")]
    except ValueError:
        found = []
    few(option, found)
    if not found or min(found) < least:
        raise UserError(f"{option} {text!r} must be whole numbers of at least {least}, such as 8 or 8,16")
    return found

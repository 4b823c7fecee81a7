"""The options that commands share, each declared once, and one refusal of those that would do nothing. Never torch.

A command takes an option by its alias: `json: options.Json = False`. The sampler's options, which `generate`, `arness` and
`eval` share, come all together with `takes_sampling`.

An option of the command line that no value of could change what the call does is refused, as far as the command line, the
models' configs and the benchmark's name tell. Each command has a table of what its options need (`Needs`); a test asks of
every option of every command that a call is known in which it has an effect, or in which it is refused.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from dcoder_cli.base.config import parse_assignments
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.machine import ATTENTIONS, BENCHMARKS_VARIABLE
from dcoder_cli.base.ranges import few as few
from dcoder_cli.base.ranges import within as within

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs; no progress.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what an earlier call of this command left in --out.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, print what would be done and what it takes; write nothing.")
]
UnsafeExec = Annotated[
    bool, typer.Option("--unsafe-exec", help="Run model-written code without a sandbox where none holds.")
]
FromCode = Annotated[
    bool,
    typer.Option("--from-code", help="Make them from the functions of Python code: files, or rows with text or code."),
]
StepScale = Annotated[
    float | None,
    typer.Option(
        "--step-scale",
        help="Factor on all training steps: 0.02 is a smoke test, 3 a better model [1].",
        callback=within(above=0, most=1_000_000),
    ),
]

# ---- models and how they are loaded
Model = Annotated[str | None, typer.Option("--model", help="Checkpoint: folder or hub id.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="Checkpoint: folder or hub id; repeatable.")]
Device = Annotated[str | None, typer.Option("--device", help="cuda, mps or cpu [the best there is].")]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16 or float16 [as stored; float32 on a CPU].")
]
Attention = Annotated[str, typer.Option("--attention", help=f"{', '.join(ATTENTIONS)}.")]
CudaGraphs = Annotated[
    bool,
    typer.Option("--cuda-graphs", help="Record evaluations once a shape and play them back (CUDA; sdpa or eager)."),
]
TOKENIZER = typer.Option("--tokenizer", "-t", help="Tokenizer: a folder or a hub id.", show_default=False)
Tokenizer = Annotated[str | None, TOKENIZER]

# ---- what goes in and what comes out
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
MaybeOut = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write.")]
System = Annotated[str | None, typer.Option("--system", help="The system message of chats that have none.")]
Watch = Annotated[bool, typer.Option("--watch", help="Show the text being denoised, live (of a batch, its first row).")]
BATCH_SIZE = typer.Option(
    "--batch-size", min=1, help="Rows decoded together [8; eval: or its preset's].", show_default=False
)
BatchSize = Annotated[int, BATCH_SIZE]
MaybeBatchSize = Annotated[int | None, BATCH_SIZE]
# Bounds above are ours: beyond any use, and within what a machine holds.
Samples = Annotated[int, typer.Option("--n", min=1, max=1_000_000, help="Samples of each prompt or task.")]
LARGEST_SEED = 2**63 - 1  # that torch takes
_SEED = typer.Option("--seed", help="Seed of everything that is drawn.", callback=within(0, LARGEST_SEED))
Seed = Annotated[int, _SEED]

# ---- benchmarks
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many tasks.")]
Since = Annotated[str | None, typer.Option("--since", help="Only tasks published since this date, such as 2024-08-01.")]
Until = Annotated[str | None, typer.Option("--until", help="Only tasks published until this date, such as 2025-01-31.")]
Subset = Annotated[str | None, typer.Option("--subset", help="A part of the benchmark.")]
Benchmark = Annotated[
    Path | None, typer.Option("--data", help=f"The benchmark's file [{BENCHMARKS_VARIABLE}, hub or a cache].")
]
Judges = Annotated[
    int | None, typer.Option("--workers", min=1, max=1024, help="Samples judged at a time [one for each processor].")
]
Python = Annotated[
    str | None,
    typer.Option("--python", help="For tests that run beside the answer: the interpreter with their libraries."),
]
Temperatures = Annotated[
    str | None, typer.Option("--temperatures", help="Instead of --temperature: several, such as 0.2,0.3,0.4.")
]
InfillLengths = Annotated[
    str | None, typer.Option("--infill-lengths", help="Choose a hole's number of tokens from these, such as 8,16,32.")
]

# ---- configuration
Preset = Annotated[
    str | None,
    typer.Option("--preset", help="A preset's name (see `dcoder presets list`) or a YAML file of that form."),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="A setting, key=value; wins over files; repeatable.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="YAML file with keys of the stage; wins over the preset. RUN/config.yaml repeats that run."
    ),
]
Shards = Annotated[str | None, typer.Option("--data", help="Folder that `dcoder tokenize` wrote, of the stage's kind.")]
NProc = Annotated[
    int | None,
    typer.Option(
        "--nproc",
        help="Processes on this machine, one a GPU; sharded where the preset's launch section says so [1].",
        callback=within(1, 1024),
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")]
Track = Annotated[
    str | None,
    typer.Option(
        "--track",
        help="An Accelerate tracker, for example tensorboard; a resumed run keeps its own [none ends that].",
    ),
]
RunName = Annotated[str | None, typer.Option("--run-name", help="The run's name in the tracker [the run folder's].")]

# ---- the sampler: one for each field of decoding's Settings, under its name; None takes the command's own
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", help="New tokens: the masks to begin with.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Denoising steps [one a token].")]
Rule = Annotated[
    str | None,
    typer.Option(
        "--rule", help="entropy, confidence, margin, random, left-to-right, or a public sampler's name for one."
    ),
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", help="Of the drawn tokens; 0 is argmax.", callback=within(0, 1e6))
]
TopP = Annotated[float | None, typer.Option("--top-p", help="Nucleus, the same at every temperature; 1 is off.")]
TopK = Annotated[
    int | None, typer.Option("--top-k", help="Most likely tokens only [off; compat dream: config.json's, else 50].")
]
AlgTemperature = Annotated[
    float | None,
    typer.Option("--alg-temperature", help="Randomness in which tokens are committed [0].", callback=within(0, 1e6)),
]
BlockLength = Annotated[
    int | None, typer.Option("--block-length", help="Semi-autoregressive blocks [one block; fast: 32].")
]
Compat = Annotated[
    Literal["dream", "llada"] | None, typer.Option("--compat", help="That public sampler, quirks included [ours].")
]
CfgScale = Annotated[
    float | None, typer.Option("--cfg-scale", help="Classifier-free guidance [0, off].", callback=within(0, 1e6))
]
StopPenalty = Annotated[
    float | None,
    typer.Option("--stop-penalty", help="Subtract from the logits of end and pad tokens [0].", callback=within()),
]
MinNewTokens = Annotated[
    int | None, typer.Option("--min-new-tokens", help="No end or pad among the first so many [0].")
]
TieBreak = Annotated[
    Literal["model", "left", "right", "random", "topk"] | None,
    typer.Option(
        "--tie-break",
        help="Which of equal scores comes first: the model's own order, or torch.topk's, as the public samplers.",
    ),
]
LogitsMib = Annotated[
    int | None, typer.Option("--logits-mib", help="Memory for logits, in MiB; changes no token [CPU 256, GPU 2048].")
]
SamplerSeed = Annotated[int | None, _SEED]
Mode = Annotated[
    Literal["exact", "fast"] | None,
    typer.Option("--mode", help="fast: approximate, with the options from --cache to --early-stop [exact]."),
]
Cache = Annotated[
    Literal["none", "prefix", "dual"] | None,
    typer.Option("--cache", help="Fast: keys kept around a block [dual]."),
]
Commit = Annotated[
    Literal["threshold", "factor", "entropy-bound", "schedule"] | None,
    typer.Option("--commit", help="Fast: how many a step [by its parameter; threshold]."),
]
Threshold = Annotated[float | None, typer.Option("--threshold", help="Fast: commit all above this confidence [0.9].")]
Factor = Annotated[
    float | None,
    typer.Option(
        "--factor", help="Fast: commit n while (n + 1)(1 - confidence n) is below it [1].", callback=within(above=0)
    ),
]
EntropyBound = Annotated[
    float | None,
    typer.Option("--entropy-bound", help="Fast: nats a step's tokens may hold together [0.1].", callback=within(0)),
]
CacheRefresh = Annotated[
    int | None, typer.Option("--cache-refresh", help="Fast: renew kept keys every so many steps [each block].")
]
EarlyStop = Annotated[
    bool | None,
    typer.Option("--early-stop/--no-early-stop", help="Fast: end a row with its first end token [yes]."),
]

SAMPLING: dict[str, Any] = {
    "max_new_tokens": MaxNewTokens,
    "steps": Steps,
    "rule": Rule,
    "temperature": Temperature,
    "top_p": TopP,
    "top_k": TopK,
    "alg_temperature": AlgTemperature,
    "block_length": BlockLength,
    "compat": Compat,
    "cfg_scale": CfgScale,
    "stop_penalty": StopPenalty,
    "min_new_tokens": MinNewTokens,
    "tie_break": TieBreak,
    "logits_mib": LogitsMib,
    "seed": SamplerSeed,
    "mode": Mode,
    "cache": Cache,
    "commit": Commit,
    "threshold": Threshold,
    "factor": Factor,
    "entropy_bound": EntropyBound,
    "cache_refresh": CacheRefresh,
    "early_stop": EarlyStop,
}


def takes_sampling(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all options of SAMPLING, where its parameter `sampling` stands.

    That parameter then holds the settings that were given, by the names that decoding's Settings has for them.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name == "sampling":
            parameters += [
                inspect.Parameter(name, parameter.kind, default=None, annotation=option)
                for name, option in SAMPLING.items()
            ]
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))

    @wraps(command)
    def called(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in SAMPLING}
        command(**values, sampling={name: value for name, value in chosen.items() if value is not None})

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


# ---- options without an effect


class Needs(NamedTuple):
    """What some options need to have an effect.

    Attributes:
        names: their parameters' names.
        met: whether it is there, told by the values of the call (those of its parameters, and what the command adds).
        why: what is missing, and what to do, after "--option has no effect: ".
    """

    names: tuple[str, ...]
    met: Callable[[Mapping[str, Any]], Any]
    why: str


def given(context: typer.Context) -> dict[str, str]:
    """The options and arguments that stand on the command line: parameter name -> as it was written, `--top-p 0.9`."""
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name and source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT"):
            found[parameter.name] = _written(parameter, context.params.get(parameter.name))
    return found


def given_by_set(assignments: Iterable[str] | None) -> dict[str, str]:
    """As `given`, of `--set key=value`."""
    return {text.partition("=")[0].strip(): f"--set {text}" for text in assignments or ()}


def with_set(sampling: Mapping[str, Any], assignments: Sequence[str] | None) -> dict[str, Any]:
    """The settings of --set and those that have an option of their own. Raises UserError for one that is given twice."""
    settings = parse_assignments(assignments or [])
    for name in settings:
        if name in sampling:
            raise UserError(f"--set {name} is given beside --{name.replace('_', '-')}; give one of them")
    return {**settings, **sampling}


def refuse_unused(written: Mapping[str, str], values: Mapping[str, Any], table: Sequence[Needs]) -> None:
    """Raises UserError for the first option in `written` whose need in `table` is not met."""
    for needs in table:
        for name in needs.names:
            if name in written and not needs.met(values):
                raise UserError(f"{written[name]} has no effect: {needs.why}")


def _written(parameter: Any, value: Any) -> str:
    if isinstance(value, bool):
        names = parameter.opts if value or not parameter.secondary_opts else parameter.secondary_opts
        return str(names[0])
    shown = value[0] if isinstance(value, (list, tuple)) and value else value
    return f"{parameter.opts[0]} {shown}" if parameter.param_type_name == "option" else str(shown)

"""`dcoder tokenize pretrain|sft|rl`: the options, and the summary at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from dcoder_cli.base import options
from dcoder_cli.base import plan as plans
from dcoder_cli.base.options import Needs
from dcoder_cli.base.source_options import (
    Benchmarks,
    Decontaminate,
    Exact,
    Exclude,
    Extensions,
    Ngram,
    Ray,
    Shard,
    Sources,
    Tokenizer,
    WithRay,
    Workers,
    held_out,
)

app = typer.Typer(
    help="Turn text, code, JSONL, Parquet or hub data into packed shards.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_FILTERS = "it is of the filters of source files, and --code-filters none, or sources without any, leave them off"
_COMMON = (
    Needs(
        ("exclude",), lambda call: "folder" in call["kinds"],
        "it chooses among the files of a folder, and no source is one; leave it out",
    ),
    Needs(
        ("extensions",), lambda call: call["kinds"] & {"folder", "other"},
        "it chooses among the files of a folder, and no source is one; leave it out",
    ),
    Needs(
        ("decontaminate_ngram", "benchmarks"), lambda call: call["decontaminate"],
        "it is of --decontaminate; give that, such as humaneval,mbpp, or leave it out",
    ),
)  # fmt: skip
_WORKERS = Needs(
    ("workers", "shard"), lambda call: not call["ray"],
    "with --ray the cluster's machines share all of the work; leave it out",
)  # fmt: skip
# By command: what its options need. `kinds` and `within` tell of the sources, see `sources.what_kinds`.
NEEDS = {
    "pretrain": (
        *_COMMON,
        _WORKERS,
        Needs(
            ("tokenizer_digits",), lambda call: call["train_tokenizer"],
            "it is of a tokenizer that --train-tokenizer trains; leave it out",
        ),
        Needs(
            ("column", "template"), lambda call: "table" in call["within"](),
            "it is of tables (.jsonl, .json, .parquet, hub), and what is taken of the sources is text; leave it out",
        ),
        Needs(
            ("max_line_length", "mean_line_length", "min_alphanumeric"),
            lambda call: call["code_filters"] == "all"
            or (call["code_filters"] == "auto" and call["within"]() & {"code", "python"}),
            _FILTERS,
        ),
        Needs(
            ("drop_unparsable",), lambda call: call["within"]() & {"table", "python"},
            "it is of Python, and no source can hold any; leave it out",
        ),
    ),
    "sft": (
        *_COMMON,
        _WORKERS,
        Needs(("gaps",), lambda call: call["from_code"], "gaps are cut into the functions of --from-code; leave it out"),
    ),
    "rl": (
        *_COMMON,
        Needs(("seed",), lambda call: call["heldout"], "nothing is drawn but --heldout; give that, or leave it out"),
        Needs(
            ("hard_mean", "hard_spread"), lambda call: call["hard"] != "all",
            "--hard all keeps every row; leave one of them out",
        ),
        Needs(
            ("hard", "hard_mean", "hard_spread"), lambda call: not call["from_code"],
            "it is of rows with inferences, and functions of --from-code have none; leave it out",
        ),
        Needs(
            ("unsafe_exec",), lambda call: call["from_code"],
            "nothing is run but the references of --from-code; leave it out",
        ),
    ),
}  # fmt: skip


@app.command(cls=WithRay)
def pretrain(
    context: typer.Context,
    sources: Sources,
    out: options.Out,
    tokenizer: options.Tokenizer = None,
    train_tokenizer: Annotated[
        int,
        typer.Option(
            help="Instead, train a byte-level BPE of this size; saved in OUT/tokenizer.",
            show_default=False,
            callback=options.within(0, 2**24),
        ),
    ] = 0,
    tokenizer_digits: Annotated[
        int,
        typer.Option(
            help="Longest run of digits in a token of a trained tokenizer (Qwen2: 1).", callback=options.within(1, 3)
        ),
    ] = 1,
    seq_len: Annotated[int, typer.Option(help="Tokens in a row (DiffuCoder stage 1: 4096).")] = 4096,
    seed: options.Seed = 0,
    heldout: Annotated[float, held_out("documents")] = 0.005,
    workers: Workers = 0,
    ray: Ray = None,
    shard: Shard = "1/1",
    column: Annotated[
        str, typer.Option(help="Column with the text; default text, content or code.", show_default=False)
    ] = "",
    template: Annotated[
        str, typer.Option(help="Text from several columns, such as '{a}\\n{b}'.", show_default=False)
    ] = "",
    extensions: Extensions = [],  # noqa: B006 - typer copies it
    exclude: Exclude = [],  # noqa: B006
    exact_duplicates: Exact = True,
    near_duplicates: Annotated[
        float, typer.Option(help="Drop documents of this MinHash similarity; 0: off.", callback=options.within(0, 1))
    ] = 0.7,
    code_filters: Annotated[
        str, typer.Option(help="The three limits below: auto (source files only), all or none.")
    ] = "auto",
    max_line_length: Annotated[
        int, typer.Option(help="Longest line, in characters.", callback=options.within(1))
    ] = 1000,
    mean_line_length: Annotated[
        float, typer.Option(help="Longest mean line, in characters.", callback=options.within(above=0))
    ] = 100.0,
    min_alphanumeric: Annotated[
        float, typer.Option(help="Smallest share of letters and digits.", callback=options.within(0, 1))
    ] = 0.25,
    drop_unparsable: Annotated[
        bool, typer.Option("--drop-unparsable", help="Drop Python that does not parse.")
    ] = False,
    licence: Annotated[
        str, typer.Option("--licence", "--license", help="Licence headers: keep, strip, drop, or drop:GPL,AGPL.")
    ] = "keep",
    decontaminate: Decontaminate = "",
    decontaminate_ngram: Ngram = 10,
    benchmarks: Benchmarks = "",
    eos_token: Annotated[
        str, typer.Option(help="Token between documents; default: the tokenizer's end of text.", show_default=False)
    ] = "",
    bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="Begin rows with BOS [where it is Dream's, which convert adds]."),
    ] = None,
    overwrite: options.Force = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Pack documents into rows for stages 0, 1 and 2."""
    _check(context, sources)
    from dcoder_cli.data.filters import FilterSettings
    from dcoder_cli.data.pipeline import PretrainSettings, plan_pretrain, tokenize_pretrain
    from dcoder_cli.data.records import TextMapping

    filters = FilterSettings(
        exact_duplicates=exact_duplicates,
        near_duplicates=near_duplicates,
        max_line_length=max_line_length,
        mean_line_length=mean_line_length,
        min_alphanumeric=min_alphanumeric,
        code_filters=code_filters,  # type: ignore[arg-type]  # checked where it is used
        drop_unparsable=drop_unparsable,
        licence=licence,
        decontaminate=_names(decontaminate),
        decontaminate_ngram=decontaminate_ngram,
        benchmarks=benchmarks or None,
    )
    settings = PretrainSettings(
        sources=tuple(sources),
        out=str(out),
        tokenizer=tokenizer,
        train_tokenizer=train_tokenizer or None,
        tokenizer_digits=tokenizer_digits,
        seq_len=seq_len,
        seed=seed,
        heldout=heldout,
        workers=workers,
        ray=ray,
        shard=shard,
        mapping=TextMapping(column or None, template or None),
        extensions=tuple(extensions),
        exclude=tuple(exclude),
        filters=filters,
        eos_token=eos_token or None,
        bos=bos,
        overwrite=overwrite,
        quiet=json,
    )
    _run(plan_pretrain, tokenize_pretrain, settings, dry_run, json)


@app.command(cls=WithRay)
def sft(
    context: typer.Context,
    sources: Sources,
    out: options.Out,
    tokenizer: Tokenizer,
    seq_len: Annotated[
        int, typer.Option(help="Tokens in a row; longer samples are dropped (DiffuCoder: 2048).")
    ] = 2048,
    pad_token: Annotated[
        str,
        typer.Option(help="Fills rows and ends answers; default the tokenizer's, or <|dlm_pad|>.", show_default=False),
    ] = "",
    system: options.System = None,
    from_code: options.FromCode = False,
    gaps: Annotated[
        float, typer.Option(help="From code: share that becomes a text with a gap too.", callback=options.within(0, 1))
    ] = 0.5,
    seed: options.Seed = 0,
    heldout: Annotated[float, held_out("samples")] = 0.005,
    workers: Workers = 0,
    ray: Ray = None,
    shard: Shard = "1/1",
    extensions: Extensions = [],  # noqa: B006
    exclude: Exclude = [],  # noqa: B006
    exact_duplicates: Exact = True,
    near_duplicates: Annotated[
        float,
        typer.Option(
            help="Drop samples of this MinHash similarity; 0: off. From code: 0.7.", callback=options.within(0, 1)
        ),
    ] = 0.0,
    decontaminate: Decontaminate = "",
    decontaminate_ngram: Ngram = 10,
    benchmarks: Benchmarks = "",
    overwrite: options.Force = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Lay out chats for stage 3, one sample a row.

    The answer, its end of turn and the pads behind it are supervised, the prompt is not.
    Rows of the sources hold `messages`, `conversations`, instruction/output (+input), another usual pair, or
    `prefix`, `hole` and `suffix` of a text with a gap. With --from-code the sources are Python code.
    """
    _check(context, sources)
    if from_code and "near_duplicates" not in options.given(context):
        near_duplicates = 0.7  # of code, as in pretrain
    from dcoder_cli.data.filters import FilterSettings
    from dcoder_cli.data.pipeline import SftSettings, plan_sft, tokenize_sft

    filters = FilterSettings(
        exact_duplicates=exact_duplicates,
        near_duplicates=near_duplicates,
        code_filters="none",
        decontaminate=_names(decontaminate),
        decontaminate_ngram=decontaminate_ngram,
        benchmarks=benchmarks or None,
    )
    settings = SftSettings(
        sources=tuple(sources),
        out=str(out),
        tokenizer=tokenizer,
        seq_len=seq_len,
        seed=seed,
        heldout=heldout,
        workers=workers,
        ray=ray,
        shard=shard,
        pad_token=pad_token or None,
        system=system,
        from_code=from_code,
        gaps=gaps,
        extensions=tuple(extensions),
        exclude=tuple(exclude),
        filters=filters,
        overwrite=overwrite,
        quiet=json,
    )
    _run(plan_sft, tokenize_sft, settings, dry_run, json)


@app.command()
def rl(
    context: typer.Context,
    sources: Sources,
    out: options.Out,
    tokenizer: Tokenizer,
    max_prompt_tokens: Annotated[
        int, typer.Option(help="Drop longer prompts (DiffuCoder: 200).", callback=options.within(1))
    ] = 200,
    hard: Annotated[
        str,
        typer.Option(
            help="Of rows with inferences (AceCode-87K), the hard ones as the authors' code has it (released: lowest 20% by "
            "mean pass rate, top 60% by its spread) or as the paper says (top 40%); or all."
        ),
    ] = "released",
    hard_mean: Annotated[
        float | None,
        typer.Option(help="Hard: another lowest share by mean pass rate.", callback=options.within(above=0, most=1)),
    ] = None,
    hard_spread: Annotated[
        float | None,
        typer.Option(help="Hard: another highest share by spread.", callback=options.within(above=0, most=1)),
    ] = None,
    complete: Annotated[
        bool, typer.Option("--complete/--no-complete", help="Also offer questions as code to complete.")
    ] = True,
    from_code: options.FromCode = False,
    unsafe_exec: options.UnsafeExec = False,
    baseline: Annotated[
        str, typer.Option(help="constant: no credit for tests that the best constant answer passes; none: for each.")
    ] = "none",
    system: options.System = None,
    seed: options.Seed = 0,
    heldout: Annotated[float, held_out("questions")] = 0.0,
    extensions: Extensions = [],  # noqa: B006
    exclude: Exclude = [],  # noqa: B006
    exact_duplicates: Exact = True,
    decontaminate: Decontaminate = "",
    decontaminate_ngram: Ngram = 10,
    benchmarks: Benchmarks = "",
    overwrite: options.Force = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Collect prompts for `dcoder grpo`: questions with tests, or with a number to find.

    Rows of the sources have AceCode-87K's fields, or a question and its tests under other usual names; or, as GSM8K's,
    a question and an answer that is a number or ends in "#### 42", for the reward `math`. With --from-code the sources
    are Python code: functions whose doctests hold become questions.
    """
    _check(context, sources)
    from dcoder_cli.data.filters import FilterSettings
    from dcoder_cli.data.rl import RlSettings, plan_rl, tokenize_rl
    from dcoder_cli.execution.trials import tried

    filters = FilterSettings(
        exact_duplicates=exact_duplicates,
        near_duplicates=0.0,
        code_filters="none",
        decontaminate=_names(decontaminate),
        decontaminate_ngram=decontaminate_ngram,
        benchmarks=benchmarks or None,
    )
    settings = RlSettings(
        sources=tuple(sources), out=str(out), tokenizer=tokenizer, max_prompt_tokens=max_prompt_tokens, hard=hard,
        hard_given="hard" in options.given(context), hard_mean=hard_mean, hard_spread=hard_spread, complete=complete,
        from_code=from_code, baseline=baseline, system=system, seed=seed, heldout=heldout, extensions=tuple(extensions),
        exclude=tuple(exclude), filters=filters, overwrite=overwrite, quiet=json,
    )  # fmt: skip
    _run(plan_rl, partial(tokenize_rl, trial=partial(tried, unsafe=unsafe_exec, quiet=json)), settings, dry_run, json)


def _check(context: typer.Context, sources: list[str]) -> None:
    """Refuse options without an effect, by the call and the kinds of its sources."""
    from dcoder_cli.data.sources import what_kinds

    values = {**context.params, **what_kinds(sources, context.params["extensions"], context.params["exclude"])}
    options.refuse_unused(options.given(context), values, NEEDS[str(context.info_name)])


def _run(plan: Callable[..., Any], tokenize: Callable[..., Any], settings: Any, dry_run: bool, json: bool) -> None:
    if dry_run:
        return plans.show(plan(settings), json)
    from dcoder_cli.data.remarks import show

    begin = time.monotonic()
    show(tokenize(settings), settings.out, time.monotonic() - begin, json)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())

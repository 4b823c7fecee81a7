"""The options that `dcoder tokenize`'s three commands share: sources, and what of them is left out. Never torch."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dcoder_cli.base import options

_SOURCES = (
    "Folders, files (.py .jsonl .json .parquet .txt, .gz, .zst) or hub:NAME[:CONFIG][:SPLIT]; SRC@3 takes it thrice."
)
Sources = Annotated[list[str], typer.Argument(metavar="SRC...", help=_SOURCES, show_default=False)]
Tokenizer = Annotated[str, options.TOKENIZER]
Workers = Annotated[
    int,
    typer.Option(
        help="Worker processes; 0: one for each core. The result is the same.", callback=options.within(0, 4096)
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[HOST:PORT|auto|local]",
        help="Work in a Ray cluster, by default the running one or else one of this machine (auto). Needs 'dcoder[ray]'.",
    ),
]


class WithRay(TyperCommand):
    """A command whose --ray may stand without its value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of any command."""
        return super().parse_args(ctx, _with_address(args))


def _with_address(args: list[str]) -> list[str]:
    """`auto` behind every --ray that an option, the end or a source follows rather than an address."""
    given: list[str] = []
    for place, argument in enumerate(args):
        given.append(argument)
        if argument == "--":
            return [*given, *args[place + 1 :]]
        after = next(iter(args[place + 1 :]), "-")
        source = after not in ("auto", "local") and (after.startswith(("-", "hub:")) or os.path.exists(after))
        if argument == "--ray" and source:
            given.append("auto")
    return given


Shard = Annotated[str, typer.Option(help="This machine's part, i/n; all n parts in one --out read as one set.")]
Extensions = Annotated[
    list[str], typer.Option("--extensions", help="Take only these files of a folder, such as .py (may repeat).")
]
Exclude = Annotated[
    list[str], typer.Option("--exclude", help="Leave out paths of this pattern, such as test* (may repeat).")
]
Decontaminate = Annotated[str, typer.Option(help="Benchmarks whose problems may not occur: their names, with commas.")]
Ngram = Annotated[
    int,
    typer.Option(help="Words in a row that count as an overlap with a benchmark.", callback=options.within(2, 10_000)),
]
Benchmarks = Annotated[
    str, typer.Option(help="Folder with one subfolder a benchmark; default $DCODER_BENCHMARKS.", show_default=False)
]
Exact = Annotated[bool, typer.Option("--exact-duplicates/--no-exact-duplicates", help="Drop exact copies.")]


def held_out(what: str) -> Any:
    """The option of the share of `what` that is held out."""
    return typer.Option(
        "--heldout", help=f"Share of {what} held out, by their content.", callback=options.within(0, below=1)
    )

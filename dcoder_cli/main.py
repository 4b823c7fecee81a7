"""The entrypoint: a table of commands, loaded one at a time, and the exit codes."""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
import time
import traceback
from reprlib import repr as short
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

from dcoder_cli import __version__
from dcoder_cli.base.console import visible
from dcoder_cli.base.errors import (
    STOPPED,
    StoppedByUser,
    UserError,
    WorkFailed,
    clipped,
    is_out_of_memory,
    one_line,
)
from dcoder_cli.base.files import is_out_of_space
from dcoder_cli.base.locks import release_all
from dcoder_cli.base.machine import bound_threads
from dcoder_cli.base.startup import check_arguments, check_ranks, flush, open_streams


class CommandEntry(NamedTuple):
    """A command's module in commands/ and its line in `dcoder --help`."""

    module: str
    summary: str


# Every module has `app`, a typer.Typer. A test compares each summary with the command's own help.
COMMANDS: dict[str, CommandEntry] = {
    "quickstart": CommandEntry("quickstart", "The whole method at CPU size, from source code to a report."),
    "tokenize": CommandEntry("tokenize", "Turn text, code, JSONL, Parquet or hub data into packed shards."),
    "convert": CommandEntry("convert", "Turn an AR checkpoint into a diffusion checkpoint, or make a new one."),
    "inspect": CommandEntry("inspect", "Show a checkpoint's architecture, special ids, conflicts and memory needs."),
    "train-stage": CommandEntry("train_stage", "Train stage 0 (ar), 1 (adapt), 2 (mid) or 3 (sft)."),
    "grpo": CommandEntry("grpo", "Train stage 4 with coupled-GRPO or one of its baselines."),
    "generate": CommandEntry("generate", "Generate text from prompts with any model and unmasking rule."),
    "serve": CommandEntry("serve", "Serve a model over HTTP: OpenAI's API, and a page to watch it denoise."),
    "chat": CommandEntry("chat", "Talk with a model: several turns, answers shown as they are denoised."),
    "arness": CommandEntry("arness", "Measure how close to left-to-right a model decodes (AR-ness), with pictures."),
    "eval": CommandEntry("eval", "Score models, or samples made elsewhere, on code and reasoning benchmarks."),
    "export": CommandEntry("export", "Write a folder that other people's code loads, with a model card."),
    "plot": CommandEntry("plot", "Draw the curves of training runs beside each other."),
    "reproduce": CommandEntry(
        "reproduce",
        "Check the paper's claims, with effect sizes and intervals, on small models trained here or on given ones.",
    ),
    "bench": CommandEntry("bench", "Measure speed and memory on this machine, beside a plain reference."),
    "doctor": CommandEntry("doctor", "Show what works here: versions, GPU, flash-attn, sandbox, hub, benchmark data."),
    "presets": CommandEntry("presets", "Show the presets for GPU sizes, what fits a GPU, and a job for Slurm."),
}


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are called, so that help stays fast."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"dcoder_cli.commands.{entry.module}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: Any) -> Any:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            from dcoder_cli.base.config import nearest

            ctx.fail(f"No such command {args[0]!r}{nearest(args[0], list(COMMANDS))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        check_ranks()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # a command that can be gone on with says how
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a launcher passes on what the terminal has sent already
            raise StoppedByUser("stopped before the end") from None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, sample, measure and score masked-diffusion language models for code.",
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"dcoder {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Train, sample, measure and score masked-diffusion language models for code."""


# How a collective says that another process is gone: gloo's words, and NCCL's. That one has told what happened to it.
_PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "remote process exited")


def process() -> None:
    """`main` as a whole process, which the console script and `python -m dcoder_cli` are.

    One of several ends here, before Python takes down what the threads of a process group still use. They live as long as
    anything holds the group (defaults of torch's own functions do), and one that asks for the GIL of an interpreter that is
    going ends the process by SIGABRT, now and then.
    """
    if "RANK" not in os.environ:
        return main()
    code: Any = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    except Exception:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    """Run the command line: exit 0, 1 (the work failed), 2 (the input is wrong) or 130 (stopped by Ctrl-C)."""
    bound_threads()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notices about Dream's model_type mislead
    typer.BadParameter.__bases__[0].show = _show_usage_error  # type: ignore[attr-defined]  # UsageError, typer's own or click's
    unwritten: OSError | None = None
    try:
        open_streams()
        check_arguments(sys.argv[1:])
        try:
            app(prog_name="dcoder")
        finally:
            unwritten = flush()
            if unwritten is not None and isinstance(sys.exc_info()[1], (SystemExit, type(None))):
                raise unwritten  # else what went wrong already is told
    except UserError as error:
        _fail(one_line(error), 2)
    except StoppedByUser as error:
        _fail(one_line(error), STOPPED)
    except WorkFailed as error:
        _fail(one_line(error), 1)
    except BrokenPipeError:
        flush()  # the reader of our output left (`| head`)
        sys.exit(1)
    except Exception as error:
        if "RANK" in os.environ and any(words in str(error) for words in _PEER_GONE):
            time.sleep(_GRACE)  # the launcher tells which one, and ends this one
            _fail("another process of this run ended, and this one with it", 1)
        if is_out_of_memory(error):
            _fail("out of memory; ask for smaller or fewer batches, shorter rows, fewer samples or a smaller model", 1)
        place = getattr(error, "filename", None)
        if isinstance(error, OSError) and place is None and unwritten is not None:
            _fail(f"stdout cannot be written: {error.strerror or error}; send it elsewhere", 1)
        if is_out_of_space(error):
            where, beside = (f" writing {place!r}", "") if place else ("", ", or another place for stdout")
            _fail(f"no space left on the disk{where}; free some space or choose another --out{beside}", 2)
        if not isinstance(error, OSError) or not isinstance(place, (str, bytes, os.PathLike)) or not error.strerror:
            raise
        # What the system refuses of a file that was there, or could be used, a moment ago, or that nothing asked for sooner.
        _fail(f"{short(os.fsdecode(place))} cannot be used: {error.strerror}; name another, or mend it", 2)
    finally:
        release_all()


def _show_usage_error(error: Any, file: Any = None) -> None:
    """A wrong option or command in one line, as every other wrong input; click prints three."""
    where = error.ctx.command_path if error.ctx is not None else "dcoder"
    message = _with_value(error).rstrip(".")
    name = str(getattr(error, "option_name", None) or "")
    takes = error.ctx is not None and any(one.param_type_name == "argument" for one in error.ctx.command.params)
    if takes and (name.lstrip("-")[:1].isdecimal() or not name.lstrip("-").replace("-", "").isalnum()) and name:
        message = (
            f"{message.partition(' (')[0]}; if it is no option, write -- before it: `{where} ... -- {short(name)}`"
        )
    print(f"error: {clipped(visible(one_line(message)))}; see `{where} --help`", file=file or sys.stderr)


def _with_value(error: Any) -> str:
    """The message of a wrong option, with the value, which typer leaves out, and the nearest of its choices."""
    message = str(error.format_message()).replace("Value error, ", "")
    wrong = error.__cause__ or error.__context__
    try:
        found = wrong.errors()[0]  # pydantic's
        value = found["input"]
    except (AttributeError, LookupError, TypeError):
        return message
    head, _, rest = message.partition(": ")
    if " is not one of " in rest:
        from difflib import get_close_matches

        close = get_close_matches(str(value), [one for one in rest.split("'")[3::2] if one], n=1, cutoff=0.5)
        return message.rstrip(".") + (f"; did you mean {close[0]!r}?" if close else "")
    kinds = {"int": "a whole number", "float": "a number"}
    kind = kinds.get(str(found.get("type", "")).partition("_")[0])
    return f"{head}: {short(value)} is not {kind}" if kind else f"{head}: {short(value)}: {rest}"


_GRACE = 10.0  # seconds in which the first process would have failed too, if what is wrong is wrong for all


def _fail(message: str, code: int) -> None:
    """Say what is wrong, once: the first process, or the one that it is wrong for, when the launcher has not ended it by then."""
    message = clipped(visible(message))
    told = os.environ.get("RANK", "0")
    rank = int(told) if told.isdecimal() else 0
    if rank and code != STOPPED:
        time.sleep(_GRACE)
        print(f"error: process {rank}: {message}", file=sys.stderr)
    elif not rank:
        print(f"error: {message}", file=sys.stderr)
    sys.exit(code)

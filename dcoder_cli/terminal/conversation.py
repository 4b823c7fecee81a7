"""`dcoder chat` at a terminal or in a pipe: reading turns, showing answers."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dcoder_cli.base import console
from dcoder_cli.base.errors import UserError
from dcoder_cli.model.text import continuation
from dcoder_cli.terminal.chat import COMMANDS, Answer, Quit, Session, command
from dcoder_cli.terminal.remarks import empty_note
from dcoder_cli.terminal.screen import can_draw
from dcoder_cli.terminal.watch import StepPlan, Watch

HISTORY = 1000  # lines kept (ours)


class Turn(NamedTuple):
    """What was typed; `quoted` text, in triple quotes, is never a command."""

    text: str
    quoted: bool


def converse(session: Session, watch: bool = True, json: bool = False) -> None:
    """Talk until the input ends.

    From a terminal, an error or Ctrl-C ends the answer and the talk goes on; a script (stdin is no terminal) ends at its
    first error. Answers go to stdout, all else to stderr.

    Args:
        session: the conversation.
        watch: show answers being denoised, where stdout is a terminal that can; else text as it settles from the left.
        json: print the trajectory record of each answer instead.

    Raises:
        UserError: in a script.
    """
    typed = sys.stdin.isatty()
    with _line_editing() if typed and sys.stdout.isatty() else contextlib.nullcontext():
        if typed:
            console.note(f"{console.visible(session.model.name)}: /help lists the commands, Ctrl-D leaves")
        while True:
            try:
                turn = read_turn(_typed_line if typed else _piped_line)
                if not turn.text.strip():
                    continue
                if turn.text.startswith("/") and not turn.quoted:
                    console.note(console.visible(command(session, turn.text)))
                    continue
                _answer(session, turn.text, watch, json)
            except (EOFError, Quit):
                break
            except UserError as error:
                if not typed:
                    raise
                console.note(console.visible(f"error: {error}"))
            except KeyboardInterrupt:
                if not typed:
                    raise
                console.note("\n(stopped; Ctrl-D or /quit leaves)")
        if typed:
            console.note("")


def read_turn(read_line: Callable[[bool], str]) -> Turn:
    r"""One turn: a line, lines joined where one ends with `\`, or all between triple quotes.

    Args:
        read_line: called with whether a turn goes on; raises EOFError at the end of the input.

    Raises:
        EOFError: no turn is left. A turn that the end cuts off counts.
    """
    line = read_line(False)
    quoted = line.startswith('"""')
    lines = []
    with contextlib.suppress(EOFError):
        if quoted:
            line = line[3:]
            while not line.rstrip().endswith('"""'):
                lines.append(line)
                line = ""
                line = read_line(True)
            line = line.rstrip()[:-3]
        else:
            while line.endswith("\\"):
                lines.append(line[:-1])
                line = ""
                line = read_line(True)
    return Turn("\n".join([*lines, line] if line or not quoted else lines), quoted)


def _typed_line(goes_on: bool) -> str:
    prompt = "... " if goes_on else ">>> "
    if not sys.stdout.isatty():  # input() would write the prompt among the answers
        sys.stderr.write(prompt)
        sys.stderr.flush()
        prompt = ""
    return input(prompt)


def _piped_line(goes_on: bool) -> str:
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise UserError(f"what was said is not UTF-8 ({error.reason}); convert it") from None
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def _answer(session: Session, text: str, watch: bool, json: bool) -> None:
    if json or not sys.stdout.isatty():
        answer = session.ask(text)
        if json:
            console.emit_json(answer.trajectory.to_json())
        else:
            console.emit_text(answer.trajectory.text)
        _remarks(session, answer, numbers=False)
        return
    if watch and can_draw(sys.stdout):
        with Watch(StepPlan.of(session.model, session.settings)) as viewer:
            answer = session.ask(text, viewer.on_commit)
        console.write_terminal(viewer.coloured(answer.trajectory) + "\n")
    else:
        stream = Stream(session, console.write_terminal)
        answer = session.ask(text, stream.on_commit)
        stream.finish(answer.trajectory.text)
    sys.stdout.flush()
    _remarks(session, answer, numbers=True)


def _remarks(session: Session, answer: Answer, numbers: bool) -> None:
    settings = answer.trajectory.settings
    if answer.forgotten:
        many = "oldest turn is" if answer.forgotten == 1 else f"{answer.forgotten} oldest turns are"
        console.note(f"note: the {many} beyond the context of {session.model.max_length} and not seen by the model")
    empty = empty_note(session.model, [answer.trajectory], in_chat=True)
    if empty is not None:
        console.note(f"note: {empty}")
    if not settings["finished"]:
        console.note(f"note: no end within {session.settings.max_new_tokens} tokens; /set max_new_tokens=N allows more")
    if numbers:
        tokens = len(answer.trajectory.tokens)
        rate = tokens / max(settings["seconds"], 1e-9)
        console.stderr().print(
            f"{tokens} tokens in {settings['forwards']} forwards, {rate:,.0f} tok/s", markup=False, style="dim"
        )


class Stream:
    """Writes an answer as it settles from the left: token by token of an AR model, block by block of a block sampler."""

    def __init__(self, session: Session, write: Callable[[str], None]) -> None:
        self.session = session
        self.stops, self.mask = session.model.ids.stops, session.model.ids.mask
        self.write = write
        self.known: dict[int, int] = {}
        self.settled: list[int] = []
        self.written = ""
        self.ended = False

    def on_commit(self, step: int, row: int, positions: list[int], tokens: list[int]) -> None:
        """What the answer's row has committed; see `denoise.OnCommit`."""
        for position, token in zip(positions, tokens, strict=True):
            if token != self.mask:
                self.known[position] = token
        before = len(self.settled)
        while not self.ended and (token := self.known.pop(len(self.settled), None)) is not None:  # type: ignore[arg-type]
            self.ended = token in self.stops
            if not self.ended:
                self.settled.append(token)
        if len(self.settled) > before:
            text = continuation(self.session.model.tokenizer, self.session.prompt, self.settled)
            self._more(text.rstrip("\ufffd"))  # the rest of a character may be on its way

    def finish(self, text: str) -> None:
        """Write what is left of the answer's text and a line end."""
        if text.startswith(self.written):
            self._more(text)
        else:  # a tokenizer whose pieces do not add up to the text: the whole once more
            self.write("\n" + console.visible(text))
        self.write("\n")

    def _more(self, text: str) -> None:
        if len(text) > len(self.written):
            self.write(console.visible(text[len(self.written) :]))
            sys.stdout.flush()
            self.written = text


def history_file() -> Path:
    """Where typed lines are remembered: the XDG state folder, ~/.local/state by default."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = (
        Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    )  # the standard ignores relative ones
    return base / "dcoder" / "history"


@contextlib.contextmanager
def _line_editing() -> Iterator[None]:
    """Arrow keys, completion of /commands, and the typed lines of earlier talks (readable by the user alone)."""
    try:
        import readline
    except ImportError:  # a Python built without it
        yield
        return
    file = history_file()
    readline.clear_history()
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_completer_delims(" ")
    readline.set_completer(_completer(readline))
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        readline.set_history_length(HISTORY)
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)
            readline.write_history_file(file)
        except OSError as error:
            console.warn(f"the input history {str(file)!r} cannot be written: {error.strerror}")


def _completer(readline: Any) -> Callable[[str, int], str | None]:
    def complete(text: str, state: int) -> str | None:
        if readline.get_begidx() or not text.startswith("/"):
            return None
        return next(iter([name for name in COMMANDS if name.startswith(text)][state:]), None)

    return complete

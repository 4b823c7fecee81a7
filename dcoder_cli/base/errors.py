"""The ways a command ends badly: the user's input is wrong (2), the work failed (1), or it was stopped (130)."""


class UserError(ValueError):
    """The input is wrong. One line: what, the value, what to do. Exit code 2."""


class WorkFailed(RuntimeError):
    """The input was right but the work could not be done. One line. Exit code 1."""


STOPPED = 130  # as a shell tells of Ctrl-C, and typer where nothing says how to go on


class StoppedByUser(WorkFailed):
    """Ctrl-C, or a polite kill, ended the work. One line: how to go on. Exit code 130, as of every stopped command."""


def valid_text(text: str) -> str:
    """`text` that every file, terminal and program takes: lone surrogates and control characters become escapes."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if text.isprintable() else text.translate(_ESCAPES)


_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def one_line(text: object) -> str:
    """`text` on one line: white space folded."""
    return " ".join(str(text).split())

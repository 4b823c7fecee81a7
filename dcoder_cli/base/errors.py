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


_LONGEST = 1000  # characters of a message (ours): a wrong value may be a whole file


def clipped(text: str) -> str:
    """`text` with its middle left out where it is long: what is wrong stands at its beginning, the remedy at its end."""
    if len(text) <= _LONGEST:
        return text
    begin, end = 3 * _LONGEST // 5, 3 * _LONGEST // 10
    return f"{text[:begin]} ..({len(text) - begin - end:,} characters).. {text[-end:]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory of the machine or of a device was not to be had; torch has its own words."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(part in str(error).lower() for part in words)
    )

"""The two ways a command ends badly: the user's input is wrong (2), or the work failed (1)."""


class UserError(ValueError):
    """The input is wrong. One line: what, the value, what to do. Exit code 2."""


class WorkFailed(RuntimeError):
    """The input was right but the work could not be done. One line. Exit code 1."""


def one_line(text: object) -> str:
    """`text` on one line: white space folded."""
    return " ".join(str(text).split())

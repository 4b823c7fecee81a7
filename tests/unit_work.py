"""Units of work for processes that are spawned: they import this by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path


def work(folder: str, unit: str, tell: Callable[[str], None]) -> None:
    """Train for a minute, or fail or be killed once another trains, or end."""
    from dcoder_cli.base.errors import UserError
    from dcoder_cli.training.stopping import stoppable

    training = Path(folder) / "trains"
    if unit == "trains":
        with stoppable() as stop:
            tell(unit)
            training.touch()
            until = time.monotonic() + 60
            while not stop.asked and time.monotonic() < until:
                time.sleep(0.01)
        return
    while unit != "idle" and not training.exists():
        time.sleep(0.01)
    if unit == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if unit == "fails":
        tell(unit)
        raise UserError("no sandbox")

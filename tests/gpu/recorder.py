"""A pytest plugin of `run.py`: each test's outcome as a line in a file as it comes, and no test begun when the time is up."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import pytest
from run import LATE

_DEADLINE = float(os.environ.get("DCODER_GPU_DEADLINE", "inf"))  # of time.time()


def _write(**line: Any) -> None:
    with open(os.environ["DCODER_GPU_LOG"], "a", encoding="utf-8") as handle:
        handle.write(json.dumps(line) + "\n")


def pytest_collection_finish(session: pytest.Session) -> None:
    _write(collected=len(session.items))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(test=report.nodeid, outcome="error", seconds=0.0, why=str(report.longrepr).strip().splitlines()[-1])


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > _DEADLINE:
        pytest.skip(LATE)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.passed:
        return
    why = ""
    if report.skipped and isinstance(report.longrepr, tuple):
        why = str(report.longrepr[2]).removeprefix("Skipped: ")
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = str(crash.message if crash is not None else report.longrepr)[-2000:]
    _write(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 3), why=why)


def pytest_runtest_logfinish(nodeid: str) -> None:
    """What a failed test's traceback holds on the card is needed by the next test."""
    sys.last_traceback = sys.last_value = sys.last_exc = None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized() and torch.cuda.memory_reserved() > 2**30:
        from places import tidy

        tidy()

"""How a run was started: the command line, when, where, and by which code. Nothing heavy is imported."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("dcoder", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "peft")


def environment() -> dict[str, Any]:
    """Versions and machine of this process."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": versions,
        "command": sys.argv[1:],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def started(device: str | None = None, preset: str | None = None) -> dict[str, Any]:
    """One start of a run, for the list in environment.json.

    Args:
        device: what it trains on, a GPU by its name; only who imports torch can know.
        preset: the preset that its settings began with, None where they came from elsewhere (a resumed run keeps its own).
    """
    return {
        **environment(),
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": _command_line(),
        "folder": os.getcwd(),
        "preset": preset,
        "host": platform.node(),
        "device": device,
        "commit": commit(),
    }


def _command_line() -> str:
    """Ready to paste into a shell."""
    name = Path(sys.argv[0]).name
    return shlex.join(["dcoder" if name == "__main__.py" else name, *sys.argv[1:]])


def commit() -> str | None:
    """The commit of dcoder's own checkout, with `-dirty` where its files were changed; None where it is installed from a package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # another repository may hold the environment that dcoder is installed in
        return None
    try:
        told = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None

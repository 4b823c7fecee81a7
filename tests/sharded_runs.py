"""Real processes under FSDP2 on CPUs: what tests of sharded training start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as Accelerate's launcher sets them


def launched(
    processes: int, arguments: Sequence[str | Path], fsdp: bool = True, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`dcoder ARGUMENTS` on so many gloo processes."""
    done = subprocess.run(
        command(processes, arguments), capture_output=True, text=True, timeout=400, env=env(fsdp, **environment)
    )
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


def command(processes: int, arguments: Sequence[str | Path]) -> list[str]:
    launch = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "dcoder_cli"]
    return [sys.executable, "-m", *launch, *map(str, arguments)]


def env(fsdp: bool = True, **more: str) -> dict[str, Any]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **(FSDP if fsdp else {}), **more}

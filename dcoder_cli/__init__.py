"""dcoder: masked-diffusion language models for code, from training to scores.

Importing this package loads nothing heavy; the names below load when first used. It also bounds how long OpenMP's threads
spin while they wait (`_bound_waiting`). A runtime reads that when it loads, so import dcoder_cli before torch; where torch
is there already, this process waits as before and only those that it starts follow.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcoder_cli.analysis.arness import arness
    from dcoder_cli.base.readers import read_metrics, read_results, read_samples, read_trajectories
    from dcoder_cli.decoding.sampler import generate
    from dcoder_cli.execution.judge import judge
    from dcoder_cli.model.loading import load

__version__ = "0.1.0"
__all__ = ["arness", "generate", "judge", "load", "read_metrics", "read_results", "read_samples", "read_trajectories"]

_HOME = {
    "arness": "dcoder_cli.analysis.arness",
    "load": "dcoder_cli.model.loading",
    "generate": "dcoder_cli.decoding.sampler",
    "judge": "dcoder_cli.execution.judge",
    "read_metrics": "dcoder_cli.base.readers",
    "read_results": "dcoder_cli.base.readers",
    "read_samples": "dcoder_cli.base.readers",
    "read_trajectories": "dcoder_cli.base.readers",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dcoder_cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


def _bound_waiting() -> None:
    """A short spin for OpenMP's waiting threads, then sleep, unless the user has said how they wait.

    A thread that spins keeps its core: alone that costs nothing, but beside another process threads spin on the time
    that the working one needs. libgomp (torch's Linux wheels) spins 300,000 times by default, milliseconds, and LLVM's
    runtime (macOS; Intel's is the same code: Windows, conda) 200 ms. Neither reads the other's variable.
    Measured on 2 cores, stage 4's rollouts of 128, seconds idle / beside a busy loop: libgomp's default 0.84 / 29 to 70;
    1000 spins 0.88 / 1.66; 5000 0.87 / 2.84; none (OMP_WAIT_POLICY=PASSIVE) 1.15 / 1.33. Milliseconds
    a training step of 0.9 million parameters on 512 tokens, idle / beside one / two busy loops: libgomp's default
    24 / 190 to 480 / 70 to 100 and up to 5,700 beside eight; 1000 spins 41 / 55 / 55 and 135: where regions are that short
    the spin is worth having, and a user alone on a machine may set GOMP_SPINCOUNT higher. LLVM's runtime (Intel's build
    under torch on Linux): 200 ms 24 / 60 / 1370; 1 ms 24 / 58 / 55, once 840; 0 57 / 43 / 43.
    https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html, and for LLVM, whose number is in milliseconds,
    https://reviews.llvm.org/D157646. OMP_WAIT_POLICY is every runtime's and weaker than either variable, so where a user
    has set it we set none (https://reviews.llvm.org/D18577).
    """
    users = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
    if not any(os.environ.get(name) for name in users):
        os.environ.update(GOMP_SPINCOUNT="1000", KMP_BLOCKTIME="1")


_bound_waiting()  # here and not in base/: the sandbox has this file, and of the rest only execution/

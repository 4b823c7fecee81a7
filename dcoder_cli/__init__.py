"""dcoder: masked-diffusion language models for code, from training to scores.

Importing this package loads nothing heavy; the names below load when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcoder_cli.analysis.arness import arness
    from dcoder_cli.diffusion.sampler import generate
    from dcoder_cli.execution.judge import judge
    from dcoder_cli.model.backbone import load

__version__ = "0.1.0"
__all__ = ["arness", "generate", "judge", "load"]

_HOME = {
    "arness": "dcoder_cli.analysis.arness",
    "load": "dcoder_cli.model.backbone",
    "generate": "dcoder_cli.diffusion.sampler",
    "judge": "dcoder_cli.execution.judge",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dcoder_cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

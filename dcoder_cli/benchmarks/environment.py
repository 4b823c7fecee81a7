"""What works here: versions, GPUs, the sandbox's tier and why, the hub, and which benchmarks' data is found."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
import urllib.error
import urllib.request
from typing import Any

from dcoder_cli.base.errors import one_line
from dcoder_cli.base.machine import cores
from dcoder_cli.benchmarks import data, suites
from dcoder_cli.execution import landlock, sandbox

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers", "numpy")
# What some settings need, and what to install for it.
_OPTIONAL = {"peft": "dcoder[lora]", "bitsandbytes": "dcoder[gpu]", "liger-kernel": "dcoder[gpu]", "torchao": "torchao"}
_HUB_SECONDS = 3.0
_TIERS = {
    "A": "bubblewrap, limits, Landlock, seccomp",
    "B": "limits, Landlock, seccomp, and namespaces by hand where the kernel gives them",
    "C": "limits only: model-written code is refused without --unsafe-exec",
}


def describe(hub: bool = True) -> dict[str, Any]:
    """The state of this machine as plain values. Tries the sandbox (0.5 s) and, with `hub`, asks the hub (at most 3 s)."""
    return {
        "dcoder": importlib.metadata.version("dcoder"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": cores(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "optional": {name: {"version": _version(name), "install": what} for name, what in _OPTIONAL.items()},
        "gpu": _gpu(),
        "flash_attn": _flash(),
        "sandbox": _sandbox(),
        "hub": _hub() if hub else "not asked",
        "benchmarks": {source.name: _where(source) for source in suites.sources().values()},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> list[dict[str, Any]]:
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found.append(
            {
                "name": about.name,
                "memory_gib": round(about.total_memory / 2**30, 1),
                "compute_capability": f"{about.major}.{about.minor}",
            }
        )
    return found


def _flash() -> dict[str, Any]:
    """Whether flash-attn is installed and can be loaded: a wheel for another torch installs and then does not."""
    if importlib.util.find_spec("flash_attn") is None:
        return {"version": None, "loads": False, "why": "not installed (pip install 'dcoder[flash]')"}
    try:
        importlib.import_module("flash_attn")
    except Exception as error:  # a broken extension raises ImportError, OSError, RuntimeError, ...
        return {"version": _version("flash_attn"), "loads": False, "why": one_line(error)[:200]}
    return {"version": _version("flash_attn"), "loads": True, "why": ""}


def _sandbox() -> dict[str, Any]:
    tried = sandbox.tiers()
    tier = sandbox.best_tier()
    return {
        "tier": tier,
        "means": _TIERS[tier],
        "why_not_better": {name: why for name, why in tried.items() if why},
        "bubblewrap": sandbox.bubblewrap(),
        "landlock": landlock.version() if sys.platform == "linux" else 0,
    }


def _hub() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "offline (HF_HUB_OFFLINE is set)"
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_HUB_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        return f"offline ({address}: {one_line(getattr(error, 'reason', error))})"
    return f"online ({address})"


def _where(source: data.BenchmarkSource) -> str | None:
    path = data.locate(source)
    if path is not None:
        return str(path)
    return f"hub:{source.hub}" if source.hub else None

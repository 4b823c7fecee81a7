"""`dcoder` in which one process gets a value that is not finite: run as a script, with POISON and TALLY set.

POISON: "module function call rank what value": the result of that call on that rank has its loss, or only its gradient, set to
nan or inf. TALLY: a file, one for each rank, that says in the end how many times the optimiser moved the weights.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def _poisoned(values: Tensor, what: str, value: float) -> Tensor:
    if what == "loss":
        return values * value
    values = values * 1.0
    values.register_hook(lambda gradient: gradient * value)  # type: ignore[no-untyped-call]
    return values


def _poison(module: str, function: str, call: str, what: str, value: str) -> None:
    home = importlib.import_module(module)
    real, calls = getattr(home, function), 0

    def deadly(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        result = real(*arguments, **options)
        if calls != int(call):
            return result
        if isinstance(result, tuple):  # of token_losses
            return _poisoned(result[0], what, float(value)), *result[1:]
        return dataclasses.replace(result, loss=_poisoned(result.loss, what, float(value)))

    setattr(home, function, deadly)


if __name__ == "__main__":
    rank, updates = os.environ.get("RANK", "0"), 0
    if os.environ.get("POISON"):
        module, function, call, where, what, value = os.environ["POISON"].split(" ")
        if where == rank:
            _poison(module, function, call, what, value)
    step = torch.optim.AdamW.step

    def counted(*arguments: Any, **options: Any) -> Any:
        global updates
        updates += 1
        return step(*arguments, **options)

    torch.optim.AdamW.step = counted  # type: ignore[method-assign]
    from dcoder_cli.main import main

    try:
        main()
    finally:
        Path(f"{os.environ['TALLY']}-{rank}").write_text(str(updates))

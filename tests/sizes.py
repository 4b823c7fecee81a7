"""The generated part of docs/sizes.md: `python tests/sizes.py` writes it, tests/test_memory.py checks it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from dcoder_cli.base import presets
from dcoder_cli.training.memory.ask import FitQuestion, answer, table

FILE = Path(__file__).resolve().parent.parent / "docs" / "sizes.md"
# From the smallest machine to the largest.
ORDER = ("cpu-tiny", "gpu-16gb", "gpu-24gb", "gpu-80gb", "gpu-80gb-lora", "8x80gb", "released", "paper")


def fits() -> str:
    """What `dcoder presets fit --preset NAME` prints, for every preset."""
    assert set(ORDER) == set(presets.names()), "a preset more or fewer: name it in ORDER"
    parts = ["\n".join(table(answer(FitQuestion(preset=name)))) for name in ORDER]
    return "```\n" + "\n\n".join(parts) + "\n```"


def fill(text: str) -> str:
    """`text` with the generated part brought up to date."""
    made = fits()
    return re.sub(r"(<!-- fits -->\n).*?(<!-- /fits -->)", lambda m: f"{m[1]}{made}\n{m[2]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    FILE.write_text(fill(FILE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)

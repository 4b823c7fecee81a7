"""What `quickstart --model` is asked, and what it takes where nothing is said."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcoder_cli.experiments.stages import EXCLUDED

RECORD = "quickstart.json"
STAGES = ("adapt", "mid", "sft", "grpo")
LABELS = {
    "ar": "the AR model", "converted": "converted", "adapt": "stage 1", "mid": "stage 2", "sft": "stage 3", "grpo": "stage 4",
}  # fmt: skip
MICRO_SHARE, FRAGMENT_SHARE = (
    0.45,
    0.35,
)  # of the instruction rows (ours); the rest are requests and gaps, or micro's too
# How many times the tokens that are trained on the corpus has, up to so many tokens, and twice them beyond (ours): its rows
# are of many files, and few functions are short enough for an instruction row.
SPARE, SPARE_TOKENS = 32, 5_000_000
HELDOUT = {
    True: 0.04,
    False: 0.01,
}  # share of documents held out, of a corpus that is given and of the installed Python (ours)
# Ours. Stage 1, by trials of 40 steps of 512 tokens with SmolLM2-135M, held-out loss: 1e-4 5.26, 3e-4 5.21, 8e-4 4.99, 2e-3
# 7.59; the paper's 7B takes 2e-5. Stage 2: at 3e-4 it rose, 4.73 to 4.88. The others were not tried against any.
LEARNING_RATE = {"adapt": 6e-4, "mid": 1e-4, "sft": 3e-4, "grpo": 2e-5}


@dataclass(frozen=True)
class GivenSettings:
    """What was asked. `corpus`: folders or files of code; none: the Python sources installed here."""

    model: str
    out: Path
    minutes: float
    corpus: tuple[str, ...] = ()
    seed: int = 0
    device: str | None = None
    unsafe: bool = False

    def to_json(self) -> dict[str, Any]:
        """What a run that goes on must be asked again."""
        return {
            "model": self.model, "minutes": self.minutes, "corpus": list(self.corpus), "seed": self.seed,
            "device": self.device,
        }  # fmt: skip


def corpus_of(settings: GivenSettings) -> tuple[str, ...]:
    """The sources of the corpus."""
    if settings.corpus:
        return settings.corpus
    paths = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")]
    # What is installed often lies below the library itself, and would be read twice.
    return tuple(
        str(path) for path in paths if not any(path != other and path.is_relative_to(other) for other in paths)
    )


# Of the Python installed here: its packages are learned from too.
LEFT_OUT = tuple(name for name in EXCLUDED if not name.endswith("-packages"))

"""Real runs whose memory is measured: `python tests/memory_runs.py '{"kind": "train", ...}'` prints the peak in bytes.

Measured is the peak of what PyTorch's CPU allocator holds: every allocation and release that the profiler reports
(`profile_memory`), added up in order from before the model is read. The resident size of the process would count what the
system's allocator keeps for later, imports and threads' stacks; live tensors alone would miss what kernels take inside.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "8M": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 768, "vocab_size": 8192},
    "30M": {"hidden_size": 448, "num_hidden_layers": 10, "num_attention_heads": 7, "num_key_value_heads": 7, "intermediate_size": 1280, "vocab_size": 16384},
    "135M": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152},
}  # fmt: skip


class Enough(Exception):
    """The steps that are measured are over."""


class Peak:
    """The allocator's peak between `start` and `stop`."""

    def __init__(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.at: dict[str, float] = {}

    def start(self) -> None:
        self.profile.start()

    def stop(self) -> int:
        self.profile.stop()
        changes = [
            (event.start_ns(), event.nbytes())
            for event in self.profile.profiler.kineto_results.events()  # type: ignore[union-attr]
            if event.name() == "[memory]"
        ]
        held = peak = 0
        for _, change in sorted(changes, key=lambda one: one[0]):
            held += change
            peak = max(peak, held)
        return peak


def main(asked: dict[str, Any]) -> int:
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    from helpers import make_model, make_shards, make_tokenizer

    from dcoder_cli.base.config import build
    from dcoder_cli.training.config import StageConfig

    peak = Peak()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        tokenizer = make_tokenizer()
        shape = dict(SHAPES[asked["shape"]])
        make_model(place / "model", ar=asked.get("stage") == 0, tokenizer=tokenizer, context=4096, **shape)
        said = json.loads((place / "model" / "config.json").read_text())
        said.setdefault("dcoder", {})["stage"] = "sft"  # or LoRA would not train it
        (place / "model" / "config.json").write_text(json.dumps(said))
        if asked["kind"] == "train":
            from dcoder_cli import load
            from dcoder_cli.training.denoise import train

            stage = asked["stage"]
            kind = "sft" if stage == 3 else "pretrain"
            tokens = load(place / "model", device="cpu").tokenizer if stage == 3 else tokenizer
            make_shards(place / "data", tokens, kind, rows=32, length=asked["length"])
            config = build(
                StageConfig, {"t_min": 0.999, "steps": 4, "evaluate_every": 0, "checkpoint_every": 0}, asked["config"]
            )

            def on_step(step: int, total: int, loss: float) -> None:
                if step == 2:
                    raise Enough

            peak.start()
            with contextlib.suppress(Enough):
                train(
                    stage, str(place / "model"), str(place / "data"), str(place / "run"), config, device="cpu", quiet=True,
                    on_step=on_step,
                )  # fmt: skip
            return peak.stop()
        if asked["kind"] == "generate":
            from dcoder_cli import load
            from dcoder_cli.decoding.requests import Settings
            from dcoder_cli.decoding.sampler import decode

            settings = build(Settings, asked["config"])
            prompts = [[5 + (7 * row + at) % 200 for at in range(asked["prompt"])] for row in range(asked["rows"])]
            peak.start()
            decode(load(place / "model", device="cpu"), prompts, settings, batch_size=asked["rows"])
            return peak.stop()
        if asked["kind"] == "grpo":
            return grpo(place, tokenizer, asked, peak)
        raise ValueError(asked["kind"])


def grpo(place: Path, tokenizer: Any, asked: dict[str, Any], peak: Peak) -> int:
    """Two steps of stage 4 with a reward of our own, from the model's reading to the second update's end."""
    from helpers import make_prompts

    from dcoder_cli.base.config import build
    from dcoder_cli.training.grpo.config import GrpoConfig
    from dcoder_cli.training.grpo.train import train

    (place / "memory_reward.py").write_text(
        "def vowels(prompt, text):\n    return sum(c in 'aeiou' for c in text) / 8\n"
    )
    sys.path.insert(0, str(place))
    prompts = [{"task_id": f"t{i}", "prompt": "x = 1\n" * (asked["prompt"] // 6) + "y" * i} for i in range(4)]
    data = make_prompts(place / "data", prompts)
    plain = {"steps": 4, "rewards": {"memory_reward:vowels": 1.0}, "samples_every": 0, "checkpoint_every": 0}
    config = build(GrpoConfig, plain, asked["config"])

    def on_step(step: int, total: int, metrics: dict[str, float]) -> None:
        if step == 2:
            raise Enough

    peak.start()
    with contextlib.suppress(Enough):
        train(
            str(place / "model"), str(data), str(place / "run"), config, device="cpu", quiet=True, on_step=on_step
        )  # fmt: skip
    return peak.stop()


if __name__ == "__main__":
    print(json.dumps({"peak": main(json.loads(sys.argv[1]))}))

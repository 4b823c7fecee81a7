"""What small real runs of stage 4 need: a model, prompts, a reward, settings."""

from __future__ import annotations

from pathlib import Path

from helpers import make_model, make_prompts, make_tokenizer


def make_place(folder: Path) -> Path:
    """A random model, eight prompts and a reward function of the user's own (the share of vowels)."""
    make_model(folder / "model", tokenizer=make_tokenizer(), context=256)
    rows = [
        {
            "task_id": f"t{i}",
            "messages": [{"role": "user", "content": f"{'x' * i}?"}],
            "entry_point": "f",
            "tests": {"shown": [], "hidden": ["assert f(1) == 1"]},
        }
        for i in range(8)
    ]
    make_prompts(folder / "data", rows[:6], rows[6:])
    (folder / "reward.py").write_text("def vowels(prompt, text):\n    return sum(c in 'aeiou' for c in text) / 8\n")
    return folder


SETS = [
    "--set=steps=6", "--set=prompts_per_step=2", "--set=group_size=4", "--set=micro_batch=3", "--set=rollout.max_new_tokens=8",
    "--set=checkpoint_every=2", "--set=optimizer.learning_rate=3e-3", "--set=optimizer.warmup_steps=0", "--set=reference_sync=3", "--reward=reward:vowels=1",
    "--set=kl_coef=0.01", "--set=inner_iterations=2", "--set=rollout.mode=exact", "--set=train_embeddings=true", "--device=cpu",
]  # fmt: skip


def common(place: Path, out: Path, without: str = "nothing") -> list[str | Path]:
    """`without`: a setting that is not given."""
    sets = [one for one in SETS if not one.startswith(f"--set={without}=")]
    return ["grpo", "--model", place / "model", "--data", place / "data", "--out", out, *sets]

"""Stage 4 as real runs: what they learn, log, leave out and refuse; the variance lab."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_runs import common, make_place
from helpers import dcoder, refused

from dcoder_cli import load
from dcoder_cli.base.config import build
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.record import flat_warning


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("grpo"))


def test_a_run_learns_what_is_rewarded(place: Path, tmp_path: Path) -> None:
    long = [*common(place, tmp_path / "run", without="reference_sync"), "--set=steps=40"]
    long += ["--set=kl_coef=0", "--set=group_size=16", "--set=optimizer.learning_rate=1e-2"]
    result = json.loads(dcoder(*long, "--json", cwd=place).stdout)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rewards = [line["reward"] for line in lines if "reward" in line]
    assert sum(rewards[-5:]) > 2 * sum(rewards[:5])
    assert {
        "kl",
        "clipped_low",
        "flat_groups",
        "entropy",
        "unfinished",
        "length",
        "local_arness@1",
        "global_arness@1",
    } <= set(lines[-2])
    timing = json.loads((tmp_path / "run" / "timings.jsonl").read_text().splitlines()[0])
    assert {"rollout", "judge", "old", "reference", "update"} <= set(timing)
    assert {"reward_std", "reward_reward:vowels", "reward_reward:vowels_std"} <= set(lines[-2])
    assert result["after"]["prompts"] == 2 and load(result["checkpoint"]).config["dcoder"]["stage"] == "grpo"
    assert list((tmp_path / "run" / "samples").glob("step-*.jsonl"))


def test_a_reward_that_never_differs_is_told(place: Path, tmp_path: Path) -> None:
    """A run that learned nothing had ended as any other: done, exit 0."""
    constant = [
        one for one in common(place, tmp_path / "run") if not str(one).startswith(("--reward", "--set=reference_sync"))
    ]
    constant += ["--reward=format=1", "--set=steps=1", "--set=kl_coef=0"]
    done = dcoder(*constant, "--json", cwd=place)
    told = json.loads(done.stdout)
    assert told["flat_groups"] == 1.0 and "all completions earned the same reward" in told["warning"]
    text = flat_warning([1.0, 0.9, 1.0], {"code": 1.0}, with_kl=True)
    assert (
        text is not None
        and "in 97% of the groups of the last 3 step(s)" in text
        and "next to nothing" in text
        and "\n" not in text
    )
    assert "only the KL term moves" in str(flat_warning([1.0], {"code": 1.0}, with_kl=True))
    assert flat_warning([1.0, 0.5], {"code": 1.0}, with_kl=False) is None and flat_warning([], {}, False) is None


def test_fast_rollouts_are_whole_and_take_fewer_forwards(place: Path, tmp_path: Path) -> None:
    fast = ["--set=rollout.mode=fast", "--set=rollout.threshold=0", "--set=steps=1"]
    dcoder(*common(place, tmp_path / "run"), *fast, cwd=place)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples" / "step-1.jsonl").read_text().splitlines()]
    assert samples and all(len(sample["reveal_step"]) == 8 for sample in samples), samples[0].keys()
    assert all(set(sample["reveal_step"]) == {0} for sample in samples), "threshold 0 commits all at once"


def test_bad_input_is_one_line(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    base = ["grpo", "--out", tmp_path / "run", "--device", "cpu"]
    model, data = ["--model", place / "model"], ["--data", place / "data"]
    assert "needs --data" in refused(*base, *model)
    assert "estimator" in refused(*base, *model, *data, "--estimator", "couplet")
    assert "group_size" in refused(*base, *model, *data, "--set", "group_size=1")
    assert "temperature" in refused(*base, *model, *data, "--set", "rollout.temperature=0")
    assert "NAME=WEIGHT" in refused(*base, *model, *data, "--reward", "code")
    (place / "broken.py").write_text("def one(prompt, text):\n    return 1 / len(text)\n")
    assert "ZeroDivisionError" in refused(*base, *model, *data, "--reward", "broken:one")
    assert "context" in refused(*base, *model, *data, "--set", "rollout.max_new_tokens=300")
    assert "mode fast only" in refused(
        *base, *model, *data, "--set", "rollout.mode=exact", "--set", "rollout.threshold=0.9"
    )
    assert "rollout.temperature" in refused(*base, *model, *data, "--set", "rollout.temprature=1")
    for setting, words in (
        ("rollout.rule=entropi", "entropi"), ("rollout.top_p=1.5", "top_p"), ("rollout.top_k=0", "top_k"),
        ("steps=0", "steps = 0"), ("epochs=0", "epochs"), ("prompts_per_step=0", "prompts_per_step"),
    ):  # fmt: skip
        assert words in refused(*base, *model, *data, "--set", setting)
    assert "nothing to resume" in refused(*base, "--resume")
    lab = [*base, *model, *data, "--measure-variance"]
    assert "--draws 4 has no effect: it is of --measure-variance" in refused(*base, *model, *data, "--draws", "4")
    assert "--estimator coupled has no effect: --measure-variance measures all of ours" in refused(
        *lab, "--estimator", "coupled"
    )
    assert "--resume has no effect: --measure-variance trains nothing" in refused(*lab, "--resume")
    assert not (tmp_path / "run").exists()


def test_completions_that_teach_nothing_are_left_out_and_nothing_changes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the groups have equal rewards: with and without them the weights are the same, and fewer rows are run."""
    from dcoder_cli.training import optimizers
    from dcoder_cli.training.grpo import step
    from dcoder_cli.training.grpo import train as grpo_train

    (tmp_path / "half.py").write_text(
        "def reward(prompt, text):\n    return 1.0 if int(prompt['task_id'][1:]) % 2 else sum(map(ord, text)) % 97 / 97\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = build(
        GrpoConfig,
        {
            "steps": 1, "prompts_per_step": 6, "group_size": 3, "micro_batch": 4, "kl_coef": 0.0, "inner_iterations": 1,
            "rewards": {"half:reward": 1.0}, "rollout": {"max_new_tokens": 6}, "precision": "fp32",
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0},
        },
    )  # fmt: skip

    gradients: list[list[torch.Tensor]] = []
    set_rate = optimizers.set_learning_rate

    def keep(optimizer: Any, rate: float) -> None:
        gradients.append([weight.grad.clone() for group in optimizer.param_groups for weight in group["params"]])
        set_rate(optimizer, rate)

    monkeypatch.setattr(optimizers, "set_learning_rate", keep)

    def run(name: str) -> dict[str, float]:
        out = tmp_path / name
        grpo_train.train(str(place / "model"), str(place / "data"), str(out), config, device="cpu", quiet=True)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return next(line for line in lines if "reward" in line)

    less = run("less")
    monkeypatch.setattr(step, "_taught", lambda advantage_B, _: list(range(len(advantage_B))))
    whole = run("whole")
    assert less["skipped"] >= 0.5 and whole["skipped"] == 0
    assert less["loss"] == pytest.approx(whole["loss"], abs=1e-6) and less["reward"] == whole["reward"]
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[0])
    for one, other in zip(gradients[0], gradients[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_embeddings_and_head_stay_where_they_are_not_trained(place: Path, tmp_path: Path) -> None:
    before = dict(load(place / "model", device="cpu").named_parameters())
    for train in ("true", "false"):
        out = tmp_path / train
        dcoder(*common(place, out), "--set=steps=1", f"--set=train_embeddings={train}", cwd=place)
        after = dict(load(out / "checkpoints" / "last", device="cpu").named_parameters())
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        ends = {name for name in before if "embed_tokens" in name or "lm_head" in name}
        assert any("mlp" in name for name in moved) and (ends <= moved if train == "true" else not ends & moved)
    from dcoder_cli.training.saving import checkpoint_bytes

    folder = tmp_path / "true" / "checkpoints" / "last"  # with a reference, whose room is asked for too
    size = sum(file.stat().st_size for file in folder.resolve().rglob("*") if file.is_file())
    needed = checkpoint_bytes(load(place / "model", device="cpu"), copies=1)
    assert needed == pytest.approx(size, rel=0.3) and (folder / "training" / "reference.pt").stat().st_size > needed / 6


def test_a_repeated_text_is_judged_once_and_rewards_stay_with_their_texts(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcoder_cli.training.grpo.rewards import Rewarder
    from dcoder_cli.training.grpo.rollouts import encode_prompts, roll_out

    class Counting(Rewarder):
        def submit(self, prompt: Any, text: str) -> Any:
            asked.append((prompt["task_id"], text))
            return super().submit(prompt, text)

    (tmp_path / "length.py").write_text(
        "def reward(prompt, text):\n    return len(text) + 100 * int(prompt['task_id'][1:])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    asked: list[tuple[str, str]] = []
    model = load(place / "model", device="cpu")
    with torch.no_grad():
        model.network.lm_head.weight.mul_(40.0)  # so sure that most samples of a prompt are alike
    config = build(GrpoConfig, {"group_size": 8, "rollout": {"max_new_tokens": 4, "temperature": 0.2, "batch_size": 5}})
    prompts = [{"task_id": f"t{i}", "prompt": text} for i, text in enumerate(("def", "def", "class A"))]
    rewarder = Counting({"length:reward": 1.0}, None)
    decoded: list[int] = []
    rollouts = roll_out(
        model, prompts, encode_prompts(model, prompts, 4), 0, 0, config, rewarder, lambda: decoded.append(len(asked))
    )
    texts = [(prompts[place // 8]["task_id"], item.trajectory.text) for place, item in enumerate(rollouts)]
    assert len(asked) == len(set(asked)) < len(texts) and set(asked) == set(texts) and decoded == [len(asked)]
    for place, (item, (task, text)) in enumerate(zip(rollouts, texts, strict=True)):
        assert item.place == place and item.reward.total == len(text) + 100 * int(task[1:])


def test_the_first_step_of_a_run_has_ratio_1_and_kl_0(place: Path, tmp_path: Path) -> None:
    """In the loop itself, with a reference of its own, padded prompts and several micro-batches: exactly, then no longer."""
    dcoder(*common(place, tmp_path / "run"), "--set=steps=2", "--set=inner_iterations=1", cwd=place)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, second = [line for line in lines if "reward" in line]
    assert first["ratio"] == 1.0 and first["kl"] == 0.0 and first["grad_norm"] > 0
    assert second["ratio"] == 1.0 and second["kl"] > 0.0


def test_the_reference_is_the_policy_again_after_every_sync(place: Path, tmp_path: Path) -> None:
    kl = {}
    for sync in (0, 1, 2):
        run = tmp_path / str(sync)
        changes = ["--set=steps=4", "--set=inner_iterations=1", f"--set=reference_sync={sync}"]
        dcoder(*common(place, run), *changes, cwd=place)
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        kl[sync] = [line["kl"] > 0.0 for line in lines if "kl" in line]
    assert kl == {0: [False, True, True, True], 1: [False] * 4, 2: [False, True, False, True]}


def test_nothing_passes_where_no_reward_knows_right_from_wrong(place: Path, tmp_path: Path) -> None:
    """The share that passed and pass@1 would be 0, which says something untrue."""
    done = dcoder(*common(place, tmp_path / "run"), "--set=steps=1", cwd=place)
    assert "held-out reward 0." in done.stdout and "pass@1" not in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and not any("passed" in line or "pass@1" in line.get("heldout", {}) for line in lines)
    from dcoder_cli.analysis.training_plot import rewards

    assert rewards([line for line in lines if "reward" in line])


def test_completions_that_teach_nothing_are_left_out() -> None:
    from dcoder_cli.training.grpo.step import _taught

    free, bound = GrpoConfig(kl_coef=0.0), GrpoConfig()
    assert _taught(torch.zeros(4), free) == [] and _taught(torch.zeros(4), bound) == [0, 1, 2, 3]
    assert _taught(torch.tensor([0.0, 1.0, 0.0, -1.0]), free) == [1, 3]


@pytest.mark.slow
def test_the_variance_lab_measures_what_the_theory_says(place: Path, tmp_path: Path) -> None:
    """Coupled and decoupled estimate one thing, coupled with less variance; the full mask has none, d1 another target."""
    out = tmp_path / "lab"
    lab = json.loads(
        dcoder("grpo", "--measure-variance", "--draws", "48", "--json", *common(place, out)[1:], cwd=place).stdout
    )
    rows = {(row["estimator"], row["pairs"]): row for row in lab["rows"]}
    assert set(rows) == {("full-mask", 0), *((name, n) for name in ("coupled", "decoupled", "d1") for n in (1, 2, 4))}
    assert [rows[name, n]["passes"] for name, n in (("full-mask", 0), ("coupled", 1), ("d1", 4))] == [1, 3, 9]
    for pairs in (1, 2, 4):
        coupled, decoupled = rows["coupled", pairs], rows["decoupled", pairs]
        assert coupled["variance"] < 0.7 * decoupled["variance"] and coupled["unseen"] == 0
        assert coupled["bias"] < 0.3 * coupled["variance"] ** 0.5
        assert decoupled["bias"] < 0.3 * decoupled["variance"] ** 0.5
        for row in (coupled, decoupled):
            assert row["error"]["own"] == row["variance"] <= min(row["error"]["path"], row["error"]["masks"])
    assert 0 < lab["masks_standard_error"] < 0.2
    assert rows["full-mask", 0]["error"]["own"] == 0 < rows["full-mask", 0]["error"]["path"]
    assert rows["coupled", 4]["variance"] < rows["coupled", 1]["variance"] / 2
    assert rows["full-mask", 0]["variance"] == 0 and rows["full-mask", 0]["gradient_noise"] == 0
    assert rows["coupled", 1]["gradient_cosine"] > rows["d1", 1]["gradient_cosine"]
    assert (out / "variance.png").stat().st_size > 10_000 and {
        "schema_version": 1,
        **json.loads((out / "variance.json").read_text()),
    } == lab
    assert "exists already" in refused("grpo", "--measure-variance", *common(place, out)[1:])
    adapter = ["--set=lora.rank=4", "--set=reference_sync=0", f"--out={tmp_path / 'other'}"]
    assert "leave lora out" in refused("grpo", "--measure-variance", *common(place, out)[1:], *adapter)

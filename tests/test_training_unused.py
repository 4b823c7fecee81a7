"""Settings of a training that `--set` gives in vain: each changes nothing that a step computes, and something elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_model, make_shards, make_tokenizer

from dcoder_cli.base.config import build, parse_assignments
from dcoder_cli.base.errors import UserError
from dcoder_cli.data.batches import RowOrder, RowRules
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.diffusion.coupled import MaskSettings
from dcoder_cli.diffusion.estimators import make_passes
from dcoder_cli.model.loading import load
from dcoder_cli.training import optimizers, unused
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.feed import Feed
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.loss import grpo_loss
from dcoder_cli.training.grpo.reference import make_reference
from dcoder_cli.training.grpo.rewards import Rewarder
from dcoder_cli.training.objective import TokenLoss, token_losses

CPU = torch.device("cpu")
BASE = {"steps": 20, "global_batch": 4, "micro_batch": 4, "precision": "fp32"}
# A setting, and the settings under which it is tried.
STAGE_CASES: list[tuple[str, dict[str, Any]]] = [
    ("anneal_steps=9", {}), ("conditional_phase_in=50.0", {}), ("isolate_documents=true", {}), ("weighting=uniform", {}),
    ("normalizer=masked", {}), ("t_min=0.5", {}), ("stratified_t=true", {}), ("cart_p=0.3", {}),
    ("cart_p=0.3", {"weighting": "cart"}), ("epochs=9", {}), ("epochs=9", {"steps": None}),
    ("optimizer.warmup_steps=7", {"optimizer": {"warmup_ratio": 0.1}}), ("optimizer.warmup_steps=7", {}),
    ("optimizer.floor=0.7", {"optimizer": {"schedule": "constant", "warmup_steps": 2}}),
    ("optimizer.floor=0.7", {"optimizer": {"warmup_steps": 2}}),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unused")
    tokenizer = make_tokenizer()
    make_model(folder / "m", tokenizer=tokenizer)
    make_shards(folder / "pretrain", tokenizer)
    make_shards(folder / "sft", load(folder / "m").tokenizer, "sft")
    return folder


def refused(assignment: str, stage: int, config: Any) -> bool:
    try:
        unused.refuse([assignment], stage, config)
    except UserError as error:
        assert str(error).startswith(f"--set {assignment} has no effect: ")
        return True
    return False


def computed(place: Path, stage: int, config: StageConfig) -> list[float]:
    """Losses of a step's tokens times their weights, its denominator, the steps of the run and their learning rates."""
    model = load(place / "m")
    shards = ShardSet.open(place / ("sft" if stage == 3 else "pretrain"), "train")
    rules = RowRules(
        config.seed, 0, keep_first=True, conditional_phase_in=config.conditional_phase_in if stage == 3 else 0.0
    )  # as the loop makes them
    mask_id = model.ids.mask if stage else None
    rows = Feed(shards, rules, config, stage, mask_id, RowOrder(len(shards), 0), range(4), CPU).step(3)
    (example,) = rows.examples
    _, losses_N = token_losses(TokenLoss(model), example, rows.pattern_LL, stage == 0, config.isolate_documents, CPU)
    total = config.total_steps(len(shards))
    rates = [optimizers.learning_rate(config.optimizer, step, total) for step in range(total)]
    return [*(losses_N * example.weights_N).tolist(), rows.denominator, total, *rates]


@pytest.mark.parametrize(("assignment", "under"), STAGE_CASES, ids=str)
def test_a_setting_of_a_stage_that_is_refused_changes_nothing_and_no_other_does(
    place: Path, assignment: str, under: dict[str, Any]
) -> None:
    seen = []
    for stage in range(4):
        before = build(StageConfig, BASE, under)
        after = build(StageConfig, BASE, under, parse_assignments([assignment]))
        same = computed(place, stage, before) == computed(place, stage, after)
        assert refused(assignment, stage, after) == same, (stage, assignment)
        seen.append(same)
    assert set(seen) <= {True, False}


def test_every_setting_of_the_table_is_tried(place: Path) -> None:
    tried = {assignment.partition("=")[0] for assignment, _ in STAGE_CASES}
    assert tried == {name for needs in unused.STAGES for name in needs.names}
    of_grpo = {
        "epochs",
        "optimizer.warmup_steps",
        "optimizer.floor",
        "pairs",
        "t_range",
        "prompt_mask",
        "clip",
        "format",
    }
    assert of_grpo | {"reference_sync", "reference_alpha"} == {name for needs in unused.GRPO for name in needs.names}


@pytest.mark.parametrize("estimator", ["coupled", "decoupled", "full-mask", "d1"])
@pytest.mark.parametrize("assignment", ["pairs=2", "t_range=[0.4, 0.45]", "prompt_mask=0.9"])
def test_what_an_estimator_reads(estimator: str, assignment: str) -> None:
    def passes(config: GrpoConfig) -> list[Any]:
        settings = MaskSettings(config.pairs, config.t_range, config.prompt_mask)
        drawn = make_passes(estimator, 40, 40, torch.Generator().manual_seed(1), settings)
        return [drawn.masked_PN.tolist(), drawn.weight_PN.tolist(), drawn.prompt_masked_PM.tolist()]

    before, after = (
        GrpoConfig(estimator=estimator),
        build(GrpoConfig, {"estimator": estimator}, parse_assignments([assignment])),
    )
    assert refused(assignment, 4, after) == (passes(before) == passes(after))
    assert not refused(assignment, 4, build(GrpoConfig, {"estimator": "mine:own"}, parse_assignments([assignment])))


def test_clipping_needs_a_second_update() -> None:
    new_BL = torch.linspace(-3, -1, 6).view(2, 3).requires_grad_()
    scored_BL, advantage_B = torch.ones(2, 3, dtype=torch.bool), torch.tensor([1.0, -1.0])

    def gradient(clip: float, old_BL: Any) -> list[Any]:
        loss = grpo_loss(new_BL, old_BL, None, advantage_B, scored_BL, clip)
        (found,) = torch.autograd.grad(loss.loss, new_BL)
        return found.tolist()

    assert gradient(0.5, new_BL.detach()) == gradient(0.01, new_BL.detach())
    assert gradient(0.5, new_BL.detach() - 0.3) != gradient(0.01, new_BL.detach() - 0.3)
    assert refused("clip=0.1", 4, GrpoConfig(inner_iterations=1)) and not refused("clip=0.1", 4, GrpoConfig())


def test_the_format_counts_for_code_and_format_alone() -> None:
    """A second fence is well formed in the lenient reading only."""
    text = "```python\nx = 1\n```\nand\n```python\ny = 2\n```\n7"
    for weights, same in (({"math": 1.0}, True), ({"format": 1.0}, False), ({"math": 1.0, "format": 0.5}, False)):
        earned = []
        for strict in (True, False):
            rewarder = Rewarder(weights, None, strict)
            earned.append(rewarder.result(rewarder.submit({"answer": "7"}, text)).total)
        assert (earned[0] == earned[1]) == same
        assert refused("format=lenient", 4, GrpoConfig(rewards=weights)) == same


def test_the_reference_is_of_the_kl_term() -> None:
    """Without it there is none that could be moved."""
    assert make_reference(None, GrpoConfig(kl_coef=0.0)) is None  # type: ignore[arg-type]
    for assignment in ("reference_sync=9", "reference_alpha=0.5"):
        assert refused(assignment, 4, GrpoConfig(kl_coef=0.0)) and not refused(assignment, 4, GrpoConfig())


def test_a_whole_section_is_not_looked_into_and_other_names_are_let_be() -> None:
    unused.refuse(["optimizer={floor: 0.3, schedule: constant}", "seed=3"], 1, build(StageConfig, BASE))

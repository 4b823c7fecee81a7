"""Settings of a training that change nothing, by its stage and by each other: what `--set` gives in vain. Torch-free.

That each of these really changes nothing, and something elsewhere, is tested on what a step computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dcoder_cli.base.options import Needs, given_by_set, refuse_unused
from dcoder_cli.diffusion.estimators import is_own
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig


def _masks(values: Mapping[str, Any]) -> bool:
    return bool(values["stage"])


def _estimator_reads(*names: str) -> Any:
    return lambda values: values["estimator"] in names or is_own(values["estimator"])


_BOTH = (
    Needs(("epochs",), lambda values: values["steps"] is None, "steps is set and decides; add --set steps=null, or leave it out"),
    Needs(
        ("optimizer.warmup_steps",), lambda values: values["optimizer"].warmup_ratio is None,
        "optimizer.warmup_ratio is set and decides; add --set optimizer.warmup_ratio=null, or leave it out",
    ),
    Needs(
        ("optimizer.floor",), lambda values: values["optimizer"].schedule == "cosine",
        "it is of the cosine schedule, and the rate stays constant here; leave it out",
    ),
)  # fmt: skip
STAGES = (
    *_BOTH,
    Needs(("anneal_steps",), lambda values: values["stage"] == 1, "attention opens in stage 1 alone; leave it out"),
    Needs(
        ("conditional_phase_in",), lambda values: values["stage"] == 3,
        "only stage 3 has prompts that are not noised; leave it out",
    ),
    Needs(
        ("isolate_documents",), lambda values: values["stage"] != 3,
        "a row of stage 3 is one sample, with no other beside it; leave it out",
    ),
    Needs(
        ("weighting", "normalizer", "t_min", "stratified_t", "cart_p"), _masks,
        "stage 0 learns every token from those before it and masks none; leave it out",
    ),
    Needs(("cart_p",), lambda values: values["weighting"] == "cart", "it is of weighting cart; leave it out"),
)  # fmt: skip
GRPO = (
    *_BOTH,
    Needs(
        ("pairs", "t_range"), _estimator_reads("coupled", "decoupled"),
        "the estimator draws no pairs of masks; leave it out",
    ),
    Needs(("prompt_mask",), _estimator_reads("d1"), "the estimator masks no prompt; leave it out"),
    Needs(
        ("reference_sync", "reference_alpha"), lambda values: values["kl_coef"] > 0,
        "kl_coef is 0, so there is no reference; leave it out",
    ),
    Needs(
        ("clip",), lambda values: values["inner_iterations"] > 1,
        "with one update a rollout the ratio is 1 and nothing is clipped; leave it out",
    ),
    Needs(
        ("format",), lambda values: {"code", "format"} & values["rewards"].keys(),
        "no reward of this run looks at the format; leave it out",
    ),
)  # fmt: skip


def refuse(assignments: Sequence[str], stage: int, config: StageConfig | GrpoConfig) -> None:
    """Raises UserError for the first `--set` that changes nothing in a run with these settings, all layers merged."""
    values = {**vars(config), "stage": stage}
    refuse_unused(given_by_set(assignments), values, GRPO if isinstance(config, GrpoConfig) else STAGES)

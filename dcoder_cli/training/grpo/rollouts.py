"""Rollouts of stage 4: a group of completions for each prompt, judged while the next ones are decoded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.checksums import Damaged
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import atomic_file
from dcoder_cli.decoding.requests import Settings, encode_prompt
from dcoder_cli.decoding.sampler import decode
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.model import chat
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.estimate import Completion, completion_of
from dcoder_cli.training.grpo.rewards import Pending, Reward, Rewarder


@dataclass(frozen=True)
class Rollout:
    """One completion with what it earned.

    Attributes:
        place: its place in the whole step, over all processes: seeds come from it.
        completion, trajectory, reward: the sample. advantage: set once the whole group is scored.
    """

    place: int
    completion: Completion
    trajectory: Trajectory
    reward: Reward


def encode_prompts(model: Model, prompts: Sequence[dict[str, Any]], new_tokens: int) -> list[list[int]]:
    """Ids of prompt records (`messages`, or plain `prompt`). Raises UserError for one that leaves no room."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UserError(f"{model.name!r} has no tokenizer, which stage 4 needs")
    encoded = []
    for prompt in prompts:
        if "messages" in prompt:
            ids = chat.encode(tokenizer, prompt["messages"], model.name, f"prompt {prompt.get('task_id')!r}").ids
        elif prompt.get("prompt") is None:
            raise UserError(f"prompt {prompt.get('task_id')!r} has neither messages nor a prompt; give one of them")
        else:
            ids = list(tokenizer(prompt["prompt"], add_special_tokens=False)["input_ids"])
        if len(ids) + new_tokens > model.max_length:
            raise UserError(
                f"prompt {prompt.get('task_id')!r} has {len(ids)} tokens, which with {new_tokens} new ones exceeds the context of "
                f"{model.max_length}; lower rollout.max_new_tokens or tokenize with a smaller --max-prompt-tokens"
            )
        encoded.append(ids)
    return encoded


def check_sampling(config: GrpoConfig) -> None:
    """Raises UserError now for settings that the sampler would refuse at the first rollout."""
    sampling(config, step=0)


def sampling(config: GrpoConfig, step: int) -> Settings:
    """How the rollout of a step is decoded. Raises UserError for settings that do not fit together."""
    rollout = config.rollout
    return Settings(
        max_new_tokens=rollout.max_new_tokens,
        steps=rollout.steps,
        rule=rollout.rule,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        tie_break=rollout.tie_break,
        logits_mib=rollout.logits_mib,
        mode=rollout.mode,
        threshold=rollout.threshold,
        early_stop=False if rollout.mode == "fast" else None,
        seed=config.seed + 1_000_003 * (step + 1),
    )


def roll_out(
    model: Model,
    prompts: Sequence[dict[str, Any]],
    ids: Sequence[list[int]],
    first_place: int,
    step: int,
    config: GrpoConfig,
    rewarder: Rewarder,
    on_decoded: Callable[[], None] = lambda: None,
) -> list[Rollout]:
    """`group_size` completions of each prompt, in order, with rewards.

    Judging runs while further batches are decoded, and a text that a prompt got more than once is judged once.
    `on_decoded` is called when all are decoded and only verdicts are still awaited.
    """
    group = config.group_size
    pending: dict[tuple[int, str], Pending] = {}
    names = [str(place) for place in range(len(prompts) * group)]

    def judge(trajectory: Trajectory) -> None:
        prompt = int(trajectory.id) // group
        if (prompt, trajectory.text) not in pending:
            pending[prompt, trajectory.text] = rewarder.submit(prompts[prompt], trajectory.text)

    repeated = [prompt for prompt in ids for _ in range(group)]
    encoded = [
        encode_prompt(model, prompt, str(place)) for place, prompt in enumerate(ids)
    ]  # once a prompt, not a sample
    trajectories = decode(
        model,
        [prompt for prompt in encoded for _ in range(group)],
        sampling(config, step),
        ids=names,
        seeds=[first_place + place for place in range(len(repeated))],
        batch_size=config.rollout.batch_size,
        on_done=judge,
    )
    on_decoded()
    rewards = rewarder.results([pending[place // group, item.text] for place, item in enumerate(trajectories)])
    return [
        Rollout(
            first_place + place,
            completion_of(prompt, trajectory.tokens, model.ids.stops),
            trajectory,
            reward,
        )
        for place, (prompt, trajectory, reward) in enumerate(zip(repeated, trajectories, rewards, strict=True))
    ]


def save_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    """Keep a scored rollout, so that a run killed while it updates need not decode and judge again."""
    digest = hashlib.sha256()
    with atomic_file(path) as temporary, open(temporary, "wb") as handle:
        for item in rollouts:
            record = {
                "place": item.place,
                "prompt": item.completion.prompt,
                "scored": item.completion.scored,
                "trajectory": item.trajectory.to_json()
                | {"confidence": item.trajectory.confidence, "entropy": item.trajectory.entropy},
                "reward": {name: _or_none(value) for name, value in item.reward.parts.items()},
                "total": _or_none(item.reward.total),
                "status": item.reward.status,
            }
            line = json.dumps(record).encode() + b"\n"
            digest.update(line)
            handle.write(line)
        handle.write(seal(digest))  # without it a file is half of one


def load_rollouts(path: Path) -> list[Rollout]:
    """A rollout kept by `save_rollouts`. Raises UserError where it is not as it was written."""
    remedy = "remove it, and it is sampled again"
    try:
        data = jsonl.read(path, "kept rollout")
        if data[-_SEAL:] != seal(hashlib.sha256(data[:-_SEAL])):
            raise Damaged(f"kept rollout {str(path)!r} is damaged or was changed; {remedy}", path)
        return [_rollout(record) for _, record in jsonl.objects(path, "kept rollout") if "seal" not in record]
    except Damaged:
        raise
    except UserError as error:
        raise UserError(f"{error}; or {remedy}") from None
    except (ValueError, KeyError, TypeError) as error:  # of an earlier release
        raise Damaged(f"kept rollout {str(path)!r} is damaged ({type(error).__name__}); {remedy}", path) from None


def seal(digest: Any) -> bytes:
    """The last line of a kept rollout: the SHA-256 of all before it."""
    return json.dumps({"seal": digest.hexdigest()}).encode() + b"\n"


_SEAL = len(seal(hashlib.sha256()))


def _rollout(record: dict[str, Any]) -> Rollout:
    trajectory = Trajectory(**record["trajectory"])
    completion = Completion(tuple(record["prompt"]), tuple(trajectory.tokens), record["scored"])
    parts = {name: math.nan if value is None else value for name, value in record["reward"].items()}
    total = math.nan if record["total"] is None else record["total"]
    return Rollout(record["place"], completion, trajectory, Reward(total, parts, record["status"]))


def forget_rollouts(folder: Path, but: int | None) -> None:
    """Remove all kept rollouts but those of step `but`, which the weights at hand have sampled."""
    for file in folder.glob("step-*.jsonl"):
        if int(file.name.split("-")[1]) != but:
            file.unlink()


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value

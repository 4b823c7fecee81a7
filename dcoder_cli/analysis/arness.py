"""AR-ness: how close a decoding order is to left-to-right (DiffuCoder 4.1 and A.2).

One commit a step gives an order p_1 .. p_T of the T new tokens' positions; M_{t-1} are the positions still
masked before step t.

- Local AR-ness@k: share of steps t whose p_t ends a run of consecutive positions, p_{t-i} = p_t - i for i = 1..k.
- Global AR-ness@k: share of steps t whose p_t is among the k leftmost of M_{t-1}.

**What local@k is divided by.** The first k steps have no k predecessors, so they can never count.
`convention="defined"` (default) divides by the T - k steps that can, and left-to-right measures exactly 1.0 at
every k; with T <= k no step can, and the sample's value is undefined (NaN here, null in JSON, left out of the mean).
`convention="paper"` divides by T, as the paper writes it: left-to-right measures 1 - k/T, and 0 where T <= k. At the
paper's T = 512 the two differ by the factor 512/(512-k), under 2% for k <= 9. Global@k always divides by T.

**Several commits in one step** (fewer steps than tokens). The paper defines nothing. Tokens committed together have
no order among them, so the value is the *expectation over a uniformly random order within each step*
(`ties="random"`, computed exactly, not sampled). It is the paper's number when every step commits one token, keeps
the monotonicity in k (an average of monotone curves), and cannot be raised by choosing how ties are read: a decoding
that commits everything in one step measures what a random order measures, not 1.0 (ties read left to right would say
that it is perfectly autoregressive) and not 0 (a strict reading would say so of every fast sampler, so that parallel
decoding alone would look like non-autoregressive behaviour). `ties="left-to-right"` is that best case, an upper bound
which keeps block-wise left-to-right decoding at 1.0: for one-per-step decodings the two are equal, otherwise the gap
between them is what simultaneous commits leave open. Compare systems at equal commits per step; the result reports it.

**Which tokens.** New tokens only, never the prompt. `until="all"` (default) measures all of them, pads after the end
of turn included, because the paper measures all 512 tokens of 512 steps, because where and when the sampler commits
pads is part of the order, and because it needs nothing but `reveal_step`, whoever wrote the file. `until="end"` keeps
the tokens up to and including the first end-of-turn token, and drops the others from the order and from the masked set.

**Ties.** Where a rule scores several candidates exactly alike, the order is that of the sampler's `tie_break`, not the
model's. So every number comes with `tied_share`, and with the lowest and the highest value that other tie breaks could
have given (ties.py) where the trajectories tell.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dcoder_cli.analysis.statistics import LEVEL, summary
from dcoder_cli.analysis.ties import open_orders, tied_share
from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding.trajectory import Trajectory

Convention = Literal["defined", "paper"]
Ties = Literal["random", "left-to-right"]
Until = Literal["all", "end"]
Steps = NDArray[np.int64]
Curve = NDArray[np.float64]

LOCAL_K = 9  # DiffuCoder 4.1, fig. 3: local to k = 9
GLOBAL_K = 4  # DiffuCoder 4.1, fig. 3: global to k = 4


def arness(
    trajectories: Sequence[Trajectory],
    local_k: int = LOCAL_K,
    global_k: int = GLOBAL_K,
    convention: Convention = "defined",
    ties: Ties = "random",
    until: Until = "all",
    end_ids: Collection[int] | None = None,
) -> dict[str, Any]:
    """AR-ness of trajectories: the numbers `dcoder arness --json` prints for one series.

    Args:
        trajectories: the decodings; only `reveal_step` is needed (and `tokens` for until="end").
        local_k: local@1 .. local@local_k.
        global_k: global@1 .. global@global_k.
        convention: what local@k is divided by, see the module's docstring.
        ties: how several commits in one step are read.
        until: measure all new tokens, or those up to the first end of turn.
        end_ids: ids that end the answer, for until="end"; default: the trajectory's settings["end_ids"].

    Returns:
        a dictionary fit for JSON: `samples`, the settings, `tokens` and `commits_per_step` (means), `tied_share` (mean
        share of steps decided by a tie; None where no trajectory tells), `ties_known` (samples that tell), `tie_break`
        (names of how they were broken), `local` and `global` (lists by k = 1..: `mean`, `variance`, `low`, `high` (95%
        t interval over samples, samples of one prompt counted as one cluster; None where all are equal), `n`, and `tie_low`, `tie_high`: means of
        the lowest and highest value that other tie breaks could have given, None where a sample does not tell), and
        `per_sample` (`id`, `tokens`, `steps`, `tied_share`, `local`, `global`).

    Raises:
        UserError: no trajectory, a k below 1, or until="end" without known end ids.
    """
    _check(trajectories, local_k, global_k, convention, ties, until)
    rows: list[dict[str, Any]] = []
    local_NK = np.full((len(trajectories), local_k), np.nan)
    global_NK = np.full((len(trajectories), global_k), np.nan)
    ends = {"local": np.full((2, *local_NK.shape), np.nan), "global": np.full((2, *global_NK.shape), np.nan)}
    for index, trajectory in enumerate(trajectories):
        length = len(trajectory.reveal_step) if until == "all" else answer_length(trajectory, end_ids)
        steps_T = np.asarray(trajectory.reveal_step[:length], dtype=np.int64)
        local_NK[index] = local_curve(steps_T, local_k, convention, ties)
        global_NK[index] = global_curve(steps_T, global_k, ties)
        if trajectory.tied_from is not None:
            orders = open_orders(steps_T.tolist(), trajectory.tied_from[:length]).values()
            others = [np.asarray(order, dtype=np.int64) for order in orders if order != steps_T.tolist()]
            for kind, own, of in (
                ("local", local_NK[index], lambda order: local_curve(order, local_k, convention, ties)),
                ("global", global_NK[index], lambda order: global_curve(order, global_k, ties)),
            ):
                found = np.stack([own, *map(of, others)])
                ends[kind][:, index] = found.min(axis=0), found.max(axis=0)
        rows.append(
            {
                "id": trajectory.id,
                "tokens": length,
                "steps": len(np.unique(steps_T)),
                "tied_share": tied_share(trajectory, length),
                "local": [None if np.isnan(value) else float(value) for value in local_NK[index]],
                "global": [float(value) for value in global_NK[index]],
            }
        )
    shares = [row["tied_share"] for row in rows if row["tied_share"] is not None]
    known = all(trajectory.tied_from is not None for trajectory in trajectories)
    prompts = [trajectory.prompt or f"sample {index}" for index, trajectory in enumerate(trajectories)]
    return {
        "samples": len(trajectories),
        "convention": convention,
        "ties": ties,
        "until": until,
        "interval": LEVEL,
        "interval_method": "t over prompts",
        "tokens": float(np.mean([row["tokens"] for row in rows])),
        "commits_per_step": float(np.mean([row["tokens"] / row["steps"] for row in rows])),
        "tied_share": float(np.mean(shares)) if shares else None,
        "ties_known": len(shares),
        "tie_break": sorted(
            {str(item.settings["tie_break"]) for item in trajectories if item.settings.get("tie_break")}
        ),
        "local": {"k": list(range(1, local_k + 1)), **summary(local_NK, prompts), **_ends(ends["local"], known)},
        "global": {"k": list(range(1, global_k + 1)), **summary(global_NK, prompts), **_ends(ends["global"], known)},
        "per_sample": rows,
    }


def _ends(values_2NK: NDArray[np.float64], known: bool) -> dict[str, list[float | None]]:
    """`tie_low` and `tie_high` by k, means over the samples for which the value is defined."""
    columns: dict[str, list[float | None]] = {}
    for name, values_NK in zip(("tie_low", "tie_high"), values_2NK, strict=True):
        defined = [column[~np.isnan(column)] for column in values_NK.T]
        columns[name] = [float(column.mean()) if known and len(column) else None for column in defined]
    return columns


def local_curve(steps_T: Steps, max_k: int, convention: Convention = "defined", ties: Ties = "random") -> Curve:
    """Local AR-ness@1..max_k of one decoding; NaN where T <= k under "defined", 0 there under "paper".

    A run p-k .. p counts with the probability that a random order within steps places it in consecutive slots:
    every link goes on to the same or the next step, the first step's tokens of the run come last in that step
    ((n-j)!/n! for j of n tokens), the last step's come first, and steps in between lie wholly inside the
    run (1/n!); a run inside one step has n-j+1 places to start. With n = 1 throughout this is 0 or 1.
    """
    rank_T, size_T = _dense(steps_T, ties)
    length = len(rank_T)
    curve = np.full(max_k, np.nan if convention == "defined" else 0.0)
    if length < 2:
        return curve
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, length + 1)))])
    link = np.diff(rank_T)
    broken = np.concatenate([[0], np.cumsum((link != 0) & (link != 1))])  # bad links left of each position
    # A stretch is a maximal piece of neighbouring positions committed in the same step.
    stretch_T = np.concatenate([[0], np.cumsum(link != 0)])
    first_S = np.flatnonzero(np.concatenate([[True], link != 0]))
    last_S = np.concatenate([first_S[1:] - 1, [length - 1]])
    size_S = size_T[first_S]
    whole = np.concatenate([[0], np.cumsum(last_S - first_S + 1 != size_S)])  # stretches that are not their whole step
    orders = np.concatenate([[0.0], np.cumsum(log_factorial[size_S])])
    for k in range(1, min(max_k, length - 1) + 1):
        start, end = np.arange(length - k), np.arange(k, length)
        a, b = stretch_T[start], stretch_T[end]
        single = a == b
        in_first = np.minimum(last_S[a], end) - start + 1
        in_last = end - np.maximum(first_S[b], start) + 1
        head = log_factorial[size_T[start] - in_first] - log_factorial[size_T[start]]
        tail = log_factorial[size_T[end] - in_last] - log_factorial[size_T[end]]
        inner = np.where(single, 0.0, orders[a + 1] - orders[b])  # minus the log-orders of the stretches between
        log_chance = np.where(single, head + np.log(size_T[start] - in_first + 1), head + tail + inner)
        possible = (broken[end] == broken[start]) & (single | (whole[b] == whole[a + 1]))
        hits = np.exp(log_chance[possible]).sum()
        curve[k - 1] = hits / (length - k if convention == "defined" else length)
    return curve


def global_curve(steps_T: Steps, max_k: int, ties: Ties = "random") -> Curve:
    """Global AR-ness@1..max_k of one decoding.

    Of a token's left neighbours in the text, `later_T` are committed at later steps, so they are masked when it is
    committed, and `beside_T` in the same step: under a random order within the step 0..beside_T of them are still
    masked, each count equally likely. P(rank <= k) = clip(k - later, 0, beside + 1) / (beside + 1).
    """
    rank_T, _ = _dense(steps_T, ties)
    length = len(rank_T)
    later_T = np.empty(length, dtype=np.int64)
    beside_T = np.empty(length, dtype=np.int64)
    for begin in range(0, length, 1024):  # a block of rows at a time bounds the memory for long texts
        rows = slice(begin, min(begin + 1024, length))
        left = np.arange(rows.stop)[None, :] < np.arange(rows.start, rows.stop)[:, None]
        before, own = rank_T[None, : rows.stop], rank_T[rows, None]
        later_T[rows] = ((before > own) & left).sum(axis=1)
        beside_T[rows] = ((before == own) & left).sum(axis=1)
    ks = np.arange(1, max_k + 1)[:, None]
    chance_KT = np.clip(ks - later_T, 0, beside_T + 1) / (beside_T + 1)
    return np.asarray(chance_KT.mean(axis=1))


def random_order(length: int, local_k: int = LOCAL_K, global_k: int = GLOBAL_K) -> dict[str, list[float]]:
    """What a uniformly random order of `length` tokens measures on average ("defined" convention), for scale.

    local@k: each of the T-k windows of k+1 steps is one of T!/(T-k-1)! equally likely sequences, of which T-k are
    runs: (T-k) (T-k-1)! / T! = 1 / (T (T-1) .. (T-k+1)). global@k: with m tokens masked the chance is min(k, m) / m;
    the mean over m = 1..T is (k + k (H_T - H_k)) / T for k <= T, H the harmonic numbers.
    """
    masked = np.arange(1, length + 1)
    falling = np.cumprod(length - np.arange(local_k, dtype=np.float64))
    local = [float(1 / falling[k - 1]) if k < length else float("nan") for k in range(1, local_k + 1)]
    return {"local": local, "global": [float((np.minimum(k, masked) / masked).mean()) for k in range(1, global_k + 1)]}


def answer_length(trajectory: Trajectory, end_ids: Collection[int] | None = None) -> int:
    """Number of new tokens up to and including the first that ends the answer; all of them if none does.

    Raises:
        UserError: neither `end_ids` nor the trajectory's settings say which ids end an answer.
    """
    ends = end_ids if end_ids else trajectory.settings.get("end_ids")
    if not ends:
        raise UserError(
            f"trajectory {trajectory.id!r} does not say which ids end an answer (settings.end_ids); "
            "name them with --end-id, or measure all tokens with --until all"
        )
    stop = next((index for index, token in enumerate(trajectory.tokens) if token in ends), len(trajectory.tokens) - 1)
    return stop + 1


def _dense(steps_T: Steps, ties: Ties) -> tuple[Steps, Steps]:
    """Steps renumbered 0, 1, .. without the steps that committed nothing, and each token's step's size."""
    if ties == "left-to-right":
        rank_T = np.empty(len(steps_T), dtype=np.int64)
        rank_T[np.argsort(steps_T, kind="stable")] = np.arange(len(steps_T))
        return rank_T, np.ones(len(steps_T), dtype=np.int64)
    _, rank, size = np.unique(steps_T, return_inverse=True, return_counts=True)
    return rank.reshape(-1), size[rank.reshape(-1)]


def _check(trajectories: Sequence[Trajectory], local_k: int, global_k: int, *choices: str) -> None:
    if not trajectories:
        raise UserError("there are 0 trajectories; AR-ness needs at least one")
    for name, value in (("local_k", local_k), ("global_k", global_k)):
        if value < 1:
            raise UserError(f"{name} = {value} must be at least 1")
    for (name, options), choice in zip(
        (("convention", get_args(Convention)), ("ties", get_args(Ties)), ("until", get_args(Until))),
        choices,
        strict=True,
    ):
        if choice not in options:
            raise UserError(f"{name} = {choice!r} must be one of {', '.join(options)}")

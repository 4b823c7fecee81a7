"""The tables of a model card: training, scores and decoding order, each with how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dcoder_cli.analysis.ties import MUCH
from dcoder_cli.base.markup import clean, code, table, words


def training(facts: Mapping[str, Any]) -> list[str]:
    """A row a stage, and below it data by hash, settings, held-out loss, hardware and version."""
    stages = facts["stages"]
    if not stages:
        return ["Not recorded: the checkpoint lay in no run folder of dcoder when it was exported."]
    head = ["stage", "began with", "data", "rows", "steps", "batch", "learning rate", "read"]
    rows = []
    for one in stages:
        settings, data = one["settings"], one["data"]
        if one["stage"] == "grpo":
            batch = f"{settings.get('prompts_per_step')} prompts x {settings.get('group_size')}"
            read = _count(one["completions"], "completions")
        else:
            batch, read = f"{settings.get('global_batch')} rows", _count(one["tokens"], "tokens")
        length = data.get("row_length")
        of = f" of {length:,} tokens" if isinstance(length, int) else ""
        shown = [
            f"{_count(data.get('rows'))}{of}",
            _count(one["steps"]),
            batch,
            _number(settings["optimizer"].get("learning_rate")),
            read,
        ]
        rows.append([words(one["stage"]), words(one["began_with"]), words(data["name"]), *shown])
    return [table(head, rows), "\n".join(_details(one) for one in stages)]


def _details(one: Mapping[str, Any]) -> str:
    data = one["data"]
    sources = ", ".join(
        words(source["name"]) + (f" x {source['weight']:g}" if source["weight"] != 1 else "")
        for source in data.get("sources", [])
    )
    told = [
        f"data sha256 {code(data['sha256']) if data['sha256'] else 'not recorded'}"
        + (f" of {sources}" if sources else ""),
        f"settings {code(_settings(one['settings']))}",
    ]
    if one["heldout"]:
        values = {
            key: one["heldout"][key]
            for key in ("loss", "pass@1", "reward")
            if isinstance(one["heldout"].get(key), (int, float))
        }
        told.append("held out: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    if one["hardware"]:
        told.append(f"on {words(one['hardware'].get('processes'))} x {words(one['hardware'].get('device'))}")
    if one["dcoder"] and one["dcoder"].get("version"):
        commit = one["dcoder"].get("commit")
        told.append(f"dcoder {words(one['dcoder']['version'])}" + (f" at {code(commit)}" if commit else ""))
    return f"- **{words(one['stage'])}** (run {words(one['run'])}): {'; '.join(told)}"


def scores(facts: Mapping[str, Any]) -> list[str]:
    """A row a score with its interval, and below it sampler, protocol, departures, data, sandbox."""
    measured = facts["scores"]
    if not measured:
        return ["Not measured: no results of `dcoder eval` were given at export."]
    rows = []
    for one in measured:
        for metric, by_k in one["scores"].items():
            for k in ends(by_k):
                value = by_k[k]
                shown = f"{value['score']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"
                of = f"{one['tasks']:,}" + (
                    f" of {one['tasks_of_benchmark']:,}" if one["tasks"] != one["tasks_of_benchmark"] else ""
                )
                rows.append(
                    [words(task_of(one)), words(f"{metric} {k}"), shown, of, str(one["n"]), words(one["protocol"])]
                )
    head = ["benchmark", "score", "percent [95% interval]", "tasks", "samples a task", "protocol"]
    found = [table(head, rows), "\n".join(_score_details(one) for one in measured)]
    return [*found, *_cast(facts)]


def _score_details(one: Mapping[str, Any]) -> str:
    departures = ", ".join(
        f"{name} {_value(value.get('here'))} (there {_value(value.get('protocol'))})"
        for name, value in one["departures"].items() if isinstance(value, dict)
    )  # fmt: skip
    counts = {key: value for key, value in one["counts"].items() if value and key != "samples"}
    data = one["data"]
    told = [
        f"sampler {code(_settings(one['settings']))}",
        f"departs from the protocol in {words(departures)}" if departures else "no departure from the protocol",
        f"data {words(data['version'] or 'of unknown version')}"
        + (f", sha256 {code(data['sha256'])}" if data["sha256"] else ""),
        f"sandbox tier {words(one['sandbox_tier'])}" if one["sandbox_tier"] else "no code was run",
        f"{words(one['dtype'] or 'unknown number format')} on {words(one['device'] or 'an unknown device')}",
    ]
    if one["low_trust"]:
        told.append("tests ran beside the answer, so it could have tampered with them")
    if counts:
        told.append(
            "of the samples " + ", ".join(f"{value} {words(key.replace('_', ' '))}" for key, value in counts.items())
        )
    if one["dcoder"]:
        told.append(f"dcoder {words(one['dcoder'])}")
    return f"- **{words(task_of(one))}**: {'; '.join(told)}"


def orders(facts: Mapping[str, Any]) -> list[str]:
    """AR-ness at the smallest and largest k, and below it how it was measured and what ties decided."""
    measured = facts["arness"]
    if not measured:
        return ["Not measured: no AR-ness of `dcoder arness` was given at export."]
    chosen = [(kind, index) for kind in ("local", "global") for index in sorted({0, len(measured[0][kind]["k"]) - 1})]
    head = [
        "series",
        "temperature",
        "samples",
        "tied steps",
        *(f"{kind}@{measured[0][kind]['k'][index]}" for kind, index in chosen),
    ]
    rows = [
        [words(one["label"] or "series"), _number(one["temperature"]), f"{one['samples']:,}", _share(one["tied_share"]),
         *(_interval(one[kind], index) for kind, index in chosen)]
        for one in measured
    ]  # fmt: skip
    return [
        "AR-ness of DiffuCoder (arXiv 2506.20639, 4.1): how close to left-to-right the model decodes, which measures 1. "
        "Local@k: share of steps that end a run of k + 1 consecutive positions; global@k: share of steps that commit one of the k "
        "leftmost open positions. Mean and 95% interval over samples.",
        table(head, rows),
        "\n".join(_order_details(one) for one in measured),
        *_cast(facts),
    ]


def _order_details(one: Mapping[str, Any]) -> str:
    settings = one["settings"]
    broken = ", ".join(map(str, one["tie_break"])) if isinstance(one["tie_break"], list) else ""
    told = [
        f"sampler {code(_settings(settings))}" if settings else "the sampler's settings are not in the file",
        "local@k divided by the steps that have k predecessors"
        if one["convention"] == "defined"
        else "local@k divided by all steps",
        "tokens of one step count with the mean over their orders"
        if one["ties"] == "random"
        else "tokens of one step read left to right",
        "all new tokens" if one["until"] == "all" else "tokens up to the end of turn",
        f"{_number(one['tokens'])} tokens, {_number(one['commits_per_step'])} a step",
        f"ties broken by {words(broken)}" if broken else "how ties were broken is not in the file",
    ]
    departures = one["departures"] if isinstance(one["departures"], dict) else {}
    if departures:
        shown = ", ".join(f"{name} {_value(value.get('here'))} (there {_value(value.get('paper'))})"
                          for name, value in departures.items() if isinstance(value, dict))  # fmt: skip
        told.append(f"departs from the paper's settings in {words(shown)}")
    share = one["tied_share"]
    if isinstance(share, (int, float)) and share > MUCH:
        ranges = [f"{kind}@1 from {low:.3f} to {high:.3f}" for kind in ("local", "global")
                  for low, high in [(one[kind]["tie_low"][0], one[kind]["tie_high"][0])] if None not in (low, high)]  # fmt: skip
        told.append(
            "ties decided much of this order"
            + (f"; other tie breaks could have given {', '.join(ranges)}" if ranges else "")
        )
    return f"- **{words(one['label'] or 'series')}**: {'; '.join(told)}"


def _cast(facts: Mapping[str, Any]) -> list[str]:
    model = facts["model"]
    return (
        [f"Measured before the weights were cast from {model['stored_as']} to {model['dtype']}."]
        if model["cast"]
        else []
    )


def task_of(score: Mapping[str, Any]) -> str:
    """A benchmark with its subset."""
    return f"{score['task']} ({score['subset']})" if score.get("subset") else str(score["task"])


def ends(by_k: Mapping[str, Any]) -> list[str]:
    """pass@1 and that of the largest k."""
    names = list(by_k)
    return list(dict.fromkeys([names[0], names[-1]]))


def _settings(values: Mapping[str, Any]) -> str:
    """`key=value`, nested keys with dots, what is null left out."""
    told = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            told += [f"{key}.{inner}" for inner in _settings(value).split(" ") if inner]
        elif value is not None:
            told.append(f"{key}={_value(value)}")
    return " ".join(told)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_value, value)) + "]"
    return "none" if value is None else clean(value).replace(" ", "_")


def _count(value: Any, unit: str = "") -> str:
    return "not recorded" if not isinstance(value, (int, float)) else f"{value:,.0f} {unit}".rstrip()


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (int, float)) else "not recorded"


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, (int, float)) else "unknown"


def _interval(curve: Mapping[str, Sequence[Any]], index: int) -> str:
    if index >= len(curve["mean"]) or not isinstance(curve["mean"][index], (int, float)):
        return "undefined"
    low, high = curve["low"][index], curve["high"][index]
    ends = f" [{low:.3f}, {high:.3f}]" if isinstance(low, (int, float)) and isinstance(high, (int, float)) else ""
    return f"{curve['mean'][index]:.3f}{ends}"

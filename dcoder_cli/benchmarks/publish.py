"""What `dcoder export` does: the checkpoint, its history and its measurements become a folder ready for the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dcoder_cli import __version__
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import check_replaceable
from dcoder_cli.base.markup import clean
from dcoder_cli.benchmarks import card, card_evidence, card_history
from dcoder_cli.model import adapters, export
from dcoder_cli.model.export import Export

Facts = dict[str, Any]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def publish(
    name: str,
    out: Path,
    dtype: str | None = None,
    licence: str | None = None,
    results: Sequence[Path] = (),
    orders: Sequence[Path] = (),
    force: bool = False,
    progress: Callable[[int, Callable[[export.Told], None]], None] | None = None,
) -> Facts:
    """Export a checkpoint with its model card; everything is checked before anything is written.

    Args:
        name: folder, run folder (its last checkpoint) or hub id.
        out: the folder to make.
        dtype: of the weights; None: as stored.
        licence: the hub's identifier, None: the card says that none was stated.
        results: folders of `dcoder eval`.
        orders: arness.json files of `dcoder arness`.
        force: replace a folder that an earlier export made.
        progress: given the bytes to write and the work, which it calls with a function to tell progress to.

    Returns:
        the card's facts, as in dcoder_card.json, and `out`, `files`.

    Raises:
        UserError: whatever of the input is wrong.
    """
    check_replaceable(out, force, card_history.FACTS, "an exported model")
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UserError(f"--license {licence!r} is no identifier of the hub; they are as apache-2.0, mit, other")
    plan = export.plan(name, dtype)
    if plan.folder.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--out {str(out)!r} would take the place of the checkpoint {name!r}; choose another folder")
    subject = card_evidence.Subject(name, plan.folder, plan.weights_id)
    facts = facts_of(
        plan, out.resolve().name, licence, card_evidence.scores(results, subject), card_evidence.orders(orders, subject)
    )
    texts = {"README.md": card.text(facts), card_history.FACTS: json.dumps(facts, indent=2, ensure_ascii=False) + "\n"}
    run = progress or (lambda total, work: work(lambda _: None))
    run(plan.bytes, lambda told: export.write(plan, out, texts, told))
    files = sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())
    return {**facts, "out": str(out), "files": files}


def facts_of(plan: Export, name: str, licence: str | None, scores: list[Facts], orders: list[Facts]) -> Facts:
    """Everything that the card says, for programs."""
    stages, began_with = card_history.stages(plan.folder)
    recorded = plan.config.get("dcoder")
    recorded = recorded if isinstance(recorded, dict) else {}
    origin = recorded.get("origin")
    public = plan.layout.public
    base = next((one for one in (began_with, origin, plan.name) if _is_hub_id(one)), None)
    return {
        "name": clean(name),
        "dcoder": __version__,
        "model": {
            "system": plan.layout.name,
            "kind": "diffusion" if plan.layout.diffusion else "ar",
            "stage": recorded.get("stage"),
            "parameters": plan.parameters,
            "dtype": plan.written_as,
            "stored_as": plan.stored_as,
            "cast": plan.dtype is not None,
            "context": plan.context,
            "vocab_size": plan.vocab_size,
            "shift": bool(recorded.get("shift", plan.layout.shift)),
            "ids": {key: getattr(plan.ids, key) for key in ("mask", "pad", "bos", "eos", "end_of_turn")},
            "tokenizer": plan.tokenizer is not None,
        },
        "auto_map": plan.auto_map,
        "why_not": plan.why_not,
        "public": None if public is None else {
            "repository": public.repository, "transformers": public.transformers, "sampler": public.sampler,
        },
        "adapter": (plan.folder / adapters.FOLDER).is_dir(),
        "weights": plan.weights_id,
        "origin": origin if isinstance(origin, str) else None,
        "began_with": began_with,
        "base_model": base,
        "licence": licence,
        "stages": stages,
        "scores": scores,
        "arness": orders,
    }  # fmt: skip


def _is_hub_id(name: Any) -> bool:
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None and not Path(name).exists()

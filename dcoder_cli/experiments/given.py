"""The whole method on an AR model that is given, in a number of minutes: `dcoder quickstart --model`.

What each step does is what the command of its name does; how much of it, is measured first (budget.py). After a stop the
run goes on where it was: a step that is done is not done again, a training goes on from its last checkpoint.

The corpus is the Python source that is installed here, or folders of the user's; instruction data are its functions as
requests and gaps, from documents that are trained on alone, and micro's training tasks; stage 4 learns from micro's.
"""

from __future__ import annotations

import shutil
from typing import Any

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import check_replaceable, require_space
from dcoder_cli.base.plan import RunPlan
from dcoder_cli.execution.judge import resolve_tier
from dcoder_cli.experiments.budget import CHAT_ROW
from dcoder_cli.experiments.given_settings import RECORD, STAGES, GivenSettings, corpus_of
from dcoder_cli.experiments.given_steps import GivenModel
from dcoder_cli.experiments.journal import Announce, Journal

DATA_BYTES = 64 * 2**20  # tasks, shards and answers, with room


def check(settings: GivenSettings, force: bool, resume: bool) -> str:
    """The sandbox's tier. Raises UserError for anything that is wrong before a weight is read."""
    from dcoder_cli.data.formats import ChatEncoder
    from dcoder_cli.data.sources import parse_sources, plan_units
    from dcoder_cli.experiments import given_memory
    from dcoder_cli.model import gguf
    from dcoder_cli.model.outline import outline

    if not 0 < settings.minutes < float("inf"):
        raise UserError(f"--minutes {settings.minutes:g} must be a number above 0")
    tier = resolve_tier(unsafe=settings.unsafe)
    if resume:
        if not (settings.out / RECORD).is_file():
            raise UserError(f"--resume: {str(settings.out)!r} holds no quickstart; leave out --resume to begin one")
    else:
        check_replaceable(settings.out, force, RECORD, "a quickstart")
    plan_units(parse_sources(corpus_of(settings)), () if settings.corpus else (".py",))
    file = gguf.find(settings.model)
    model = outline(settings.model) if file is None else gguf.skeleton(file)
    if model.is_diffusion:
        raise UserError(f"--model {settings.model!r} is a diffusion model already; give an AR model to adapt")
    if model.max_length < CHAT_ROW:
        raise UserError(
            f"--model {settings.model!r} has a context of {model.max_length} tokens, and an instruction takes {CHAT_ROW}; "
            "give another model"
        )
    if model.tokenizer is None:
        raise UserError(f"--model {settings.model!r} has no tokenizer; add one to its folder")
    ChatEncoder(model.tokenizer, None)  # raises, where it has no chat template
    parameters = sum(one.numel() for one in model.parameters())
    given_memory.check_room(model.config, settings.device)
    # Weights and two moments: a checkpoint a stage, the models, and three while a stage is saved (see RunFolder.prune).
    require_space(settings.out, parameters * 4 * 3 * (len(STAGES) + 4) + DATA_BYTES, "quickstart")
    return tier


def plan(settings: GivenSettings, force: bool = False, resume: bool = False) -> RunPlan:
    """What would be done, once the input is checked; rates are measured when the run begins."""
    tier = check(settings, force, resume)
    found = RunPlan("quickstart", settings.to_json())
    found.add("minutes", settings.minutes, f"{settings.minutes:g} minutes, shared out once rates are measured")
    found.add("corpus", list(corpus_of(settings)), ", ".join(corpus_of(settings)))
    found.add("stages", list(STAGES), "stages 1 to 4, a score of the AR model, of its conversion and after each stage")
    found.add("sandbox", {"tier": tier}, f"tier {tier}")
    return found


def run(settings: GivenSettings, announce: Announce, force: bool, resume: bool, quiet: bool) -> dict[str, Any]:
    """Do it all, and write the report; returns the record's steps.

    Raises:
        UserError: as `check`, `Journal.resume` and `budget.allot`.
        StoppedByUser: stopped in a training.
    """
    from dcoder_cli.experiments.given_report import write_report

    check(settings, force, resume)
    path = settings.out / RECORD
    if resume:
        journal = Journal.resume(path, settings.to_json(), announce)
    else:
        if settings.out.exists():
            shutil.rmtree(settings.out)
        settings.out.mkdir(parents=True)
        journal = Journal.begin(path, settings.to_json(), announce)
    GivenModel(settings, journal, announce, quiet).all()
    write_report(settings.out, settings.model, journal)
    return journal.steps

"""A Slurm job for one command of a preset's header: as many nodes and GPUs as the preset is made for. Torch-free.

The job asks for SIGTERM before its time is up, which a run answers with a checkpoint, and goes on from the last one where its
folder has one: submitted again, or requeued, it is the same run.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dcoder_cli.base import presets
from dcoder_cli.base.errors import UserError
from dcoder_cli.training.config import STAGE_NAMES, STAGES

_PORT = 29500  # torchrun's own
_NOTICE = 300  # seconds before the time limit (ours): a step of stage 4 and a checkpoint of 7B


@dataclass(frozen=True)
class SlurmJob:
    """What is asked for.

    Attributes:
        stage: as `train-stage` names it, grpo or eval.
        given: options of the command in place of the header's: model, data, out.
        time, partition, account: Slurm's; None leaves the line out.
    """

    preset: str
    stage: str
    given: Mapping[str, str]
    time: str | None = None
    partition: str | None = None
    account: str | None = None


def script(job: SlurmJob) -> str:
    """The job's script.

    Raises:
        UserError: a value that would break out of its line; a preset, stage or hardware that is not; a preset without a GPU or without such a command.
    """
    told = {"PRESET": job.preset, "--time": job.time, "--partition": job.partition, "--account": job.account}
    for name, value in {**told, **{f"--{key}": value for key, value in job.given.items()}}.items():
        if value is not None and not value.isprintable():  # a line of its own, or no text at all
            raise UserError(f"{name} {value!r} holds a character that has no place in a job script; leave it out")
    hardware = presets.hardware(job.preset)
    if not hardware.gpus:
        raise UserError(f"preset {job.preset!r} is for a CPU; a job script is for GPUs, such as of 8x80gb")
    name = STAGE_NAMES[STAGES[job.stage]] if job.stage in STAGES else job.stage
    section = f"stage{STAGES[job.stage]}" if job.stage in STAGES else job.stage
    words = _with(_of_header(job.preset, name), job.given)
    out = _value(words, "--out")
    nodes, gpus = hardware.machines_for(section), hardware.gpus_for(section)
    each = -(-gpus // nodes)
    spread = gpus > 1 and name != "eval"
    if name == "eval" and gpus > 1:
        words += ["--nproc", str(each)]
    head = {
        "job-name": f"{name}-{job.preset.rsplit('/', 1)[-1].removesuffix('.yaml')}", "nodes": nodes, "ntasks-per-node": 1,
        "gpus-per-node": each, "time": job.time, "partition": job.partition, "account": job.account, "output": "%x-%j.log",
        "signal": f"TERM@{_NOTICE}" if out else None,
    }  # fmt: skip
    lines = ["#!/bin/bash", *(f"#SBATCH --{key}={value}" for key, value in head.items() if value is not None)]
    lines += ["#SBATCH --requeue", "#SBATCH --open-mode=append"] if out else []
    lines += ["", "set -euo pipefail"]
    if spread:
        lines += [
            f"dcoder presets show {shlex.quote(job.preset)} --section launch > launch-$SLURM_JOB_ID.yaml",
            "HEAD_NODE=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1)",
            "export HEAD_NODE",
        ]  # fmt: skip
    lines.append(f"command=({shlex.join(words)})")
    if out:
        again = shlex.join([*words[: 2 if words[0] == "train-stage" else 1], "--out", out, "--resume"])
        lines.append(f"if [ -f {shlex.quote(out + '/config.yaml')} ]; then command=({again}); fi")
    if not spread:
        lines.append('srun dcoder "${command[@]}"')
    else:
        launch = (
            'accelerate launch --config_file "launch-$SLURM_JOB_ID.yaml" --num_machines "$SLURM_NNODES" '
            f'--num_processes {gpus} --machine_rank "$SLURM_NODEID" --main_process_ip "$HEAD_NODE" '
            f'--main_process_port {_PORT} -m dcoder_cli "$@"'
        )
        lines.append(f"srun bash -c 'exec {launch}' dcoder \"${{command[@]}}\"")
    return "\n".join(lines) + "\n"


def header_commands(preset: str) -> list[list[str]]:
    """The commands in a preset's header, as a shell would split them."""
    lines = [line[1:].strip() for line in presets.text(preset).splitlines() if line.startswith("#   ")]
    return [shlex.split(line) for line in lines]


def own_words(words: Sequence[str]) -> list[str]:
    """A header's command without what launches it."""
    return list(words[words.index("dcoder_cli") + 1 :]) if words[0] == "accelerate" else list(words[1:])


def _of_header(preset: str, name: str) -> list[str]:
    found = [own_words(words) for words in header_commands(preset) if words[0] in ("accelerate", "dcoder")]
    known = {
        one[1] if one[0] == "train-stage" else one[0]: one for one in found if one[0] in ("train-stage", "grpo", "eval")
    }
    if name not in known:
        raise UserError(f"--stage {name!r} is none of preset {preset!r}; it has {', '.join(known)}")
    return known[name]


def _with(words: list[str], given: Mapping[str, str]) -> list[str]:
    words = list(words)
    for name, value in given.items():
        flag = f"--{name}"
        if flag not in words:
            raise UserError(f"{flag} {value!r} is no option of `dcoder {shlex.join(words[:2])}` here; leave it out")
        words[words.index(flag) + 1] = value
    return words


def _value(words: Sequence[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None

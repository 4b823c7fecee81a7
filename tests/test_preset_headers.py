"""The commands in a preset's header: each is one of ours, and reads only what an earlier one has written."""

from __future__ import annotations

import importlib
import itertools
import re
from typing import Any

import pytest
import typer

from dcoder_cli.base import presets
from dcoder_cli.main import COMMANDS
from dcoder_cli.training.slurm import header_commands

PUBLIC = re.compile(r"(Qwen|apple)/[\w.-]+$")  # hub ids
GIVEN = re.compile(r"[A-Z]+(\.\.)?$")  # what the reader puts in: CODE..
READ = ("--model", "--data", "--tokenizer", "--config_file")


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """The launcher's words and ours."""
    if words[0] == "dcoder":
        return [], words[1:]
    assert words[0] == "accelerate", words
    place = words.index("dcoder_cli")
    return words[:place], words[place + 1 :]


def parser_of(words: list[str]) -> tuple[Any, list[str]]:
    command: Any = typer.main.get_command(
        importlib.import_module(f"dcoder_cli.commands.{COMMANDS[words[0]].module}").app
    )
    rest = words[1:]
    while getattr(command, "commands", None):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize("name", presets.names())
def test_every_path_in_a_header_is_made_by_an_earlier_command(name: str) -> None:
    made: list[str] = []
    for words in header_commands(name):
        _launcher, ours = split(words)
        arguments = ours[: ours.index(">")] if ">" in ours else ours
        read = [value for key, value in itertools.pairwise(words) if key in READ]
        if arguments[0] == "convert" and not arguments[1].startswith("--"):
            read.append(arguments[1])
        if arguments[0] == "tokenize":
            read.append(arguments[2])
        for path in read:
            inside = any(path == one or path.startswith(f"{one}/") for one in made)
            assert inside or PUBLIC.match(path) or GIVEN.match(path), (name, path, made)
        command, rest = parser_of(arguments)
        command.make_context("x", list(rest), resilient_parsing=False)  # raises for an unknown option
        if "--preset" in words:
            assert words[words.index("--preset") + 1] == name
        made += [value for key, value in itertools.pairwise(words) if key in ("--out", ">")]
    assert made


@pytest.mark.parametrize("name", presets.names())
def test_a_header_names_the_rows_gpus_and_sections_that_the_hardware_says(name: str) -> None:
    from dcoder_cli.training.config import STAGES
    from dcoder_cli.training.memory.case import ROWS

    hardware, values = presets.hardware(name), presets.load(name)
    rows, seen = {**ROWS, **hardware.rows}, set()
    for words in header_commands(name):
        launcher, ours = split(words)
        if ours[:2] in (["tokenize", "pretrain"], ["tokenize", "sft"]):
            assert int(ours[ours.index("--seq-len") + 1]) == rows[ours[1]]
        if ours[0] in ("train-stage", "grpo"):
            section = "grpo" if ours[0] == "grpo" else f"stage{STAGES[ours[1]]}"
            seen.add(section)
            count = launcher[launcher.index("--num_processes") + 1] if "--num_processes" in launcher else None
            assert int(count or values["launch"]["num_processes"]) == hardware.gpus_for(section)
            machines = launcher[launcher.index("--num_machines") + 1] if "--num_machines" in launcher else None
            assert int(machines or values["launch"]["num_machines"]) == hardware.machines_for(section)
    # stage 0 is the paper's starting point, made by others; cpu-tiny makes its own
    assert seen | {"stage0"} == {one for one in values if one.startswith("stage") or one == "grpo"} | {"stage0"}

"""Presets: YAML files in the presets folder, one for each GPU size."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from dcoder_cli.base.config import build, nearest, read_yaml
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.ranges import Count, CountOrNone, Range, Rows, check, check_number, shown


def names() -> list[str]:
    """The presets shipped with dcoder, by name."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("dcoder_cli.presets").iterdir()
        if entry.name.endswith(".yaml")
    )


def text(name: str) -> str:
    """A preset's file, header comments included."""
    if name not in names():
        raise UserError(f"unknown preset {name!r}{nearest(name, names())}")
    return resources.files("dcoder_cli.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """A preset's sections. `name` is a shipped preset or the path of a YAML file of the same form."""
    if name.endswith((".yaml", ".yml")):
        return read_yaml(name)
    text(name)
    with resources.as_file(resources.files("dcoder_cli.presets").joinpath(f"{name}.yaml")) as path:
        return read_yaml(Path(path))


_OF_ACCELERATE = {  # numbers of a launch section, which Accelerate reads
    "num_processes": Count, "num_machines": Count, "machine_rank": CountOrNone,
    "main_process_port": Annotated[int, Range(0, 65535)],
}  # fmt: skip


def launch(name: str) -> dict[str, Any]:
    """A preset's launch section, an Accelerate configuration; empty where there is none. Raises UserError for a wrong number."""
    if load(name).get("launch") is None:
        return {}
    values = section(name, "launch")
    for key, kind in _OF_ACCELERATE.items():
        value = values.get(key)
        if isinstance(value, float):
            raise UserError(f"section 'launch' of preset {name!r}: {key} = {value} must be a whole number")
        check_number(f"section 'launch' of preset {name!r}: {key}", value, kind)
    return values


def section(name: str, part: str) -> dict[str, Any]:
    """A preset's section. Raises UserError where it has none: its numbers would be the defaults' and not the preset's."""
    values = load(name)
    if part not in values:
        raise UserError(f"preset {name!r} has no section {part!r}; it has {', '.join(map(str, values))}")
    found = {} if values[part] is None else values[part]
    if not isinstance(found, dict):
        raise UserError(f"section {part!r} of preset {name!r} must hold a mapping of keys, not {type(found).__name__}")
    return found


BATCH_SIZE = 8  # rows decoded together where nobody says: small enough for every card and context that there is


def evaluation(name: str | None) -> tuple[dict[str, Any], int]:
    """A preset's section `eval`: settings of the sampler, over those of the protocol, and the rows decoded together.

    Raises UserError where it has none, or where its batch_size is no whole number from 1.
    """
    settings = {} if name is None else section(name, "eval")
    rows = settings.pop("batch_size", BATCH_SIZE)
    if type(rows) is not int:
        raise UserError(f"section 'eval' of preset {name!r}: batch_size = {shown(rows)} must be a whole number")
    check_number(f"section 'eval' of preset {name!r}: batch_size", rows, Rows)
    return settings, rows


@dataclass(frozen=True)
class Hardware:
    """What a preset is made for: its section `hardware`.

    Attributes:
        model: a size of model/sizes.py.
        machines, gpus: nodes, and GPUs over all of them; 0 GPUs is a CPU machine with one process.
        gpu_memory_gb: of one card as it is sold, read as GiB (an 80 GB card has 79 to 80 GiB); of a CPU machine its RAM.
        sections: GPUs of the sections that run on another number.
        rows: tokens of a row where it is not the usual, by kind of data: pretrain, sft, prompt (of stage 4), question (of
            generate and eval).
    """

    model: str
    gpus: CountOrNone
    gpu_memory_gb: Annotated[float, Range(above=0)]
    machines: Count = 1
    sections: dict[str, CountOrNone] = field(default_factory=dict)
    rows: dict[str, Count] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, "hardware.")
        each = max(1, self.gpus // self.machines)
        for name, count in {"gpus": self.gpus, **self.sections}.items():
            if (count > each and count % each) or count > max(1, self.gpus):
                raise UserError(f"hardware: {name} = {count} GPUs do not make whole machines of {each}")

    def gpus_for(self, section: str) -> int:
        """Processes of a section, over all machines."""
        return max(1, self.sections.get(section, self.gpus))

    def machines_for(self, section: str) -> int:
        """Machines that a section's processes take, with as many GPUs on each as the preset's."""
        each = max(1, self.gpus // self.machines)
        return -(-self.gpus_for(section) // each)


def hardware(name: str) -> Hardware:
    """What a preset is made for. Raises UserError where it does not say, or says it wrong."""
    return build(Hardware, section(name, "hardware"))

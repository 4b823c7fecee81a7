"""Every system through every step: rows are families of checkpoints, columns what dcoder does with them.

`python tests/test_systems.py` runs all cells and prints the table. A cell that does not apply says why in words, and there the
command must refuse in one line.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import systems
import torch
import toy_benchmark
from helpers import make_prompts, make_shards, refused, said
from safetensors.torch import load_file
from systems import SYSTEMS, VARIANTS, System

from dcoder_cli import load
from dcoder_cli.benchmarks import suites
from dcoder_cli.model.layouts import LAYOUTS

NEW = 6
PROMPT = "def add"
CPU = ("--device", "cpu")
# AR families once they are converted: the layout that each becomes, which keeps the shift.
BECOMES = {"qwen2": "Dream", "llama": "Dream", "qwen3": "A2D-Qwen3"}
SHIFTED = "hidden state i-1 predicts token i in these weights, and the public sampler reads hidden state i unless it is given right_shift_logits=True"


class Row:
    """A system, its checkpoint and what has been made of it so far."""

    def __init__(self, system: System, folder: Path, converted: bool = False) -> None:
        self.system, self.folder, self.converted = system, folder, converted
        self.name = f"{system.name}, converted" if converted else system.name
        self.diffusion = system.diffusion or converted
        self.network = systems.make(system, folder / "source")
        self.model = folder / "source"
        if converted:
            said("convert", self.model, "--out", folder / "converted")
            self.model = folder / "converted"

    @property
    def shown_as(self) -> str:
        """The system's name in `inspect`."""
        return BECOMES[self.system.model_type] if self.converted else self.system.system

    @property
    def rule(self) -> str:
        return "entropy" if self.shown_as == "Dream" else "confidence" if self.converted else self.system.rule

    @cached_property
    def loaded(self) -> Any:
        return load(self.model, device="cpu")

    @cached_property
    def prompt(self) -> list[int]:
        ids: list[int] = self.loaded.tokenizer(PROMPT)["input_ids"]
        return ids

    @cached_property
    def reference(self) -> Any:
        """The network of transformers that computes it; of a converted one with its new rows."""
        if self.converted:  # all else is the AR model's
            self.network.resize_token_embeddings(self.loaded.vocab_size, mean_resizing=False)
            table, head = self.loaded.network.model.embed_tokens.weight, self.loaded.network.lm_head.weight
            with torch.no_grad():
                self.network.model.embed_tokens.weight.copy_(table)
                self.network.lm_head.weight.copy_(head)
        return self.network

    def ask(self, *more: object) -> dict[str, Any]:
        asked = ("generate", "--model", self.model, "--max-new-tokens", NEW, *CPU, "--raw", "--json", *more, PROMPT)
        answer: dict[str, Any] = json.loads(said(*map(str, asked)))
        return answer

    def same(self, folder: Path) -> None:
        """A checkpoint that computes what this one does."""
        ids_BL = torch.tensor([self.prompt])
        with torch.no_grad():
            assert torch.equal(load(folder, device="cpu").logits(ids_BL), self.loaded.logits(ids_BL))

    def trained(self, out: Path) -> None:
        """A run's checkpoint is of the same family, in the same layout, and has learnt with every kind of weight."""
        last = out / "checkpoints" / "last"
        old, new = load_file(self.model / "model.safetensors"), load_file(last / "model.safetensors")
        assert set(old) == set(new)
        assert {key for key in old if not bool(torch.isfinite(new[key]).all())} == set()
        still = {key for key in old if torch.equal(old[key].float(), new[key].float())}
        assert all("lm_head" in key or "embed" in key for key in still), still
        told = json.loads(said("inspect", last, "--json"))
        assert (told["system"], told["shift"]) == (self.shown_as, self.loaded.shift)
        losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert losses and self.loaded.vocab_size == told["vocab_size"]


def loads(row: Row) -> str:
    """Logits are transformers' own, elementwise."""
    shift = row.loaded.shift
    assert row.loaded.is_diffusion == row.diffusion and shift == (row.system.shift or row.converted)
    expected_LV = systems.logits(row.reference, row.prompt * 3, not row.diffusion, shift)
    with torch.no_grad():
        ours_LV = row.loaded.logits(torch.tensor([row.prompt * 3]))[0]
    torch.testing.assert_close(ours_LV, expected_LV, rtol=1e-5, atol=1e-5)
    return "ok"


def generates(row: Row) -> str:
    """Token for token the plainest loop over transformers' logits."""
    answer, ids = row.ask(), row.loaded.ids
    if not row.diffusion:
        assert answer["tokens"] == systems.greedy(row.reference, row.prompt, NEW, set(ids.stops))
        return "ok"
    assert answer["settings"]["rule"] == row.rule
    tokens, steps = systems.decoded(row.reference, row.prompt, NEW, ids.mask, row.loaded.shift, row.rule)
    assert (answer["tokens"], answer["reveal_step"]) == (tokens, steps)
    return "ok"


def generates_fast(row: Row) -> str:
    """In one block with a commit a step: its first is the exact mode's, before any cache is used."""
    if not row.diffusion:
        why = refused("generate", "--model", row.model, "--mode", "fast", *CPU, PROMPT)
        assert "mode fast is for diffusion models" in why
        return "no: a token a step anyway"
    answer = row.ask("--mode", "fast", "--block-length", NEW, "--commit", "schedule", "--no-early-stop")
    assert len(answer["tokens"]) == NEW and row.loaded.ids.mask not in answer["tokens"]
    assert sorted(answer["reveal_step"]) == list(range(NEW))
    tokens, steps = systems.decoded(row.reference, row.prompt, NEW, row.loaded.ids.mask, row.loaded.shift, row.rule)
    first = steps.index(0)
    assert (answer["reveal_step"][first], answer["tokens"][first]) == (0, tokens[first])
    return "ok"


def arness(row: Row) -> str:
    """1 exactly for AR; for diffusion, the numbers of its own trajectory."""
    told = json.loads(
        said("arness", "--model", row.model, "--prompts", _prompts(row), "--max-new-tokens", "12", *CPU, "--json")
    )["series"][0]
    local = [*told["local"]["mean"], *told["global"]["mean"]]
    if not row.diffusion:
        assert set(local) == {1.0}
        return "1 exactly"
    assert all(0 <= one <= 1 for one in local)
    return "ok"


def evaluates(row: Row) -> str:
    """A local benchmark in the format of a published one."""
    told = _evaluated(row, "toy")
    assert told["tasks"] == 2 and set(told["scores"]["toy"]) == {"pass@1"}
    return "ok"


def evaluates_micro(row: Row) -> str:
    told = _evaluated(row, "micro-kinds", "--limit", 1, "--max-new-tokens", 4)
    assert told["tasks"] == 1
    return "ok"


def converts(row: Row) -> str:
    """The diffusion form computes, under a causal mask, what the AR model did."""
    out = row.folder / "out" / "convert"
    if row.diffusion:
        assert "is a diffusion checkpoint already" in refused("convert", row.model, "--out", out)
        return "no: is one already"
    if row.system.changes.get("mlp_bias"):
        why = refused("convert", row.model, "--out", out)
        assert "sets attention_bias and mlp_bias, weights that the Dream layout does not have" in why
        assert why == refused("convert", row.model, "--out", out, "--dry-run") and not out.exists()
        return "no: Dream has no such biases"
    told = json.loads(said("convert", row.model, "--out", out, "--json"))
    assert told["system"] == BECOMES[row.system.model_type] and told["shift"]
    planned = json.loads(said("convert", row.model, "--out", out.with_name("dry"), "--dry-run", "--json"))
    assert planned["becomes"]["layout"] == told["system"]
    after, ids_BL = load(out, device="cpu"), torch.tensor([row.prompt])
    with torch.no_grad():
        causal_BLV, ar_BLV = after.logits(ids_BL, causal=True), row.loaded.logits(ids_BL)
    torch.testing.assert_close(causal_BLV[..., : ar_BLV.shape[-1]], ar_BLV, rtol=1e-5, atol=1e-5)
    return f"to {told['system']}"


def tunes(row: Row) -> str:
    """Stage 3."""
    out, data = row.folder / "out" / "sft", row.folder / "shards"
    if not data.exists():
        make_shards(data, row.loaded.tokenizer, "sft", rows=8, heldout=0)
    call = [
        "train-stage", "sft", "--model", row.model, "--data", data, "--out", out, *CPU, "--set=steps=2", "--set=global_batch=2",
        "--set=micro_batch=2", "--set=precision=fp32", "--set=optimizer.learning_rate=1e-3", "--set=optimizer.warmup_ratio=null",
    ]  # fmt: skip
    if not row.diffusion:
        assert f"is an AR checkpoint; convert it first with `dcoder convert {row.model}`" in refused(*call)
        assert not (out / "metrics.jsonl").exists()
        return "no: convert it first"
    said(*call)
    row.trained(out)
    return "ok"


def learns(row: Row) -> str:
    """Stage 4, one step of coupled-GRPO."""
    out, data = row.folder / "out" / "grpo", row.folder / "questions"
    if not data.exists():
        rows = [{"task_id": f"t{n}", "messages": [{"role": "user", "content": "x" * n}], "entry_point": "f",
                 "tests": {"shown": [], "hidden": ["assert f(1) == 1"]}} for n in (1, 2)]  # fmt: skip
        make_prompts(data, rows)
    call = [
        "grpo", "--model", row.model, "--data", data, "--out", out, *CPU, "--reward=systems:spread=1",
        "--set=steps=1", "--set=prompts_per_step=1", "--set=group_size=4", "--set=micro_batch=4", "--set=rollout.max_new_tokens=6",
        "--set=optimizer.learning_rate=1e-3", "--set=train_embeddings=true",
    ]  # fmt: skip
    if not row.diffusion:
        assert "is an AR checkpoint; convert and tune it first" in refused(*call)
        return "no: convert it first"
    said(*call)
    row.trained(out)
    return "ok"


def saves(row: Row) -> str:
    """Names and numbers of the file are those that were read, and it loads again."""
    out = row.folder / "out" / "saved"
    row.loaded.save(out)
    before, after = load_file(row.model / "model.safetensors"), load_file(out / "model.safetensors")
    assert set(before) == set(after) and all(torch.equal(before[key], after[key]) for key in before)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (row.model, out))
    assert {key: new[key] for key in old} == old
    row.same(out)
    return "ok"


def exports(row: Row) -> str:
    """What is exported computes the same; where other code would misread it, the card says so."""
    out = row.folder / "out" / "exported"
    told = json.loads(said("export", row.model, "--out", out, "--json"))
    row.same(out)
    card = (out / "README.md").read_text()
    if not row.diffusion:
        from transformers import AutoModelForCausalLM

        theirs = AutoModelForCausalLM.from_pretrained(out).eval()
        expected_LV = systems.logits(theirs, row.prompt, True, True)
        torch.testing.assert_close(
            expected_LV, systems.logits(row.reference, row.prompt, True, True), rtol=1e-5, atol=1e-5
        )
        return "ok, AutoModel loads it"
    if told["auto_map"]:
        assert row.shown_as in ("Dream", "LLaDA")
        return "ok, with auto_map"
    why = SHIFTED if row.loaded.shift else "its code is the package dllm (github.com/ZHZisZZ/dllm); import that first"
    assert told["why_not"] == why and why in card and row.shown_as.startswith("A2D")
    return "ok, card warns of the shift" if row.loaded.shift else "ok, with dllm"


def inspects(row: Row) -> str:
    told = json.loads(said("inspect", row.model, "--json"))
    assert (told["system"], told["kind"]) == (row.shown_as, "diffusion" if row.diffusion else "ar")
    assert told["shift"] == row.loaded.shift and told["parameters"] == _parameters(row)
    assert (told["ids"]["mask"] is not None) == row.diffusion
    found = {one["subject"]: one["message"] for one in told["findings"]}
    expected = (
        {"pad"}
        if row.name == "DiffuCoder"
        else {"shift"}
        if row.shown_as.startswith("A2D") and told["shift"]
        else set()
    )
    assert set(found) == expected, found
    assert found.get("shift", SHIFTED) == SHIFTED
    return f"ok, {', '.join(found)} noted" if found else "ok"


def fits(row: Row) -> str:
    """`presets fit` reads its shape from config.json."""
    told = json.loads(said("presets", "fit", "--model", row.model, "--gpus", "1", "--gpu-memory", "24", "--json"))
    assert told["sections"]["stage0"]["parts"]["weights"] == 4 * _parameters(row)
    assert all(one["fits"] for one in told["sections"].values())
    return "ok"


STEPS: dict[str, Callable[[Row], str]] = {
    "load": loads, "generate": generates, "fast": generates_fast, "arness": arness, "eval": evaluates, "micro": evaluates_micro,
    "convert": converts, "sft": tunes, "grpo": learns, "save, load": saves, "export": exports, "inspect": inspects, "fit": fits,
}  # fmt: skip


def _parameters(row: Row) -> int:
    return sum(value.numel() for value in load_file(row.model / "model.safetensors").values())


def _prompts(row: Row) -> str:
    file = row.folder / "prompts.txt"
    file.write_text(json.dumps({"prompt": PROMPT}) + "\n")
    return str(file.rename(file.with_suffix(".jsonl")))


def _evaluated(row: Row, task: str, *more: object) -> dict[str, Any]:
    out = row.folder / "out" / task
    call = ["eval", task, "--model", row.model, *CPU, "--workers", 1, "--out", out, "--json", *more]
    told: dict[str, Any] = json.loads(said(*map(str, call)))
    return told


@contextlib.contextmanager
def registered(folder: Path) -> Iterator[None]:
    """The toy benchmark and its data, as a contributor's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "MODULES", (*suites.MODULES, "toy_benchmark"))
        patch.setenv("DCODER_BENCHMARKS", str(folder))
        toy_benchmark.write(folder)
        patch.delitem(
            sys.modules, "dcoder_cli.commands.eval", raising=False
        )  # which lists the benchmarks as it is read
        yield
        sys.modules.pop("dcoder_cli.commands.eval", None)


def rows(chosen: tuple[System, ...]) -> list[tuple[System, bool]]:
    """The systems, and behind an AR one what it becomes."""
    return [(one, converted) for one in chosen for converted in ((False,) if _alone(one) else (False, True))]


def _alone(system: System) -> bool:
    return system.diffusion or bool(system.changes.get("mlp_bias"))


def table(chosen: tuple[System, ...], folder: Path, told: Callable[[str], None]) -> list[list[str]]:
    """All cells; one that fails says so, and the reason."""
    made = [["system", *STEPS]]
    with registered(folder / "benchmarks"):
        for number, (system, converted) in enumerate(rows(chosen)):
            with contextlib.redirect_stderr(io.StringIO()):
                row = Row(system, folder / str(number), converted)
                cells = [row.name]
                for name, step in STEPS.items():
                    try:
                        cells.append(step(row))
                    except Exception as error:
                        cells.append("FAILS")
                        told(f"{row.name}, {name}: {type(error).__name__}: {error}")
            made.append(cells)
    return made


# By default the systems themselves and Qwen3's conversion, the slowest column where layouts differ most; the rest is slow.
_QUICK = {"Dream", "LLaDA", "A2D-Qwen3", "Qwen2", "Qwen3", "Qwen3, converted", "Llama"}
_QUICK_MICRO = {"LLaDA", "Qwen3", "Qwen3, converted"}
_QUICK_CELLS = {
    ("DiffuCoder", "load"),
    ("DiffuCoder", "inspect"),
    ("Qwen3, YaRN", "save, load"),
    ("Llama, biases", "convert"),
}


def _quick(name: str, step: str) -> bool:
    return (name, step) in _QUICK_CELLS or (name in _QUICK and (step != "micro" or name in _QUICK_MICRO))


_CELLS = [
    pytest.param(
        number, step, id=f"{name}-{step}",
        marks=[] if _quick(name, step) else [pytest.mark.slow],
    )
    for number, name in enumerate(f"{one.name}, converted" if converted else one.name for one, converted in rows(SYSTEMS + VARIANTS))
    for step in STEPS
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Row]]:
    """A row by its number; each is made once."""
    folder, kept = tmp_path_factory.mktemp("systems"), {}

    def row(number: int) -> Row:
        if number not in kept:
            system, converted = rows(SYSTEMS + VARIANTS)[number]
            kept[number] = Row(system, folder / str(number), converted)
        return kept[number]

    with registered(folder / "benchmarks"):
        yield row


@pytest.mark.parametrize(("number", "step"), _CELLS)
def test_every_system_goes_through_every_step(made: Callable[[int], Row], number: int, step: str) -> None:
    assert STEPS[step](made(number))


def test_every_layout_is_a_row() -> None:
    assert {one.model_type for one in SYSTEMS} == set(LAYOUTS)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"use_sliding_window": True}, "sets use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "has layer_types = "),
        ({"head_dim": 0.5}, "head_dim = 0.5; it must be a whole number"),
        ({"num_hidden_layers": None}, "lacks 'num_hidden_layers'"),
    ],
    ids=["sliding window", "sliding layers", "no head", "no layers"],
)
@pytest.mark.parametrize("model_type", ["qwen3", "a2d-qwen3"])
def test_a_qwen3_that_computes_otherwise_is_refused(
    model_type: str, changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    system = next(one for one in SYSTEMS if one.model_type == model_type)
    systems.make(replace(system, config=changes), tmp_path / "model")
    assert why in refused("generate", "--model", tmp_path / "model", "--device", "cpu", "x")


def test_a_folder_of_another_shift_than_its_public_code_reads_says_so(
    made: Callable[[int], Row], tmp_path: Path
) -> None:
    """A Qwen3 keeps the AR model's shift, and dLLM's code reads hidden state i unless it is told: `convert` warns."""
    qwen3 = next(number for number, (one, _) in enumerate(rows(SYSTEMS)) if one.name == "Qwen3")
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        said("convert", made(qwen3).model, "--out", tmp_path / "out")
    assert f"warning: shift: {SHIFTED}\n" in stderr.getvalue()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dcoder"]["shift"] is True


def print_table() -> int:
    """The table of all systems, and of their variants; 1 where a cell fails."""
    from rich.console import Console
    from rich.table import Table

    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        cells = table(SYSTEMS + VARIANTS, Path(folder), failed.append)
    shown = Table(*cells[0])
    for one in cells[1:]:
        shown.add_row(*one)
    Console(width=220).print(shown)
    count = sum(len(one) - 1 for one in cells[1:])
    print(f"{len(cells) - 1} rows x {len(STEPS)} steps = {count} cells, {len(failed)} fail", *failed, sep="\n")
    return int(bool(failed))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(print_table())

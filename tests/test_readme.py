"""What the README says is so."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from helpers import make_model
from readme import FILES, fill, tables

import dcoder_cli
from dcoder_cli.main import COMMANDS


def test_generated_parts_are_up_to_date(root: Path) -> None:
    for file, parts in FILES.items():
        text = (root / file).read_text(encoding="utf-8")
        assert all(f"<!-- {name} -->" in text for name in parts)
        assert fill(text) == text, "run `python tests/readme.py`"
    assert sorted(tables()) == sorted(part for parts in FILES.values() for part in parts)


def test_the_readme_fits_two_screens(root: Path) -> None:
    """What belongs to docs/ goes there; of these lines a third are the generated tables and the block to paste."""
    assert len((root / "README.md").read_text(encoding="utf-8").splitlines()) <= 155


def test_it_starts_with_two_commands(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    first = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert first is not None
    lines = first[1].strip().splitlines()
    assert len(lines) == 2 and lines[0].endswith("dcoder quickstart")
    assert lines[1].endswith("python -m pytest -n 2 --dist loadfile")


def test_the_python_names_exist_and_are_shown(root: Path) -> None:
    shown = re.search(r"from dcoder_cli import (.*)", (root / "README.md").read_text(encoding="utf-8"))
    assert shown is not None
    names = shown[1].split(", ")
    assert set(names) >= {"load", "generate", "arness", "judge"}
    for name in names:
        assert callable(getattr(dcoder_cli, name))


def test_the_tree_names_every_package(root: Path) -> None:
    tree = tables()["tree"]
    for path in (root / "dcoder_cli").iterdir():
        if (path / "__init__.py").is_file():
            assert f"  {path.name}/ " in tree, path.name


def test_ci_runs_the_readmes_test_command(root: Path) -> None:
    """`.ci/run` finds it with sed: one line, and the one that the README gives."""
    script = (root / ".ci" / "run").read_text(encoding="utf-8")
    pattern = re.search(r"sed -n '/(.*?)/p' README.md", script)
    assert pattern is not None
    text = (root / "README.md").read_text(encoding="utf-8")
    found = [line for line in text.splitlines() if re.search(pattern[1], line)]
    assert len(found) == 1 and found[0].endswith("pytest -n 2 --dist loadfile"), found


def test_the_workflow_names_what_is_there(root: Path) -> None:
    """Test files, the Pythons that pyproject.toml names, and torch's version in the README's commands."""
    import tomllib

    import yaml

    text = (root / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    files = re.findall(r"tests/\w+\.py", text)
    assert len(files) >= 20 and all((root / file).is_file() for file in files)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = [one.rpartition(" ")[2] for one in project["classifiers"] if "Python :: 3." in one]
    assert jobs["linux"]["strategy"]["matrix"]["python"] == known and set(
        jobs["macos"]["strategy"]["matrix"]["python"]
    ) <= set(known)
    texts = (text, (root / "README.md").read_text(encoding="utf-8"))
    assert len({version for one in texts for version in re.findall(r"torch==([\d.]+\d)", one)}) == 1


def block(root: Path) -> str:
    """The block that adapts, tunes and scores a model."""
    found = re.search(r"<!-- block -->\n```sh\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_every_option_of_the_block_exists(root: Path) -> None:
    """Each command of it is parsed by the command itself; nothing is run."""
    lines = [line for line in block(root).replace("\\\n", " ").splitlines() if line.startswith("dcoder ")]
    assert len(lines) == 12
    for line in lines:
        _, name, *arguments = shlex.split(line)
        module = importlib.import_module(f"dcoder_cli.commands.{COMMANDS[name].module}")
        command = typer.main.get_command(module.app)
        while isinstance(command, typer.core.TyperGroup):
            command = command.commands[arguments.pop(0)]
        command.make_context(name, arguments)


@pytest.mark.slow
def test_the_block_runs(root: Path, tmp_path: Path) -> None:
    """As it stands, but for a tiny model and data of our own, and a benchmark that needs no network."""
    make_model(tmp_path / "ar", ar=True, context=256)
    rows = {
        "code": [{"text": f"def add{n}(a, b):\n    return a + b + {n}\n"} for n in range(400)],
        "chats": [{"instruction": f"Add {n}.", "output": f"```python\nx = {n}\n```"} for n in range(200)],
        "problems": [
            {"id": str(n), "question": f"Write f{n}, adding {n}.", "test_cases": [f"assert f{n}(1) == {n + 1}"]}
            for n in range(60)
        ],
    }
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    script = block(root)
    for pattern, text in (
        (r"MODEL=\S+ PRESET=\S+", "MODEL=ar PRESET=cpu-tiny"),
        (r"CODE=\S+ BETTER=\S+", "CODE=code.jsonl BETTER=code.jsonl"),
        (r"CHATS=\S+ PROBLEMS=\S+", "CHATS=chats.jsonl PROBLEMS=problems.jsonl"),
        (r"--seq-len \d+", "--seq-len 64"),
        (r"steps=500|steps=200|steps=100", "steps=2"),
        (r"anneal_steps=50", "anneal_steps=1"),
        (r"--set epochs=2", "--set steps=2"),
        (r"eval humaneval", "eval micro-kinds --limit 2 --max-new-tokens 8"),
        (r"--watch", "--max-new-tokens 8"),
    ):
        script, count = re.subn(pattern, text, script)
        assert count, pattern
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "scores" / "results.json").is_file() and (tmp_path / "runs" / "grpo" / "checkpoints").is_dir()
    card = (tmp_path / "diffucoder-0.5b" / "README.md").read_text()
    assert all(f"| {stage} |" in card for stage in ("adapt", "mid", "sft", "grpo")) and "micro-kinds pass@1" in card


def test_its_links_lead_somewhere(root: Path) -> None:
    """Every relative link of README and docs, and the heading that it names; the picture is small."""
    files = [root / "README.md", *(root / "docs").glob("*.md")]
    for file in files:
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", file.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            target = file.parent / name if name else file
            assert target.is_file(), f"{file.name}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{file.name}: {link}"
    assert (root / "docs" / "report.png").stat().st_size < 100_000


def blocks(file: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    found: list[str] = []
    inside = False
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line == f"```{language}"
            found += [""] * inside
        elif inside:
            found[-1] += line + "\n"
    return found


def test_the_examples_of_the_formats_work(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows for training are read, and the reward, the batch reward and the estimator do what is said of them."""
    import torch

    from dcoder_cli.data.formats import messages_of, sample_of
    from dcoder_cli.data.holes import Gap
    from dcoder_cli.data.problems import read_problem
    from dcoder_cli.diffusion.coupled import MaskSettings
    from dcoder_cli.diffusion.estimators import make_passes
    from dcoder_cli.training.grpo.rewards import Rewarder

    chats, gap, problems, prompts, _ = blocks(root / "docs" / "formats.md", "json")
    assert sample_of(json.loads(gap), "row") == Gap("def add(a, b):\n", "    return a + b\n", "")
    for line in chats.splitlines():
        assert [turn["role"] for turn in messages_of(json.loads(line), "row")][-2:] == ["user", "assistant"]
    coded, counted = (read_problem(json.loads(line), "row", "doc") for line in problems.splitlines())
    assert (coded.entry_point, coded.pass_rates, counted.answer) == ("add", [0.4], "7")
    assert json.loads(prompts)["entry_point"] == "add"

    monkeypatch.chdir(tmp_path)
    one, batch, estimator, readers = blocks(root / "docs" / "formats.md", "python")
    exec(readers.splitlines()[0], {})  # what they give: test_reading_back.py
    for name, code in {"shown_reward": one, "shown_batch": batch, "shown_estimator": estimator}.items():
        (tmp_path / f"{name}.py").write_text(code)
    for module, batched in (("shown_reward", False), ("shown_batch", True)):
        rewarder = Rewarder({f"{module}:short": 0.5}, None)
        assert bool(rewarder.batched) == batched
        assert [rewarder.result(rewarder.submit({}, text)).total for text in ("a b", "a " * 50)] == [0.5, 0.0]
    passes = make_passes("shown_estimator:halves", 9, 3, torch.Generator(), MaskSettings())
    assert bool((passes.masked_PN.sum(dim=0) == 1).all())

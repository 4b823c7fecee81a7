"""The recipes of docs/extending.md, followed in a copy of the package: the files they name are all that it takes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import make_model, make_shards
from safetensors.torch import load_file, save_file

# Runs several commands in one process of the copy; prints [exit code, stdout, stderr] of each.
_DRIVER = """
import contextlib, io, json, sys
import dcoder_cli
from dcoder_cli.main import main
assert dcoder_cli.__file__.startswith(sys.argv[1]), dcoder_cli.__file__
results = []
for arguments in json.loads(sys.argv[2]):
    sys.argv = ["dcoder", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as left:
            code = left.code or 0
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


class Copy:
    """A copy of the package, laid out as it installs, in which a recipe's files are edited."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.edited: set[str] = set()
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / "dcoder_cli", folder / "dcoder_cli", ignore=ignore)
        for name in ("commands", "presets"):
            shutil.copytree(root / name, folder / "dcoder_cli" / name, ignore=ignore)

    def file(self, name: str) -> Path:
        """Where a file of the project is in the copy."""
        return self.folder / (name if name.startswith("dcoder_cli/") else f"dcoder_cli/{name}")

    def write(self, name: str, text: str) -> None:
        """A new file."""
        self.edited.add(name)
        assert not self.file(name).exists()
        self.file(name).write_text(text)

    def edit(self, name: str, before: str, after: str) -> None:
        """Put `after` in the place of `before`, which stands there once."""
        self.edited.add(name)
        text = self.file(name).read_text()
        assert text.count(before) == 1, f"{name} has {before!r} {text.count(before)} times"
        self.file(name).write_text(text.replace(before, after))

    def run(self, *commands: list[Any]) -> list[str]:
        """What the commands print; each must end with exit code 0."""
        results = json.loads(
            self.python(_DRIVER, json.dumps([[str(part) for part in command] for command in commands]))
        )
        assert all(code == 0 for code, _, _ in results), results
        return [out for _, out, _ in results]

    def python(self, code: str, *arguments: str) -> str:
        """What a program prints that imports the copy; its first argument is the copy's folder."""
        done = subprocess.run(
            [sys.executable, "-c", code, str(self.folder), *arguments],
            cwd=self.folder, env={**os.environ, "PYTHONPATH": str(self.folder)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Copy:
    return Copy(root, tmp_path / "copy")


def named(root: Path, title: str) -> set[str]:
    """The files that a recipe names."""
    text = (root / "docs" / "extending.md").read_text(encoding="utf-8")
    recipe = re.search(rf"## {re.escape(title)}\n(.*?)(?=\n## |\Z)", text, re.DOTALL)
    assert recipe is not None, title
    return set(re.findall(r"^\| `([^`]+)` \|", recipe[1], re.MULTILINE))


def test_every_file_that_a_recipe_names_is_there(root: Path) -> None:
    text = (root / "docs" / "extending.md").read_text(encoding="utf-8")
    files = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(files) >= 9
    for name in files:
        assert (root / name).parent.is_dir() and ("NAME" in name or (root / name).is_file()), name


def test_what_a_recipe_names_stands_in_the_file_it_names(root: Path) -> None:
    text = (root / "docs" / "extending.md").read_text(encoding="utf-8")
    pairs = re.findall(r"`(\w+)` \(`(dcoder_cli/[^`]+)`\)", text)
    for file, what in re.findall(r"^\| `(dcoder_cli/[^`]+\.py)` \| (.*) \|$", text, re.MULTILINE):
        if "NAME" not in file and "help text" not in what:
            pairs += [(name, file) for name in re.findall(r"`(?:\w+\.)?([A-Za-z_]+)`", what)]
    assert len(pairs) >= 10
    for name, file in pairs:
        assert re.search(rf"\b{name}\b", (root / file).read_text(encoding="utf-8")), f"{file} has no {name}"


def test_add_an_unmasking_rule(copy: Copy, root: Path, tmp_path: Path) -> None:
    """From right to left: nobody else's order, so the reveal steps prove that the rule was asked."""
    copy.edit(
        "dcoder_cli/diffusion/unmasking.py", '"random", "left-to-right")', '"random", "left-to-right", "right-to-left")'
    )
    copy.edit(
        "dcoder_cli/diffusion/unmasking.py",
        "    return -places_N.to(probabilities_NV)\n",
        '    if rule == "right-to-left":\n        return places_N.to(probabilities_NV)\n    return -places_N.to(probabilities_NV)\n',
    )
    copy.edit("dcoder_cli/base/options.py", "left-to-right, or", "left-to-right, right-to-left, or")
    assert copy.edited == named(root, "Add an unmasking rule")

    model = make_model(tmp_path / "model")
    shown, exact, fast = copy.run(
        ["generate", "--help"],
        ["generate", "--model", model, "--rule", "right-to-left", "--max-new-tokens", 6, "--json", "def"],
        ["generate", "--model", model, "--rule", "right-to-left", "--max-new-tokens", 6, "--mode", "fast", "--commit",
         "schedule", "--no-early-stop", "--json", "def"],
    )  # fmt: skip
    assert "right-to-left" in " ".join(shown.split())
    for printed in (exact, fast):
        assert json.loads(printed)["reveal_step"] == [5, 4, 3, 2, 1, 0]


_TOY = """

def _toy_config(config: Config) -> dict[str, Any]:
    return {
        "vocab_size": config["words"],
        "hidden_size": config["width"],
        "intermediate_size": config["inner"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["heads"],
        "num_key_value_heads": config["heads"],
        "max_position_embeddings": config["context"],
        "rope_theta": config["theta"],
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": config["tied"],
        "sliding_window": None,
    }


def _toy_to_ours(key: str) -> str:
    return key.replace("toy.words", "model.embed_tokens").replace("toy.", "model.")


def _toy_to_stored(key: str) -> str:
    return key.replace("model.embed_tokens", "toy.words").replace("model.", "toy.")


BLOCKS["mistral"] = Blocks("MistralConfig", "MistralForCausalLM", becomes="Dream")
LAYOUTS["toy"] = Layout(
    "Toy", "mistral", True, True, _toy_config, _toy_to_ours, _toy_to_stored, rule="margin", protocol="dream"
)
LAYOUTS["toy-ar"] = Layout("Toy (AR)", "mistral", False, True, _toy_config, _toy_to_ours, _toy_to_stored)
"""


def make_toy(source: Path, folder: Path, model_type: str) -> Path:
    """A checkpoint of a family that dcoder does not know, computing what `source` computes; keys and config its own."""
    shutil.copytree(source, folder)
    theirs = json.loads((source / "config.json").read_text())
    config = {
        "model_type": model_type, "words": theirs["vocab_size"], "width": theirs["hidden_size"],
        "inner": theirs["intermediate_size"], "depth": theirs["num_hidden_layers"],
        "heads": theirs["num_attention_heads"], "context": theirs["max_position_embeddings"],
        "theta": theirs["rope_theta"], "tied": theirs["tie_word_embeddings"],
        **{key: value for key, value in theirs.items() if key.endswith("_token_id")},
    }  # fmt: skip
    (folder / "checksums.json").unlink()  # of what another family wrote
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(source / "model.safetensors")
    biases = {key for key in weights if key.endswith("_proj.bias")}
    assert all(float(weights[key].abs().max()) == 0 for key in biases)
    save_file(
        {
            key.replace("model.embed_tokens", "toy.words").replace("model.", "toy."): value
            for key, value in weights.items()
            if key not in biases
        },
        folder / "model.safetensors",
    )
    return folder


def test_add_a_model_layout(copy: Copy, root: Path, tmp_path: Path) -> None:
    """A family with its own keys, config and blocks loads, decodes, trains, is saved as it was stored, and is scored."""
    layouts = copy.file("dcoder_cli/model/layouts.py")
    copy.edited.add("dcoder_cli/model/layouts.py")
    layouts.write_text(layouts.read_text() + _TOY)
    assert copy.edited == named(root, "Add a model layout")

    known, known_ar = make_model(tmp_path / "known", context=256), make_model(tmp_path / "known-ar", ar=True)
    toy, toy_ar = make_toy(known, tmp_path / "toy", "toy"), make_toy(known_ar, tmp_path / "toy-ar", "toy-ar")
    from dcoder_cli import load

    shards = make_shards(tmp_path / "shards", load(known, device="cpu").tokenizer)
    asked = ["--max-new-tokens", 8, "--device", "cpu", "--raw", "--json", "def add"]
    train = ["train-stage", "adapt", "--data", shards, "--device", "cpu", "--set", "steps=2", "--set", "global_batch=4",
             "--set", "micro_batch=4", "--set", "anneal_steps=0", "--json"]  # fmt: skip
    told, ours, theirs, ar, known_ar_text, _, _, scored, converted, again = copy.run(
        ["inspect", toy, "--json"],
        ["generate", "--model", toy, *asked],
        ["generate", "--model", known, "--rule", "margin", *asked],
        ["generate", "--model", toy_ar, *asked],
        ["generate", "--model", known_ar, *asked],
        [*train, "--model", toy, "--out", tmp_path / "run"],
        [*train, "--model", known, "--out", tmp_path / "known-run"],
        ["eval", "micro-kinds", "--model", toy, "--limit", 1, "--max-new-tokens", 4, "--device", "cpu", "--workers", 1,
         "--out", tmp_path / "scores", "--json"],
        ["convert", toy_ar, "--out", tmp_path / "converted", "--json"],
        ["inspect", tmp_path / "run" / "checkpoints" / "last", "--json"],
    )  # fmt: skip
    assert (json.loads(told)["system"], json.loads(told)["kind"], json.loads(told)["findings"]) == (
        "Toy",
        "diffusion",
        [],
    )
    assert (
        json.loads(ours)["tokens"] == json.loads(theirs)["tokens"] and json.loads(ours)["settings"]["rule"] == "margin"
    )
    assert json.loads(ar)["tokens"] == json.loads(known_ar_text)["tokens"]
    assert json.loads(scored)["protocol"] == "dream-base"
    assert json.loads(converted)["system"] == "Dream"

    # What training wrote is stored as the family stores it.
    saved = tmp_path / "run" / "checkpoints" / "last"
    assert set(load_file(saved / "model.safetensors")) == set(load_file(toy / "model.safetensors"))
    assert (
        json.loads((saved / "config.json").read_text())["model_type"] == "toy" and json.loads(again)["system"] == "Toy"
    )
    first, second = (
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()[:1]]
        for run in ("run", "known-run")
    )
    assert first == pytest.approx(second, rel=1e-5)


def test_add_a_reward(copy: Copy, root: Path) -> None:
    file = "dcoder_cli/training/grpo/rewards.py"
    copy.edit(file, '("code", "format", "math")', '("code", "format", "math", "brief")')
    copy.edit(
        file,
        '            elif name == "math":\n',
        '            elif name == "brief":\n                parts[name] = 1 / len(text)\n            elif name == "math":\n',
    )
    assert copy.edited == named(root, "Add a reward")
    code = (
        "from dcoder_cli.training.grpo.rewards import Rewarder\nasked = Rewarder({'brief': 3.0}, None)\n"
        "print(asked.result(asked.submit({'task_id': 'a'}, 'four')).total)"
    )
    assert copy.python(code) == "0.75\n"


def test_add_an_estimator(copy: Copy, root: Path) -> None:
    """Every second token, then the others: it is offered by name, and its passes are those of the function."""
    copy.edit(
        "dcoder_cli/diffusion/coupled.py",
        "def full_mask(",
        "def stripes(tokens: int, prompt_tokens: int, generator: torch.Generator, settings: MaskSettings) -> Passes:\n"
        "    first_N = torch.arange(tokens) % 2 == 0\n    masked_PN = torch.stack([first_N, ~first_N])\n"
        "    return Passes(masked_PN, masked_PN.float(), torch.zeros(2, prompt_tokens, dtype=torch.bool))\n\n\ndef full_mask(",
    )
    copy.edit(
        "dcoder_cli/diffusion/estimators.py",
        "ESTIMATORS = {\n",
        'ESTIMATORS = {\n    "stripes": "dcoder_cli.diffusion.coupled:stripes",\n',
    )
    assert copy.edited == named(root, "Add an estimator")
    (shown,) = copy.run(["grpo", "--help"])
    assert "stripes, " in " ".join(shown.split())
    code = (
        "import torch\nfrom dcoder_cli.diffusion.coupled import MaskSettings\n"
        "from dcoder_cli.diffusion.estimators import make_passes\nfrom dcoder_cli.training.grpo.config import GrpoConfig\n"
        "GrpoConfig(estimator='stripes')\n"
        "print(make_passes('stripes', 3, 2, torch.Generator(), MaskSettings()).masked_PN.int().tolist())"
    )
    assert copy.python(code) == "[[1, 0, 1], [0, 1, 0]]\n"


def test_add_a_preset(copy: Copy, root: Path) -> None:
    copy.write(
        "presets/toy.yaml", "# toy: a preset of a test.\n#\n#   dcoder generate --preset toy\n\ngenerate: {steps: 7}\n"
    )
    assert {re.sub("toy", "NAME", name) for name in copy.edited} == named(root, "Add a preset")
    listed, shown = copy.run(["presets", "list"], ["presets", "show", "toy", "--section", "generate", "--json"])
    assert "a preset of a test" in listed and json.loads(shown)["values"] == {"steps": 7}


def test_add_a_command(copy: Copy, root: Path) -> None:
    copy.write(
        "commands/toy.py",
        '"""`dcoder toy`."""\n\nimport typer\n\napp = typer.Typer()\n\n\n@app.command()\ndef toy() -> None:\n'
        '    """Say hello."""\n    print("hello")\n',
    )
    copy.edit(
        "dcoder_cli/main.py",
        '    "doctor": CommandEntry(',
        '    "toy": CommandEntry("toy", "Say hello."),\n    "doctor": CommandEntry(',
    )
    assert {re.sub("toy", "NAME", name) for name in copy.edited} == named(root, "Add a command")
    shown, said = copy.run(["--help"], ["toy"])
    assert "Say hello." in shown and said == "hello\n"

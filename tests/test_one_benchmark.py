"""A benchmark is one file and one registration, and there is one way from its tasks to a score."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toy_benchmark
from helpers import dcoder, make_model, refused

from dcoder_cli.benchmarks import answers, published, suites
from dcoder_cli.benchmarks.judging import Judging
from dcoder_cli.decoding.requests import Settings

# Files that may name a benchmark, and why. Take lines out, do not add any.
MAY_NAME = {
    "data/": "training data: micro's tasks are generated there, and rows of public sets are read in their layouts",
    "experiments/": "the studies are of the micro benchmark",
    "timing/judge.py": "the programs that it times are references of data/micro.py's tasks",
    "benchmarks/suites.py": "the registration",
    "benchmarks/published.py": "the paper's table",
    "benchmarks/oracles.py": "facts of EvalPlus's tasks, for evalplus.py",
    "benchmarks/data.py": "the cache of the package evalplus is a place of data",
}
NAMES = re.compile(r"humaneval|mbpp|evalplus|bigcodebench|gsm8k|cruxeval|livecodebench|micro(?!.?batch)", re.IGNORECASE)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The registration; the data's file."""
    monkeypatch.setattr(suites, "MODULES", (*suites.MODULES, "toy_benchmark"))
    monkeypatch.setenv("DCODER_BENCHMARKS", str(tmp_path / "benchmarks"))
    return toy_benchmark.write(tmp_path / "benchmarks")


def run(*arguments: object) -> dict[str, Any]:
    """`dcoder ... --json` as a process in which the toy is registered."""
    code = (
        "import sys\nfrom dcoder_cli.benchmarks import suites\n"
        "suites.MODULES = (*suites.MODULES, 'toy_benchmark')\nfrom dcoder_cli.main import main\nmain()"
    )
    command = [sys.executable, "-c", code, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_new_benchmark_is_evaluated_end_to_end(toy: Path, tmp_path: Path) -> None:
    """`eval`, `eval judge`, `arness --task` and `doctor` know it from its one file."""
    model = make_model(tmp_path / "tiny")
    found = run("eval", "toy", "--model", model, "--device", "cpu", "--out", tmp_path / "out")
    assert found["tasks"] == 2 and found["scores"]["toy"]["pass@1"]["score"] == 0.0
    assert found["settings"]["max_new_tokens"] == 6 and found["settings"]["temperature"] == 0.0
    assert found["data"]["origin"] == str(toy) and found["published"] == []
    samples = tmp_path / "samples.jsonl"
    rows = [{"task_id": "Toy/2", "completion": "    return 2\n"}, {"task_id": "Toy/0", "completion": "    return 9\n"}]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = run("eval", "judge", samples, "--task", "toy", "--out", tmp_path / "judged")
    assert judged["scores"]["toy"]["pass@1"]["score"] == 50.0, "Toy/2 is in the widest subset only"
    order = run("arness", "--model", model, "--task", "toy", "--max-new-tokens", 4, "--device", "cpu")
    assert order["series"][0]["samples"] == 2 and order["series"][0]["pass@1"]["mean"] == 0.0


def test_a_registered_benchmark_is_known_everywhere(toy: Path) -> None:
    assert suites.load("toy", "all").total == 3 and list(suites.sources())[-1] == "toy"
    assert suites.right("toy")({"passed": True}) and suites.parts("toy") == ("toy",)
    with pytest.raises(Exception, match="no subset 'three'; choose two, all"):
        suites.load("toy", "three")


def test_eval_lists_the_table() -> None:
    listed = " ".join(dcoder("eval", "--help").stdout.split())
    assert suites.table() and all(name in listed for name in suites.table())


def test_every_declared_column_is_in_the_papers_table() -> None:
    columns = {c for one in suites.table().values() for by in one.published.values() for c in by.values()}
    assert columns == set(published.COLUMNS)


def named(file: Path) -> list[str]:
    """Benchmarks that a file's code names: in strings that are no docstrings, in imports and in other names."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    told: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            told.append(node.value)
        elif isinstance(node, ast.Name | ast.alias):
            told.append(node.id if isinstance(node, ast.Name) else node.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            told.append(node.module)
    return sorted({name.lower() for text in told for name in NAMES.findall(text)})


def test_no_other_file_names_a_benchmark(root: Path) -> None:
    package = root / "dcoder_cli"
    own = {module.removeprefix("dcoder_cli.").replace(".", "/") + ".py" for module in suites.MODULES}
    naming = {
        place: found
        for file in package.rglob("*.py")
        if (place := file.relative_to(package).as_posix()) not in own and (found := named(file))
    }
    assert {place: found for place, found in naming.items() if not place.startswith(tuple(MAY_NAME))} == {}
    unused = [prefix for prefix in MAY_NAME if not any(place.startswith(prefix) for place in naming)]
    assert unused == [], "take these out of MAY_NAME"


def test_a_score_in_memory_is_that_of_eval(tmp_path: Path) -> None:
    """What quickstart does: the texts, solutions and verdicts are those that `dcoder eval` writes for the same settings."""
    from dcoder_cli import load

    folder = make_model(tmp_path / "tiny", context=256)
    dcoder("eval", "micro-kinds", "--model", folder, "--device", "cpu", "--limit", "3", "--n", "2", "--max-new-tokens", "8",
           "--seed", "5", "--out", tmp_path / "out")  # fmt: skip
    model, suite = load(folder, device="cpu"), suites.load("micro-kinds", limit=3)
    settings = Settings(max_new_tokens=8, rule="entropy", temperature=0.2, top_p=0.95, seed=5)
    with Judging(suite) as judging:
        done = answers.answer(model, answers.ask(model, suite), settings, judging, n=2, batch_size=3)
    written = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(row["task_id"], row["sample"]) for row in written] == [
        (row["task_id"], row["sample"]) for row in done.judged
    ]
    assert [row["text"] for row in written] == [trajectory.text for trajectory in done.trajectories]
    judged = [json.loads(line) for line in (tmp_path / "out" / "judged.jsonl").read_text().splitlines()]
    assert [row["status"] for row in judged] == [row["status"] for row in done.judged]


def test_a_prompt_becomes_ids_once_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcoder_cli import load

    model, suite = load(make_model(tmp_path / "tiny", context=256), device="cpu"), suites.load("micro", limit=2)
    texts: list[str] = []
    decoded: list[tuple[int, ...]] = []
    tokenizer: Any = model.tokenizer
    tokenize, detokenize = type(tokenizer).__call__, type(tokenizer).decode

    def counted(self: Any, text: Any, **options: Any) -> Any:
        texts.append(text)
        return tokenize(self, text, **options)

    def back(self: Any, tokens: Any, **options: Any) -> Any:
        decoded.append(tuple(tokens))
        return detokenize(self, tokens, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    monkeypatch.setattr(type(tokenizer), "decode", back)
    asked = answers.ask(model, suite)
    with Judging(suite) as judging:
        answers.answer(model, asked, Settings(max_new_tokens=4), judging, n=3)
    lines = [item.prompt.splitlines()[0] for item in suite.items]
    assert [sum(line in text for text in texts) for line in lines] == [1, 1], "a prompt a task"
    assert decoded and not {prompt.prefix for prompt in asked.prompts} & {*decoded}, "and no prompt back to text"


def test_data_that_are_inside_the_package_take_no_file(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("")
    model = make_model(tmp_path / "tiny")
    for task, says in (("micro", "inside the package"), ("evalplus", "reads several files and --data names one")):
        for command in (("eval", task), ("arness", "--task", task)):
            assert says in refused(*command, "--model", model, "--data", file), command


def test_what_the_tests_use_by_name_stays_in_the_solution() -> None:
    """Mbpp/367's setup builds its tree of the solution's own class, which its function never names."""
    from dcoder_cli.benchmarks.benchmark import Item
    from dcoder_cli.benchmarks.protocols import Protocol

    text = "class Node:\n    pass\n\nclass Other:\n    pass\n\ndef f(node):\n    return node\n"
    item = Item("t", "whole", "", "f", None, names=frozenset({"Node", "f"}))
    for instruct in (True, False):
        found = Protocol("diffucoder", instruct).solution(item, text)
        assert "class Node" in found and "class Other" not in found

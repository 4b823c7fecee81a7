"""The micro tasks: references pass, wrong and lazy answers fail, and what each held-out set holds out is not in training."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dcoder_cli.base.errors import UserError
from dcoder_cli.data import micro
from dcoder_cli.data.micro import MicroTask
from dcoder_cli.data.micro_checks import fingerprint_of
from dcoder_cli.data.micro_families import FAMILIES
from dcoder_cli.data.micro_kinds import KIND_FAMILIES


@pytest.fixture(scope="module")
def train() -> list[MicroTask]:
    return micro.generate("train", 2100, seed=1)


@pytest.fixture(scope="module")
def test() -> list[MicroTask]:
    return micro.benchmark()


@pytest.fixture(scope="module")
def kinds() -> list[MicroTask]:
    return micro.benchmark("micro-kinds")


def passes(solution: str, tests: tuple[str, ...]) -> bool:
    namespace: dict[str, object] = {}
    try:
        exec(solution, namespace)
        for line in tests:
            exec(line, namespace)
    except Exception:
        return False
    return True


def test_references_pass_all_their_tests(train: list[MicroTask], test: list[MicroTask], kinds: list[MicroTask]) -> None:
    for task in train + test + kinds:
        assert len(task.tests_hidden) >= 5
        assert not set(task.tests_shown) & set(task.tests_hidden)
        assert passes(task.solution, task.tests_hidden + task.tests_shown), task


def test_every_other_function_of_the_benchmark_fails(test: list[MicroTask]) -> None:
    """A solution with another constant or operation must not pass: try all 210 x 210 pairs."""
    survived = 0
    for task in test:
        for other in test:
            if other is not task:
                solution = other.solution.replace(f"def {other.entry_point}(", f"def {task.entry_point}(")
                survived += passes(solution, task.tests_hidden)
    assert survived <= 4  # functions that differ on few inputs, such as `x % 6` and `x % 6 unless x < 2`


@pytest.mark.parametrize("change", [-20, -3, -2, -1, 1, 2, 3, 20])
def test_wrong_constants_fail(test: list[MicroTask], change: int) -> None:
    """Every number of every solution changed alone; some changes leave the function as it is, so a few may pass."""
    tried = survived = 0
    for task in test:
        for found in re.finditer(r"(?<![\w.])[1-9]\d*", task.solution):
            wrong = str(int(found.group()) + change)
            solution = task.solution[: found.start()] + wrong + task.solution[found.end() :]
            tried += 1
            survived += passes(solution, task.tests_hidden)
    assert tried > 200
    assert survived <= tried * 0.02


def test_splits_share_no_function(train: list[MicroTask], test: list[MicroTask]) -> None:
    other = micro.generate("train", 1400, seed=2)
    for fingerprints in ({task.fingerprint for task in tasks} for tasks in (train, other)):
        assert not fingerprints & {task.fingerprint for task in test}
    assert len({task.fingerprint for task in test}) == len(test) == 210
    # the same bodies under one name: a check that does not use the fingerprint
    bodies = [{_without_names(task) for task in tasks} for tasks in (train + other, test)]
    assert not bodies[0] & bodies[1]


def _without_names(task: MicroTask) -> str:
    signature = task.solution.split("(", 1)[1].split(")")[0]
    text = task.solution.replace(task.entry_point, "f", 1)
    for place, argument in enumerate(signature.split(", ")):
        text = re.sub(rf'(?<!["\w.]){argument}(?!["\w])', f"argument{place}", text)
    return text


def test_the_first_set_is_still_the_same_tasks(test: list[MicroTask]) -> None:
    """Scores of releases compare: questions and solutions have not changed since the set's first version."""
    text = "".join(task.task_id + task.question + task.solution for task in test)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "793ec53b99fd5303"


def _blank(task: MicroTask) -> tuple[str, str]:
    """Question and solution with every name, number and string replaced by one sign: the strictest reading of "kind"."""
    names = [task.entry_point, *task.solution.split("(", 1)[1].split(")")[0].split(", ")]
    texts = []
    for text in (task.question.split("\nassert")[0], task.solution):
        text = re.sub(r'"[^"]*"|\d+', "#", text)
        texts.append(re.sub(rf"\b({'|'.join(names)})\b", "#", text).lower())
    return texts[0], texts[1]


def test_no_kind_of_the_second_set_is_in_training(kinds: list[MicroTask], test: list[MicroTask]) -> None:
    """Neither its blanked solutions nor its blanked wordings, in as many tasks as the quickstart trains on in stage 4."""
    taught = [_blank(task) for seed in (0, 1) for task in micro.generate("train", 2000, seed)]
    wordings, solutions = ({pair[place] for pair in taught} for place in (0, 1))
    blanked = [_blank(task) for task in kinds]
    assert not [pair for pair in blanked if pair[0] in wordings or pair[1] in solutions]
    assert len(kinds) == len({task.fingerprint for task in kinds}) == 150 and len({pair[1] for pair in blanked}) > 40
    assert {task.family for task in kinds} == set(KIND_FAMILIES)
    assert not {pair[1] for pair in blanked} & {_blank(task)[1] for task in test}, "the first set has no reserved kind"
    # what the first set does not promise: nearly all its solutions are of a kind that training has
    assert sum(_blank(task)[1] in solutions for task in test) > 200


def test_the_parts_of_unseen_kinds_are_all_taught(train: list[MicroTask], kinds: list[MicroTask]) -> None:
    """Each word of the second set's questions and each operation of its solutions: only the combination is new."""

    def words(tasks: list[MicroTask], place: int) -> set[str]:
        return {word for task in tasks for word in re.findall(r"[a-z_]+|[^\w\s]+", _blank(task)[place])}

    assert words(kinds, 0) <= words(train, 0)
    assert {"max", "upper", "//", "%", "replace"} < words(kinds, 1)
    single = {sign for text in words(train, 1) for sign in text}
    assert {sign for text in words(kinds, 1) for sign in text} <= single
    assert {word for word in words(kinds, 1) if word.isalpha()} <= words(train, 1)


def test_no_lazy_answer_collects(train: list[MicroTask], test: list[MicroTask], kinds: list[MicroTask]) -> None:
    """Every constant that a test mentions, usual ones, and an argument given back pass a quarter of the tests at most."""
    assert max(_best_lazy(task) for task in [*train[:700], *test, *kinds]) <= 0.25
    boolean = next(
        task for task in train if "> " in task.solution and task.family == "constant" and "if" not in task.solution
    )
    assert all(
        line.startswith(f"assert ({boolean.entry_point}(") and "True" in line and "False" in line
        for line in boolean.tests_hidden
    )
    assert sum(line.startswith("assert (") for task in train for line in task.tests_hidden) < 0.5 * sum(
        len(task.tests_hidden) for task in train
    ), "where no lazy answer succeeds, a test asks for one value"


def _best_lazy(task: MicroTask) -> float:
    constants: list[Any] = [0, 1, True, False, "", [], None]
    for line in task.tests_hidden:
        value = eval(line.rpartition(" == ")[2])
        constants += value if isinstance(value, tuple) else [value]
    answers = [lambda *_, value=value: value for value in constants]
    answers += [lambda *given: given[0], lambda *given: given[-1]]

    def share(answer: Any) -> float:
        passed = 0
        for line in task.tests_hidden:
            passed += bool(eval(line.removeprefix("assert "), {task.entry_point: answer}))
        return passed / len(task.tests_hidden)

    return max(map(share, answers))


def test_renamed_reworded_and_equal_functions_have_one_fingerprint() -> None:
    plain = fingerprint_of("def f(x):\n    return x + 5\n", "number")
    assert plain == fingerprint_of("def f(x):\n    return 2 + x + 3\n", "number")
    assert plain != fingerprint_of("def f(x):\n    return x + 6\n", "number")
    above = fingerprint_of("def f(x):\n    return x > 5\n", "number")
    assert above == fingerprint_of("def f(x):\n    return x >= 6\n", "number")


def test_deterministic_in_another_process_and_by_seed(train: list[MicroTask]) -> None:
    program = (
        "import sys; from dcoder_cli.data import micro; assert 'torch' not in sys.modules;"
        "print(repr([task.to_json() for task in micro.generate('train', 70, seed=1)]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr([task.to_json() for task in train[:70]])
    assert micro.generate("train", 70, seed=3) != train[:70]


def test_every_family_names_what_to_copy(train: list[MicroTask]) -> None:
    assert {task.family for task in train} == set(FAMILIES)
    assert all(1 <= task.level <= 5 for task in train)
    assert len({task.question for task in train}) == len(train)
    assert len({task.fingerprint for task in train}) > 0.75 * len(train)
    for task in train:
        signature = task.solution.removeprefix("def ").split(":")[0]
        assert signature in task.question and signature.startswith(task.entry_point)
        assert all(line in task.question for line in task.tests_shown)
        assert max(map(len, task.tests_hidden)) < 600
    assert 0.15 < sum(bool(task.tests_shown) for task in train) / len(train) < 0.35


def test_chat_and_files(tmp_path: Path, test: list[MicroTask]) -> None:
    user, assistant = test[0].messages()
    assert user == {"role": "user", "content": test[0].question}
    assert assistant["content"] == f"```python\n{test[0].solution}```"
    micro.write_sft(tmp_path / "sft.jsonl", test)
    micro.write_rl(tmp_path / "rl.jsonl", test)
    sft = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    rl = [json.loads(line) for line in (tmp_path / "rl.jsonl").read_text().splitlines()]
    assert [row["messages"][0]["content"] for row in sft] == [row["question"] for row in rl]
    assert rl[5]["test_cases"] == list(test[5].tests_hidden)
    assert json.loads(json.dumps(test[5].to_json()))["tests_hidden"] == list(test[5].tests_hidden)


def test_bad_requests() -> None:
    with pytest.raises(UserError, match="split 'dev'"):
        micro.generate("dev", 3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="count -1"):
        micro.generate("train", -1)
    with pytest.raises(UserError, match="no more than"):
        micro.generate("test", 2000)
    with pytest.raises(UserError, match="kinds tasks asked for, but family"):
        micro.generate("kinds", 20_000)
    assert micro.generate("test", 0) == []

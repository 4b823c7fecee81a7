"""Micro programming tasks: small Python functions described in words, with hidden tests. Generated, so they ship here.

What the quickstart teaches and scores, and two benchmarks. `micro` holds out functions: a task's canonical form is what
its reference computes on fixed probe inputs, and the hash of that decides the side, so a task with other names, other
words or an equal formula (`x + 2 + 3` for `x + 5`) is always on the same side. But nearly every task of it is one of
training with other names and constants. `micro-kinds` holds out kinds too: its combinations of operations, and with them
its wordings, occur in no training task (`micro_kinds.py`); nor does any of its functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import write_jsonl
from dcoder_cli.data.micro_checks import fingerprint_of, hidden_tests, shown_test, test_inputs
from dcoder_cli.data.micro_families import FAMILIES, Draw
from dcoder_cli.data.micro_kinds import KIND_FAMILIES, is_reserved

Split = Literal["train", "test", "kinds"]
BENCHMARKS: dict[str, Split] = {"micro": "test", "micro-kinds": "kinds"}
A_FAMILY = 30  # tasks of a benchmark from each family; ours
TEST_SHARE = 8  # one function in 8 belongs to the test split; ours
REPEATS = 1000  # draws without a new task after which a family counts as used up; ours
EXAMPLE_SHARE = 0.25  # share of questions that show one test, if it is short; ours
EXAMPLE_LENGTH = 60  # characters that a shown test has at most, so that prompts stay short; ours


@dataclass(frozen=True)
class MicroTask:
    """One task.

    Attributes:
        task_id: `micro/FAMILY/N`, N counting within the family; `micro-kinds/FAMILY/N` in the split `kinds`.
        family, level: kind and difficulty (1 easiest).
        question: the user's text: what to compute, and the names to use.
        entry_point: name of the function to write.
        solution: reference code.
        tests_shown: assert statements that the question shows.
        tests_hidden: assert statements that score; at least 5, none of them shown, and no constant passes over a quarter.
        fingerprint: hash of the canonical form.
    """

    task_id: str
    family: str
    level: int
    question: str
    entry_point: str
    solution: str
    tests_shown: tuple[str, ...]
    tests_hidden: tuple[str, ...]
    fingerprint: str

    def messages(self) -> list[dict[str, str]]:
        """The task as a chat: the question, and the solution in a fenced block."""
        return [
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": f"```python\n{self.solution}```"},
        ]

    def to_json(self) -> dict[str, Any]:
        """All fields, tuples as lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def generate(split: Split, count: int, seed: int = 0) -> list[MicroTask]:
    """`count` tasks of a split, the families in turn, no question twice; outside `train` no function twice either.

    Raises:
        UserError: the split is unknown, the count is negative, or the split has fewer tasks (`test` has about 370).
    """
    if split not in ("train", "test", "kinds"):
        raise UserError(f"split {split!r} is unknown; use 'train', 'test' or 'kinds'")
    if count < 0:
        raise UserError(f"count {count} is negative; ask for 0 tasks or more")
    random = Random(f"dcoder micro {split} {seed}")
    families = list(KIND_FAMILIES if split == "kinds" else FAMILIES)
    tasks: list[MicroTask] = []
    seen: set[str] = set()
    repeats = 0
    while len(tasks) < count:
        number, place = divmod(len(tasks), len(families))
        task = _draw_task(families[place], number, split, random)
        key = task.question if split == "train" else task.fingerprint
        if key not in seen:
            seen.add(key)
            tasks.append(task)
            repeats = 0
        elif (repeats := repeats + 1) == REPEATS:
            raise UserError(
                f"{count} {split} tasks asked for, but family {families[place]!r} has no more than {number}; ask for fewer"
            )
    return tasks


def benchmark(name: str = "micro") -> list[MicroTask]:
    """The fixed tasks of a benchmark, 30 a family: `micro` (210, functions held out) or `micro-kinds` (150, kinds too)."""
    split = BENCHMARKS[name]
    return generate(split, A_FAMILY * len(KIND_FAMILIES if split == "kinds" else FAMILIES), seed=0)


def write_sft(path: str | Path, tasks: Iterable[MicroTask]) -> None:
    """Rows for `dcoder tokenize sft`: `id` and `messages`."""
    write_jsonl(path, ({"id": task.task_id, "messages": task.messages()} for task in tasks))


def write_rl(path: str | Path, tasks: Iterable[MicroTask]) -> None:
    """Rows for `dcoder tokenize rl`: `id`, `question`, `test_cases` (AceCode-87K's names) and `entry_point`."""
    write_jsonl(
        path,
        (
            {
                "id": task.task_id,
                "question": task.question,
                "test_cases": list(task.tests_hidden),
                "entry_point": task.entry_point,
            }
            for task in tasks
        ),
    )


def _draw_task(family: str, number: int, split: Split, random: Random) -> MicroTask:
    level, draw_one, style = (KIND_FAMILIES if split == "kinds" else FAMILIES)[family]
    while True:
        draw = draw_one(random)
        if split != "kinds" and is_reserved(draw):
            continue
        source = _source("f", ["x", "y"][: len(_ARGUMENTS[draw.kind])], draw)
        fingerprint = fingerprint_of(source, draw.kind)
        if (int(fingerprint[:8], 16) % TEST_SHARE == 0) == (split != "train"):
            inputs = test_inputs(source, draw.kind, random)
            if inputs is not None:
                break
    entry_point, arguments = _names(draw.kind, style, random)
    example = inputs.pop() if random.random() < EXAMPLE_SHARE else None
    hidden = hidden_tests(source, draw.kind, entry_point, inputs)
    shown = [] if example is None else [shown_test(source, entry_point, example)]
    shown = [line for line in shown if len(line) <= EXAMPLE_LENGTH]
    question = _question(f"{entry_point}({', '.join(arguments)})", _fill(draw.words, arguments), draw.steps, random)
    return MicroTask(
        task_id=f"{'micro-kinds' if split == 'kinds' else 'micro'}/{family}/{number}",
        family=family,
        level=level,
        question="\n".join([question, *shown]),
        entry_point=entry_point,
        solution=_source(entry_point, arguments, draw),
        tests_shown=tuple(shown),
        tests_hidden=tuple(hidden),
        fingerprint=fingerprint,
    )


# ---- names and words

_SIMPLE = ("f", "g", "h", "solve", "run", "apply", "compute", "work")
_VERBS = """
    adjust apply build change check compute convert count find fix get give grade join lift limit load make mark
    measure move pack pick plan prepare rate scale score set shift show sort store test track trim update use
    weigh
""".split()  # noqa: SIM905
_NOUNS = """
    age amount area base bonus box cost data day depth field fine gain goal height hour index item key level limit
    line mass mark name number offset page part point price rank rate room score size speed step team time unit
    user value weight width year
""".split()  # noqa: SIM905
_ARGUMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "number": (("x", "n", "k", "num", "value"),),
    "pair": (("a", "x", "m", "left", "first"), ("b", "y", "k", "right", "second")),
    "text": (("s", "text", "word", "line", "name"),),
    "list": (("xs", "items", "values", "numbers", "data"),),
}
_FRAMES = (
    "Write a function {signature} that returns {words}.",
    "Write {signature} returning {words}.",
    "Define {signature}. It returns {words}.",
    "Implement a Python function {signature} which gives {words}.",
    "{signature} should return {words}.",
)
_STEP_FRAMES = (
    "Write a function {signature}: {words}. Return the result.",
    "Define {signature}. It should {words}, and return the result.",
    "{signature} should {words}. Return the result.",
)


def _names(kind: str, style: str, random: Random) -> tuple[str, list[str]]:
    """A function name and argument names, all different."""
    copied = style == "copied" or (style == "either" and random.random() < 0.5)
    entry_point = f"{random.choice(_VERBS)}_{random.choice(_NOUNS)}" if copied else random.choice(_SIMPLE)
    if copied and kind == "number":
        return entry_point, random.sample(_NOUNS, 1)
    return entry_point, [random.choice(choices) for choices in _ARGUMENTS[kind]]


def _question(signature: str, words: str, steps: bool, random: Random) -> str:
    question = random.choice(_STEP_FRAMES if steps else _FRAMES).format(signature=signature, words=words)
    return question[:1].upper() + question[1:] if not question.startswith(signature) else question


def _fill(text: str, arguments: list[str]) -> str:
    return text.replace("{x}", arguments[0]).replace("{y}", arguments[-1])


def _source(entry_point: str, arguments: list[str], draw: Draw) -> str:
    lines = [f"    {_fill(line, arguments)}\n" for line in draw.body]
    return f"def {entry_point}({', '.join(arguments)}):\n" + "".join(lines)

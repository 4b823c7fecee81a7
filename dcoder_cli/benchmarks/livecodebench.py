"""LiveCodeBench (Jain et al. 2024), code generation lite: problems of programming contests, with the dates they were held.

Prompts, stops, what is cut out of an answer, limits and what counts as right are those of
github.com/LiveCodeBench/LiveCodeBench, whose scores are pass@1 and pass@5 of ten samples at temperature 0.2.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.machine import BENCHMARKS_VARIABLE
from dcoder_cli.benchmarks import data
from dcoder_cli.benchmarks.benchmark import Benchmark, ByTests, Item, Loaded, OwnPrompt, Suite, Told, passed

if TYPE_CHECKING:
    from dcoder_cli.execution.judge import Judge
    from dcoder_cli.execution.problem import Problem

_STRINGS = ("question_title", "question_content", "question_id", "contest_date", "starter_code", "difficulty")
_FIELDS = (*_STRINGS, "public_test_cases", "private_test_cases", "metadata")
# What each release added, as the hub has it; release_v6 is all of them. The hub's own loading script runs no more.
SOURCES = tuple(
    data.BenchmarkSource(
        f"livecodebench-v{number}", f"livecodebench/{file}", count, "livecodebench/code_generation_lite", None, (), _FIELDS,
        hub_file=file,
    )
    for number, (file, count) in enumerate(
        (("test.jsonl", 400), ("test2.jsonl", 111), ("test3.jsonl", 101), ("test4.jsonl", 101), ("test5.jsonl", 167),
         ("test6.jsonl", 175)), 1,
    )
)  # fmt: skip
_ANY = replace(SOURCES[0], name="livecodebench", count=None)  # a file of some of them, or of later ones
SECONDS = 6.0  # their runner, for one test; all: seven for each, and five
_MEMORY = 4096  # ours: they set no limit, and a comment of theirs speaks of 4 GB
_MOST_BYTES = 2**30  # ours: what a problem's tests may unpack to
STOPS = ("###",)
_DIFFICULTIES = ("easy", "medium", "hard")

_SYSTEM = "You are an expert Python programmer. You will be given a question (problem specification) and will generate a correct Python program that matches the specification and passes all tests."
_WITH_STARTER = "You will use the following starter code to write the solution to the problem and enclose your code within delimiters."
_WITHOUT_STARTER = "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the inputs, runs the algorithm and writes output to STDOUT."
# Their worked examples are problems of contest sites, which we do not ship.
_EXAMPLES = {True: "func.json", False: "stdin.json"}
_NO_PLAIN = (
    "they are shown a worked example of LiveCodeBench's; put {file} of its repository (folder "
    "lcb_runner/prompts/few_shot_examples/generation) beside its data, in {folder}, or give --instruct"
)

# What their runner puts before every program.
_STARS = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "builtins", "typing",
)  # fmt: skip
_IMPORTS = "".join(f"from {name} import *\n" for name in _STARS) + "".join(
    f"import {name}\n" for name in _STARS if name not in ("builtins", "typing")
)
_PRELUDE = f"{_IMPORTS}sys.setrecursionlimit(50000)\nsys.set_int_max_str_digits(50000)\n"
# A program may read its input as file 0 too, which here is none.
_STDIN = """\
def open(file, mode="r", *rest, **options):
    if file in (0, "/dev/stdin"):
        return sys.stdin.buffer if "b" in mode else sys.stdin
    return io.open(file, mode, *rest, **options)
"""
_ANSWER = "dcoder_answer"
_CALL = """
dcoder_method = {method}
def dcoder_answer(*inputs):
    found = dcoder_method(*inputs)
    return list(found) if isinstance(found, tuple) else found
"""


@dataclass(frozen=True)
class Contest:
    """One problem. `public` and `private`: its tests as published; `method`: what they call, "" for whole programs."""

    task_id: str
    question: str
    starter: str
    difficulty: str
    day: date
    method: str
    public: str
    private: str

    def tests(self) -> list[tuple[str, str]]:
        """Inputs with their outputs: lines of standard input and output, or a JSON value a line and one. Raises UserError."""
        where = f"livecodebench: the tests of {self.task_id!r}"
        try:
            private = jsonl.parse(self.private, where, halves=True)
        except UserError:
            private = jsonl.parse(_packed(self.private, where), where, halves=True)
        found = []
        for row in [*_list(jsonl.parse(self.public, where, halves=True), where), *_list(private, where)]:
            texts = (row.get("input"), row.get("output")) if isinstance(row, dict) else ()
            if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{where} are no pairs of input and output; fetch the file again")
            found.append((str(texts[0]), str(texts[1])))
        if not found:
            raise UserError(f"{where} are none; fetch the file again")
        return found


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{where} are no list; fetch the file again")
    return value


def _packed(text: str, where: str) -> str:
    """The text in base64 of zlib of a pickle of one string. Nothing is unpickled: a pickle of more is refused."""
    from dcoder_cli.base import pickled

    try:
        unpacking = zlib.decompressobj()
        found = unpacking.decompress(base64.b64decode(text, validate=True), _MOST_BYTES)
    except (ValueError, binascii.Error, zlib.error, OverflowError, MemoryError):
        raise UserError(f"{where} are neither JSON nor a packed text; fetch the file again") from None
    if not unpacking.eof:
        raise UserError(f"{where} unpack to over {_MOST_BYTES >> 20} MiB, or are cut off; fetch the file again")
    try:
        return pickled.text(found)
    except ValueError as trouble:
        raise UserError(f"{where} are {trouble}; fetch the file again") from None


def contest_of(row: Mapping[str, Any], origin: str) -> Contest:
    """A row of a data file. Raises UserError where it cannot be one."""
    where = f"livecodebench from {origin}: problem {row['question_id']!r}"
    wrong = [name for name in _FIELDS if not isinstance(row[name], str)]
    if wrong:
        raise UserError(f"{where} has a {wrong[0]!r} that is no text; fetch the file again")
    about = jsonl.as_object(jsonl.parse(row["metadata"], f"{where}: its metadata"), f"{where}: its metadata")
    method = about.get("func_name") or ""
    if not isinstance(method, str) or (method and not method.isidentifier()):
        raise UserError(f"{where} calls {method!r}, which is no Python name; fetch the file again")
    if row["difficulty"] not in _DIFFICULTIES:
        raise UserError(f"{where} is {row['difficulty']!r}; known: {', '.join(_DIFFICULTIES)}")
    try:
        day = datetime.fromisoformat(row["contest_date"]).date()
    except ValueError:
        raise UserError(f"{where} has no date: {row['contest_date']!r}; fetch the file again") from None
    return Contest(
        row["question_id"], row["question_content"], row["starter_code"], row["difficulty"], day, method,
        row["public_test_cases"], row["private_test_cases"],
    )  # fmt: skip


def chat_prompt(question: str, starter: str) -> str:
    """What their instruct models are asked."""
    form = (
        f"{_WITH_STARTER}\n```python\n{starter}\n```"
        if starter
        else f"{_WITHOUT_STARTER}\n```python\n# YOUR CODE HERE\n```"
    )
    return (
        f"### Question:\n{question}\n\n### Format: {form}\n\n### Answer: (use the provided format with backticks)\n\n"
    )


def plain_prompt(question: str, starter: str, example: Mapping[str, str]) -> str:
    """What their base models are asked, after one worked example."""
    lead = _plain(example["question"], example.get("sample_code", "") if starter else "", example["answer"] + "\n\n")
    return lead + _plain(question, starter, "")


def _plain(question: str, starter: str, answer: str) -> str:
    middle = f"### Starter Code\n{starter}\n\n" if starter else ""
    return f"### Question\n{question}\n\n{middle}### Answer\n\n{answer}"


def answer(text: str, chat: bool) -> str:
    """The code in an answer: a chat's between its last two fences, "" without two; a base model's text is code."""
    if not chat:
        return text.strip()
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) > 1 else ""


def program(item: Item, solution: str) -> str:
    """A solution below what their runner imports; where a method is tested, with a function that calls it.

    Their runner makes a function of a program and calls it for one test after another, with what reads input replaced. Ours
    runs each test as a program of its own, so that `global` and what is imported from sys do as they would at the contest.
    """
    one: Contest = item.source
    if not one.method:
        return f"{_PRELUDE}{_STDIN}{solution}\n"
    method = f"Solution().{one.method}" if "class Solution" in solution else one.method
    return f"{_PRELUDE}{solution}\n{_CALL.format(method=method)}"


def problem(one: Contest) -> Problem:
    """The tests of one problem. Raises UserError where they cannot be read."""
    from dcoder_cli.execution import codec
    from dcoder_cli.execution.problem import Calls, Problem

    tests = one.tests()
    total = (SECONDS + 1) * len(tests) + 5
    common: dict[str, Any] = {"seconds": SECONDS, "total_seconds": total, "memory_mib": _MEMORY}
    if not one.method:
        return Problem(one.task_id, programs=tuple(tests), output="numbers", **common)
    where = f"livecodebench: the tests of {one.task_id!r}"
    inputs = [[_value(text, where) for text in given.split("\n")] for given, _ in tests]
    outputs = [_value(expected, where) for _, expected in tests]
    try:
        calls = (Calls.of(inputs, outputs, SECONDS),)
        return Problem(one.task_id, _ANSWER, calls=calls, oracle="exact", **common)
    except codec.Unfit as trouble:
        raise UserError(f"{where} cannot be put to a candidate: {trouble}") from None


def _value(text: str, where: str) -> Any:
    """A JSON value, whose numbers may be longer than Python reads without being told."""
    try:
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 4000 else int(Decimal(digits)))
    except (ValueError, RecursionError):
        raise UserError(f"{where} have a line that is no JSON: {text[:60]!r}; fetch the file again") from None


class _Problems(Mapping[str, "Problem"]):
    """Problems by task id, each made when it is asked for: all tests together take gigabytes. The last one is kept."""

    def __init__(self, found: Mapping[str, Contest]) -> None:
        self._found = found
        self._last: Problem | None = None

    def __getitem__(self, task_id: str) -> Problem:
        if self._last is None or self._last.task_id != task_id:
            self._last = problem(self._found[task_id])
        return self._last

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _problems(suite: Suite, judge: Judge, told: Told | None) -> Mapping[str, Problem]:
    for item in suite.items:  # all are read once now, so that broken ones are found before anything is judged
        problem(item.source)
    return _Problems({item.task_id: item.source for item in suite.items})


def _load(subset: str, file: str | Path | None) -> Loaded:
    named = os.environ.get(BENCHMARKS_VARIABLE)
    folder = Path(file).parent if file is not None else Path(named) / "livecodebench" if named else None
    examples = {starter: _example(folder, name) for starter, name in _EXAMPLES.items()}
    found: dict[str, Contest] = {}
    origins, digest = [], sha256()
    for source in SOURCES if file is None else (_ANY,):
        rows = data.find(source, file)
        origins.append(rows.origin)
        digest.update(bytes.fromhex(rows.sha256))
        for row in rows.rows:
            one = contest_of(row, rows.origin)
            if one.task_id in found:
                raise UserError(f"livecodebench from {rows.origin} has {one.task_id!r} twice; fetch the file again")
            found[one.task_id] = one
    chosen = [one for one in found.values() if subset in ("all", one.difficulty)]
    if not chosen:
        raise UserError(f"livecodebench from {origins[0]} has no {subset} problem; choose another --subset")
    days = sorted(one.day for one in found.values())
    version = f"LiveCodeBench lite, {len(found)} problems of {days[0]} to {days[-1]}"
    items = tuple(_item(one, examples[bool(one.starter)], folder) for one in chosen)
    return Loaded(items, version, ", ".join(origins), digest.hexdigest())


def _example(folder: Path | None, name: str) -> Mapping[str, str] | None:
    """The first worked example of a file; None without one. Raises UserError for a broken file."""
    if folder is None or not (file := folder / name).is_file():
        return None
    row = next((entry.value for entry in jsonl.table(file, "example file")), None)
    if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in ("question", "answer")):
        return row
    raise UserError(f"example file {str(file)!r} has no texts 'question' and 'answer'; fetch the file again")


def _item(one: Contest, example: Mapping[str, str] | None, folder: Path | None) -> Item:
    asked = chat_prompt(one.question, one.starter)
    chat = ({"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked})
    plain = "" if example is None else plain_prompt(one.question, one.starter, example)
    place = f"the folder livecodebench of {BENCHMARKS_VARIABLE}" if folder is None else repr(str(folder))
    why = "" if plain else _NO_PLAIN.format(file=_EXAMPLES[bool(one.starter)], folder=place)
    own = OwnPrompt(chat, plain, STOPS, STOPS, why, answer)
    return Item(one.task_id, "own", one.question, "", one, own=own, day=one.day)


BENCHMARKS = (
    Benchmark(
        "livecodebench",
        "LiveCodeBench, code generation lite; subsets all, easy, medium, hard; --since and --until.",
        _load,
        ByTests(_problems, program, large=True),
        {"livecodebench": passed},
        subsets=("all", *_DIFFICULTIES),
        widest="all",
        sources=SOURCES,
        settings={"temperature": 0.2, "top_p": 0.95, "max_new_tokens": 2000},  # their arguments
        dated=True,
    ),
)

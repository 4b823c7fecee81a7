"""What a candidate is put to, and what came of it: plain data, shared by evaluation and rewards."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dcoder_cli.base.errors import UserError, one_line, valid_text
from dcoder_cli.execution import codec, testcode
from dcoder_cli.execution.compare import ORACLES, OUTPUTS

STATUSES = ("passed", "failed", "timeout", "syntax", "memory", "infrastructure")
CALL_SECONDS = 4.0  # EvalPlus: the least time an input gets
MOST_SECONDS = 60.0  # EvalPlus: the most a candidate gets for all inputs, unless the reference needs more
MEMORY_MIB = 1024  # ours: HumanEval's and MBPP's references stay below 100 MiB
REWARD_SECONDS = (
    12.0  # ours: a completion's tests in training, together: three calls at their limit; most take milliseconds
)
START_SECONDS = 5.0  # ours: for two forks under load, on top of the time the tests get


@dataclass(frozen=True)
class Calls:
    """Function calls with expected values, encoded once for all candidates.

    Attributes:
        name: `base` or `plus`. Plus counts, and is run, only where base passes.
        inputs: for each test the list of positional arguments, encoded by `codec.dumps`.
        expected: for each test the expected value, encoded.
        seconds: for each test the limit of wall-clock time.
    """

    name: str
    inputs: tuple[bytes, ...]
    expected: tuple[bytes, ...]
    seconds: tuple[float, ...]

    @staticmethod
    def of(inputs: Iterable[Sequence[Any]], expected: Iterable[Any], seconds: float = CALL_SECONDS,
           name: str = "base") -> Calls:  # fmt: skip
        """From plain values."""
        encoded = tuple(codec.dumps(list(arguments)) for arguments in inputs)
        values = tuple(codec.dumps(value) for value in expected)
        return Calls(name, encoded, values, (seconds,) * len(encoded))


@dataclass(frozen=True)
class Problem:
    """A task with exactly one kind of tests. Nothing in it is ever seen by the candidate but arguments of calls.

    Attributes:
        task_id: name in results.
        entry_point: the function that the candidate must define (not needed for programs).
        tests: test code, a statement or more each, such as `assert f(1) == 2`; the candidate's functions and classes
            are reached by name and answer out of their own process.
        prelude: code of the problem's own that tests use (helpers, imports); runs beside the tests, not the candidate.
        setup: code that runs before the tests and may use the candidate's names.
        calls: calls with expected values, in one or two groups (`base`, `plus`).
        programs: pairs of standard input and expected standard output.
        output: how what programs wrote is compared, a key of `compare.OUTPUTS`.
        oracle: how answers to `calls` are compared, a key of `compare.ORACLES`; `tolerance`: absolute, for floats.
        seconds: limit of wall-clock time for one call from a test, one program, and for loading the candidate.
        total_seconds: the same for everything; by default what the parts may take, at most MOST_SECONDS.
        memory_mib: limit of the candidate's address space.
        every_test: go on after a failed test, so that `tests_passed` is a true share (rewards want it). Its time is then a
            budget: after the first time-out the candidate gets 2 s more for all other tests, and 0.5 s for one
            (exchange.AFTER_TIMEOUT), so that one which loops on every test is not waited for on each.
    """

    task_id: str
    entry_point: str = ""
    tests: tuple[str, ...] = ()
    prelude: str = ""
    setup: str = ""
    calls: tuple[Calls, ...] = ()
    programs: tuple[tuple[str, str], ...] = ()
    output: str = "lines"
    oracle: str = "equal"
    tolerance: float = 0.0
    seconds: float = CALL_SECONDS
    total_seconds: float | None = None
    memory_mib: int = MEMORY_MIB
    every_test: bool = False

    def __post_init__(self) -> None:
        kinds = [name for name in ("tests", "calls", "programs") if getattr(self, name)]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none of them"
            raise UserError(f"problem {self.task_id!r} has {found}; give it tests, calls or programs")
        if self.oracle not in ORACLES:
            raise UserError(f"problem {self.task_id!r} names the oracle {self.oracle!r}; known: {', '.join(ORACLES)}")
        if self.output not in OUTPUTS:
            raise UserError(
                f"problem {self.task_id!r} compares outputs by {self.output!r}; known: {', '.join(OUTPUTS)}"
            )
        if not self.programs and not self.entry_point.isidentifier():
            raise UserError(f"problem {self.task_id!r} names {self.entry_point!r} as its function; give a Python name")
        for name in ("prelude", "setup", "tests"):
            for code in self.tests if name == "tests" else [getattr(self, name)]:
                try:
                    compile(code, "<test>", "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
                except (SyntaxError, ValueError) as error:
                    raise UserError(
                        f"problem {self.task_id!r} has {name} that do not parse: {one_line(error)}"
                    ) from None

    @property
    def tests_total(self) -> int:
        """The number of tests in all groups."""
        return len(self.tests) + len(self.programs) + sum(len(group.inputs) for group in self.calls)

    @cached_property
    def names(self) -> frozenset[str]:
        """The names that the tests and their setup use, of which a solution may define some beside its function."""
        trees = [ast.parse(code) for code in (*self.tests, self.setup)]
        return frozenset(node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name))

    @property
    def deadline_seconds(self) -> float:
        """Wall-clock time for the whole job."""
        if self.total_seconds is not None:
            return self.total_seconds
        if self.calls:
            return sum(min(MOST_SECONDS, sum(group.seconds)) for group in self.calls) + self.seconds
        return min(MOST_SECONDS, self.seconds * (1 + max(2, self.tests_total)))

    @cached_property
    def payload(self) -> bytes:
        """The job as its trusted side reads it, without the candidate."""
        common = {
            "entry_point": self.entry_point,
            "seconds": self.seconds,
            "load_seconds": max(self.seconds, CALL_SECONDS),
            "every": self.every_test,
            "budget": self.deadline_seconds if self.every_test else None,
        }
        texts: list[bytes] = []
        if self.calls:
            groups = [{"name": group.name, "seconds": group.seconds} for group in self.calls]
            cases = [zip(group.inputs, group.expected, group.seconds, strict=True) for group in self.calls]
            texts = [text for group in cases for arguments, expected, _ in group for text in (arguments, expected)]
            job = {"kind": "calls", "groups": groups, "oracle": self.oracle, "tolerance": self.tolerance}
        elif self.programs:
            job = {"kind": "programs", "programs": self.programs, "output": self.output}
        else:
            names, modules = self._names
            job = {
                "kind": "asserts", "tests": self.tests, "prelude": self.prelude, "setup": _imports(modules) + self.setup,
                "names": names, "catches": testcode.catches(self._trees),
            }  # fmt: skip
        return codec.pack({**common, **job}, texts)

    @cached_property
    def leaves_nothing(self) -> bool:
        """Whether the process that runs the tests is afterwards as it was before (see testcode)."""
        return testcode.leaves_nothing(self._trees) and testcode.leaves_nothing([ast.parse(_imports(self._names[1]))])

    @cached_property
    def _trees(self) -> tuple[ast.Module, ...]:
        """The syntax of prelude, setup and tests."""
        return tuple(ast.parse(code) for code in (self.prelude, self.setup, *self.tests))

    @cached_property
    def _names(self) -> tuple[list[str], list[str]]:
        """The names that the tests take from the candidate, and modules they use without importing them."""
        loaded: set[str] = set()
        bound: set[str] = set(dir(builtins))
        spaces: set[str] = set()
        prelude, *used = self._trees
        for tree in used:
            for node in ast.walk(tree):
                if isinstance(node, ast.Name):
                    (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
                elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    spaces.add(node.value.id)
                else:
                    bound.update(_bound(node))
        for node in prelude.body:
            bound.update(name for inner in ast.walk(node) for name in _bound(inner))
            bound.update(
                inner.id
                for inner in ast.walk(node)
                if isinstance(inner, ast.Name) and not isinstance(inner.ctx, ast.Load)
            )
        free = loaded - bound - {self.entry_point}
        modules = sorted(name for name in free & spaces if name in sys.stdlib_module_names)
        return [self.entry_point, *sorted(free - set(modules))], modules


def _imports(modules: Iterable[str]) -> str:
    return "".join(f"import {module}\n" for module in modules)


def _bound(node: ast.AST) -> list[str]:
    """The names that a node other than an assignment gives a meaning to."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ExceptHandler) and node.name:
        return [node.name]
    return []


@dataclass(frozen=True)
class Verdict:
    """What came of one candidate.

    Attributes:
        task_id: the problem's.
        status: one of STATUSES. `infrastructure` says nothing about the candidate: not a failure, never a zero reward.
        base: whether the base tests passed (all tests, where there is one group).
        plus: whether base and plus passed; None where there is no plus group.
        tests_passed, tests_total: the share, true only with `Problem.every_test` (else it stops at the first failure).
        seconds: wall-clock time of the job.
        why: the first reason of the worst kind; empty when passed.
        tier: the sandbox it ran in: A, B or C.
        low_trust: the tests ran beside the candidate (BigCodeBench); never a reward.
    """

    task_id: str
    status: str
    base: bool
    plus: bool | None
    tests_passed: int
    tests_total: int
    seconds: float
    why: str
    tier: str
    low_trust: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "why", valid_text(self.why))  # the one way of a candidate's words to files and people

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.status == "passed"

    @property
    def share(self) -> float:
        """The share of tests passed."""
        return self.tests_passed / self.tests_total

    def row(self) -> dict[str, Any]:
        """As a line of judged.jsonl."""
        row: dict[str, Any] = {"task_id": self.task_id, "passed": self.passed, "status": self.status}
        if self.plus is not None:
            row |= {"base": self.base, "plus": self.plus}
        row |= {"tests_passed": self.tests_passed, "tests_total": self.tests_total}
        row |= {"seconds": round(self.seconds, 3), "why": self.why, "tier": self.tier}
        return row | ({"low_trust": True} if self.low_trust else {})

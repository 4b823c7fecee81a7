"""Runs a unittest class beside a candidate, in any Python 3 the user names; standard library only, started as a script.

Reads {"program", "test", "limits"} as JSON on standard input; writes {"ran", "wrong", "why"} to the descriptor given as
its only argument. The candidate shares this process and could write that line itself: hence the low trust.
"""

import json
import os
import resource
import sys
import types
import unittest


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    descriptor = int(sys.argv[1])
    for name, value in job["limits"].items():
        kind = getattr(resource, "RLIMIT_" + name, None)
        if kind is not None:
            resource.setrlimit(kind, (value, value))
    null = os.open(os.devnull, os.O_RDWR)
    for target in range(3):
        os.dup2(null, target)
    result = run(job["program"], job["test"])
    os.write(descriptor, json.dumps(result).encode())
    os._exit(0)  # whatever threads and children there are


def run(program: str, test: str) -> "dict[str, object]":
    """How many tests ran, how many did not pass, and the first reason."""
    try:
        code = compile(program + "\n" + test, "__test__.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        return {"ran": 0, "wrong": 1, "why": describe(problem), "syntax": True}
    module = types.ModuleType("__test__")
    sys.modules["__test__"] = module
    try:
        exec(code, module.__dict__)
        suite = unittest.TestLoader().loadTestsFromTestCase(module.TestCases)
        outcome = unittest.TestResult()
        suite.run(outcome)
    except BaseException as problem:
        return {"ran": 0, "wrong": 1, "why": describe(problem), "syntax": False}
    wrong = outcome.errors + outcome.failures
    why = wrong[0][0].id().rpartition(".")[2] + ": " + wrong[0][1].strip().rpartition("\n")[2] if wrong else ""
    return {"ran": outcome.testsRun, "wrong": len(wrong), "why": why[:300], "syntax": False}


def describe(problem: BaseException) -> str:
    return (type(problem).__name__ + ": " + str(problem))[:300]


if __name__ == "__main__":
    main()

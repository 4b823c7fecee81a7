"""Verdicts that nothing but the candidate's answers decides: not its exceptions, not the job before, not its words."""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcoder_cli.base.errors import valid_text
from dcoder_cli.benchmarks import suites
from dcoder_cli.benchmarks.external import judge_file
from dcoder_cli.benchmarks.judging import Judging
from dcoder_cli.benchmarks.samples import Store
from dcoder_cli.execution import sandbox, testcode, unittests
from dcoder_cli.execution.judge import Judge, Problem, Verdict

RIGHT = "def f(x): return x + 1"


@pytest.fixture(scope="module", params=["A", "B"])
def running(request: pytest.FixtureRequest) -> Iterator[Judge]:
    if sandbox.tier_trouble(request.param):
        pytest.skip(f"tier {request.param} does not hold here: {sandbox.tier_trouble(request.param)}")
    with Judge(workers=1, tier=request.param) as made:
        yield made


def verdict(running: Judge, test: str, source: str, setup: str = "") -> Verdict:
    problem = Problem("t", "f", setup=textwrap.dedent(setup), tests=(textwrap.dedent(test),), seconds=5.0)
    return running.submit(problem, textwrap.dedent(source)).result()


# --- exceptions of the candidate -------------------------------------------------------------------------------------

# Each is passed by f(x) == x + 1 and has Python swallow some kind of exception without an `except` in the test.
SWALLOWS = {
    "all of map": "assert all(map(lambda c: f(c) == c + 1, [1, 2]))",
    "for over map": "for right in map(lambda c: f(c) == c + 1, [1, 2]): assert right",
    "list of map": "assert False not in list(map(lambda c: f(c) == c + 1, [1, 2]))",
    "map of f itself": "assert not set(map(f, [1, 2])) - {2, 3}",
    "sum": "assert sum(map(lambda c: f(c) != c + 1, [1, 2])) == 0",
    "max with a default": "assert max(map(lambda c: f(c) - c, [1, 2]), default=1) == 1",
    "filter": "assert not list(filter(lambda c: f(c) != c + 1, [1, 2]))",
    "zip": "assert all(a == b for a, b in zip(map(f, [1, 2]), [2, 3]))",
    "enumerate": "assert all(a + 1 == b for a, b in enumerate(map(f, [0, 1])))",
    "dict and set displays": "assert False not in {*map(lambda c: f(c) == c + 1, [1, 2])}",
    "unpacking": "*rest, = map(lambda c: f(c) == c + 1, [1, 2])\nassert False not in rest",
    "star arguments": "assert not (lambda *a: False in a)(*map(lambda c: f(c) == c + 1, [1, 2]))",
    "in": "assert False not in map(lambda c: f(c) == c + 1, [1, 2])",
    "extend": "a = []\na.extend(map(lambda c: f(c) == c + 1, [1, 2]))\nassert all(a)",
    "join": "assert not ''.join(map(lambda c: '' if f(c) == c + 1 else 'x', [1, 2]))",
    "next with a default": "assert next(map(lambda c: f(c) == c + 1, [1]), True)",
    "iter with a sentinel": "assert not list(iter(lambda: f(1) == 2, True))",
    "starmap": "import itertools\nassert all(itertools.starmap(lambda a, b: f(a) == b, [(1, 2), (2, 3)]))",
    "takewhile": "import itertools\nassert not [c for c in itertools.dropwhile(lambda c: f(c) == c + 1, [1, 2])]",
    "accumulate": "import itertools\nassert all(v in (1, 2) for v in itertools.accumulate([1, 1], lambda a, b: f(a)))",
    "groupby": "import itertools\nassert all(k == 1 for k, _ in itertools.groupby([1, 2], lambda c: f(c) - c))",
    "zip_longest": "import itertools\nassert all(a in (2, 3, None) for a, _ in itertools.zip_longest(map(f, [1, 2]), 'ab'))",
    "heapq.merge": "import heapq\nassert set(heapq.merge(map(f, [1, 2]), [2, 3])) == {2, 3}",
    "Counter": "import collections\nassert not collections.Counter(map(f, [1, 2])) - collections.Counter([2, 3])",
    "yield from": "def g():\n    yield from map(lambda c: f(c) == c + 1, [1, 2])\nassert all(g())",
    "an iterator of the test's": """
        class Each:
            def __init__(self): self.left = [1, 2]
            def __iter__(self): return self
            def __next__(self):
                if not self.left: raise StopIteration
                c = self.left.pop()
                return f(c) == c + 1
        assert all(Each())
    """,
    "an asynchronous iterator": """
        class Each:
            def __init__(self): self.left = [1, 2]
            def __aiter__(self): return self
            async def __anext__(self):
                if not self.left: raise StopAsyncIteration
                return f(self.left.pop())
        async def check():
            async for value in Each(): assert value in (2, 3)
        try: check().send(None)
        except StopIteration: pass
    """,
    "a generator that is closed": """
        def g():
            try: yield
            finally: f(1)
        h = g()
        next(h)
        h.close()
    """,
    "a sequence without __iter__": """
        class S:
            def __getitem__(self, place):
                if place == 3: raise IndexError
                return f(place) == place + 1
        assert all(S()) and list(S()) == [True] * 3
    """,
    "get of a mapping": """
        from collections.abc import Mapping
        class M(Mapping):
            def __getitem__(self, key): return f(key)
            def __iter__(self): return iter([1])
            def __len__(self): return 1
        assert M().get(1, 2) == 2 and 1 in M()
    """,
    "ChainMap": """
        from collections import ChainMap, UserDict
        class M(UserDict):
            def __missing__(self, key): return f(key)
        ChainMap(M(), {1: 2})[1] == 2
    """,
    "getattr with a default": """
        class P:
            @property
            def value(self): return f(1)
        assert getattr(P(), "value", 2) == 2
    """,
    "hasattr": """
        class P:
            def __getattr__(self, name): return f(1)
        hasattr(P(), "value")
    """,
    "the length of something iterated": """
        class L:
            def __iter__(self): return iter([])
            def __len__(self): return f(-1)
        assert list(L()) == []
    """,
    "__del__": "class D:\n    def __del__(self): f(1)\nD()",
    "finally that returns": "def g():\n    try: assert f(1) == 2\n    finally: return True\nassert g()",
    "finally that goes on": "for _ in [1]:\n    try: assert f(1) == 2\n    finally: continue",
    "except of a library": "import reprlib\nclass R:\n    def __repr__(self): return str(f(1))\nreprlib.repr(R())",
    "raised again by a handler": """
        def g(c):
            try: return f(c) == c + 1
            except BaseException: raise
        assert all(map(g, [1, 2]))
    """,
    "raised again by name": """
        def g(c):
            try: return f(c) == c + 1
            except BaseException as problem: raise problem
        assert all(map(g, [1, 2]))
    """,
    "past a handler for something else": """
        def g(c):
            try: return f(c) == c + 1
            except (ZeroDivisionError, ConnectionError): return False
        assert all(map(g, [1, 2]))
    """,
    "past a with for something else": """
        import contextlib
        def g(c):
            with contextlib.suppress(ZeroDivisionError): return f(c) == c + 1
        assert all(map(g, [1, 2]))
    """,
    "past except*": """
        def g(c):
            try: return f(c) == c + 1
            except* ZeroDivisionError: pass
        assert all(map(g, [1, 2]))
    """,
    "in the set-up": "assert all(RESULTS)",
}  # fmt: skip
KINDS = (
    "StopIteration", "StopIteration(True)", "StopAsyncIteration", "GeneratorExit", "KeyboardInterrupt", "SystemExit(0)",
    "IndexError", "KeyError(1)", "LookupError", "AttributeError('value')", "TypeError", "ValueError", "AssertionError",
    "RuntimeError", "RecursionError", "MemoryError", "NotImplementedError", "OSError(2, 'no')", "EOFError", "NameError",
    "UserWarning", "BufferError", "UnicodeDecodeError('utf-8', b'x', 0, 1, 'no')", "Exception", "BaseException",
    "BaseExceptionGroup('g', [StopIteration()])", "ExceptionGroup('g', [KeyError()])", "Own()", "Last()", "Liar()",
)  # fmt: skip
CLASSES = """
class Own(StopIteration): pass
class Last(BaseException): pass
class Meta(type):
    def __eq__(cls, other): return True
    def __hash__(cls): return 0
    def __instancecheck__(cls, one): return True
class Liar(IndexError, metaclass=Meta):
    __class__ = property(lambda self: StopIteration)
    def __eq__(self, other): return True
    def __str__(self): raise StopIteration
    __repr__ = __str__
"""


@pytest.mark.parametrize("name", SWALLOWS)
def test_no_exception_of_a_candidate_acts_on_a_test(running: Judge, name: str) -> None:
    setup = "RESULTS = list(map(lambda c: f(c) == c + 1, [1, 2]))" if name == "in the set-up" else ""
    found = verdict(running, SWALLOWS[name], RIGHT, setup)
    assert found.passed, found.why
    for kind in KINDS:
        found = verdict(running, SWALLOWS[name], f"{CLASSES}\ndef f(*a): raise {kind}", setup)
        assert not found.passed and found.tests_passed == 0, (kind, found)
        assert found.status == ("memory" if kind == "MemoryError" else "failed"), (kind, found)


def test_methods_and_attributes_of_the_candidates_objects_are_no_way_round(running: Judge) -> None:
    setup = "box = Box()\n"
    test = "assert all(map(lambda c: box.add(c) == c + 1, [1, 2]))"
    cheat = (
        "class Box:\n    def add(self, x): raise StopIteration\n    @property\n    def size(self): raise StopIteration"
    )
    assert not verdict(running, test, cheat, setup).passed
    assert not verdict(running, "assert all(map(lambda c: box.size == c, [1, 2]))", cheat, setup).passed
    assert verdict(running, test, "class Box:\n    def add(self, x): return x + 1", setup).passed
    test = "assert hasattr(box, 'size') and not hasattr(box, 'left') and getattr(box, 'left', 3) == 3"
    assert verdict(running, test, "class Box: size = 1", setup).passed


# Each is passed only by a candidate that raises what it says. A space, and then another candidate that fails.
CATCHES = {
    "try": ("try: f(-1)\nexcept ValueError: pass\nelse: assert False", "raise ValueError", "return 1"),
    "a message": ("try: f(-1)\nexcept ValueError as e: assert str(e) == 'no' and e.args == ('no',)\nelse: assert 0",
                  "raise ValueError('no')", "raise ValueError('yes')"),
    "the message of a KeyError": ("try: f(-1)\nexcept KeyError as e: assert str(e) == \"'a'\"\nelse: assert 0",
                                  "raise KeyError('a')", "raise KeyError('b')"),
    "StopIteration by name": ("try: f(1)\nexcept StopIteration as e: assert e.value == 7\nelse: assert 0",
                              "raise StopIteration(7)", "raise StopIteration"),
    "SystemExit by name": ("try: f(1)\nexcept SystemExit as e: assert e.code == 3\nelse: assert 0", "raise SystemExit(3)", "return 3"),
    "KeyboardInterrupt by name": ("try: f(1)\nexcept KeyboardInterrupt: pass\nelse: assert 0", "raise KeyboardInterrupt", "return 3"),
    "AssertionError by name": ("ok = False\ntry: f(1)\nexcept AssertionError: ok = True\nassert ok", "assert False", "return 1"),
    "a base class": ("try: f(1)\nexcept LookupError: pass\nelse: assert 0", "raise IndexError", "raise ValueError"),
    "a class of the candidate's": ("try: f(1)\nexcept ValueError as e: assert type(e).__name__ == 'Mine'\nelse: assert 0",
                                   "raise type('Mine', (ValueError,), {})('x')", "raise type('Mine', (Exception,), {})('x')"),
    "a class of a library's": ("try: f(1)\nexcept ArithmeticError: pass\nelse: assert 0",
                               "import decimal; return decimal.Decimal(1) / 0", "return 0"),
    "UnicodeDecodeError": ("try: f(1)\nexcept UnicodeError as e: assert e.start == 1\nelse: assert 0", "b'a\\xff'.decode()", "return 0"),
    "errno": ("try: f(1)\nexcept FileNotFoundError as e: assert e.errno == 2\nelse: assert 0", "open('/no/such')", "return 0"),
    "bare": ("ok = False\ntry: f(1)\nexcept: ok = True\nassert ok", "raise LookupError", "return 0"),
    "a loop": ("for x in range(3):\n    try: f(x)\n    except ValueError: continue\n    assert False", "raise ValueError", "return x"),
    "a comprehension": ("def bad(x):\n    try: f(x)\n    except ValueError: return True\n    return False\nassert all(map(bad, [1, 2]))",
                        "raise ValueError", "raise StopIteration"),
    "in a generator": ("def g():\n    for x in (1, 2):\n        try: yield f(x)\n        except ValueError: yield None\nassert list(g()) == [None] * 2",
                       "raise ValueError", "raise KeyError"),
    "as RuntimeError of a generator": ("try: list(f(x) for x in [1])\nexcept RuntimeError: pass\nelse: assert 0", "raise StopIteration", "return 1"),
    "from one to another": ("def g():\n    try: f(1)\n    except KeyError as e: raise ValueError from e\ntry: g()\nexcept ValueError: pass\nelse: assert 0",
                            "raise KeyError", "return 1"),
    "except*": ("try: f(1)\nexcept* ValueError as e: assert len(e.exceptions) == 1\nelse: assert 0", "raise ValueError", "raise KeyError"),
    "suppress": ("import contextlib\nok = True\nwith contextlib.suppress(ValueError):\n    f(1)\n    ok = False\nassert ok", "raise ValueError", "return 1"),
    "an ExitStack": ("import contextlib\nok = True\nwith contextlib.ExitStack() as s:\n    s.enter_context(contextlib.suppress(KeyError))\n    f(1)\n    ok = False\nassert ok",
                     "raise KeyError", "return 1"),
    "a context manager of the test's": ("class C:\n    def __enter__(self): return self\n    def __exit__(self, k, v, t):\n        self.k = k\n        return True\nwith C() as c: f(1)\nassert c.k is ValueError",
                                        "raise ValueError", "raise KeyError"),
    "contextmanager": ("import contextlib\n@contextlib.contextmanager\ndef raises(k):\n    try: yield\n    except k: return\n    raise AssertionError\nwith raises(ValueError): f(1)",
                       "raise ValueError", "return 1"),
    "assertRaises with": ("import unittest\nwith unittest.TestCase().assertRaises(ValueError) as c: f(1)\nassert str(c.exception) == 'no'", "raise ValueError('no')", "return 1"),
    "assertRaises of f": ("import unittest\nunittest.TestCase().assertRaises(StopIteration, f, 1)", "raise StopIteration", "raise KeyError"),
    "assertRaises of a lambda": ("from unittest import TestCase as T\nraises = T().assertRaises\nraises((KeyError, ValueError), lambda: f(1))", "raise KeyError", "return 1"),
    "assertRaisesRegex": ("import unittest\nunittest.TestCase().assertRaisesRegex(ValueError, 'n.', f, x=1)", "raise ValueError('no')", "raise ValueError('yes')"),
    "a test case": ("import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        with self.assertRaises(ValueError): f(1)\n        self.assertRaises(ValueError, f, 2)\nr = unittest.TestResult()\nT('test').run(r)\nassert r.wasSuccessful() and r.testsRun == 1",
                    "raise ValueError", "return 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", CATCHES)
def test_a_test_may_expect_an_exception(running: Judge, name: str) -> None:
    test, right, wrong = CATCHES[name]
    found = verdict(running, test, f"def f(x): {right}")
    assert found.passed, found.why
    assert not verdict(running, test, f"def f(x): {wrong}").passed


@pytest.mark.parametrize(
    "body",
    ["while True: pass", "import os; os._exit(0)", "return (i for i in ())", "return NotImplemented", "return lambda: 0",
     "import os; os.write(3, b'\\0\\0\\0\\1x')", "return bytearray(1 << 40)"],
)  # fmt: skip
@pytest.mark.parametrize("handler", ["except: pass", "except BaseException: pass", "finally: OK"])
def test_no_answer_is_no_exception(running: Judge, body: str, handler: str) -> None:
    """Test code that catches all takes neither silence nor what is no value for the exception it wants."""
    handler = handler.replace("OK", "return")
    problem = Problem("t", "f", tests=(f"def g():\n    try: f(1)\n    {handler}\ng()",), seconds=0.5)
    assert not running.submit(problem, f"def f(x): {body}").result().passed


def test_an_object_that_refuses_to_be_compared_is_no_exception(running: Judge) -> None:
    for use in ("C() == 1", "bool(C())", "{C()}", "C() in [2]", "not C()"):
        found = verdict(running, f"try: {use}\nexcept Exception: pass", "class C: pass")
        assert not found.passed and "an object of the candidate" in found.why
    source = "def f(x): return 1"
    assert not verdict(running, "try: f(lambda: 0)\nexcept ValueError: pass\nelse: assert 0", source).passed


@pytest.mark.parametrize(
    "raised",
    ["Liar()", "ValueError(10**6000)", "ValueError('\\ud800')", "ValueError([[]] * 99999)", "type('a b', (ValueError,), {})()",
     "type('\\x00', (KeyError,), {})(1)", "ValueError('x' * 10**8)", "SyntaxError('a', ('b', 1, 2, 'c'))", "OSError(10**100, 1, 2, 3)",
     "type('V', (ValueError,), {'args': property(lambda s: 1 / 0)})()", "UnicodeDecodeError('\\ud800', b'', 0, 1, '')"],
)  # fmt: skip
def test_hostile_exceptions_fail_and_harm_nobody(running: Judge, raised: str) -> None:
    source = f"{CLASSES}\ndef f(x): raise {raised}"
    found = verdict(running, "assert f(1) == 2", source)
    assert found.status == "failed" and found.why.encode() and len(found.why) < 2000
    assert verdict(running, "assert f(1) == 2", RIGHT).passed
    try_all = "try: f(1)\nexcept Exception: pass\nelse: assert 0"
    assert verdict(running, try_all, source).passed


def test_restarts_forget_what_was_raised_before(running: Judge) -> None:
    tests = ("assert all(map(f, [1]))", "assert f(2) == 3", "try: f(0)\nexcept ValueError: pass\nelse: assert 0")
    source = "def f(x):\n    if x == 1: raise StopIteration\n    if x == 0: raise ValueError\n    return x + 1"
    found = running.submit(Problem("t", "f", tests=tests, every_test=True), source).result()
    assert (found.status, found.tests_passed) == ("failed", 2)


# --- what a job leaves -----------------------------------------------------------------------------------------------

# What test code or a candidate does, and what must be true in the next one.
LEAVES = {
    "decimal context": ("import decimal\ndecimal.getcontext().prec = 3", "import decimal\nassert decimal.getcontext().prec == 28"),
    "default decimal context": ("import decimal\ndecimal.DefaultContext.prec = 3\ndecimal.setcontext(decimal.Context())",
                                "import decimal\nassert decimal.Context().prec == 28"),
    "a module's function": ("import math\nmath.isclose = lambda *a, **k: True", "import math\nassert not math.isclose(1, 5)"),
    "a class of the library": ("import fractions\nfractions.Fraction.__eq__ = lambda a, b: True",
                               "from fractions import Fraction\nassert Fraction(1, 2) != 3"),
    "a builtin": ("import builtins\nbuiltins.len = lambda x: 0", "assert len('ab') == 2"),
    "a builtin by its dict": ("b = __builtins__\n(b if isinstance(b, dict) else vars(b))['len'] = lambda x: 0", "assert len('ab') == 2"),
    "a builtin by a frame": ("(0 for _ in ()).gi_frame.f_builtins['len'] = lambda x: 0", "assert len('ab') == 2"),
    "a builtin by a traceback": ("try: 1 / 0\nexcept ZeroDivisionError as e:\n    e.__traceback__.tb_frame.f_builtins['len'] = lambda x: 0",
                                 "assert len('ab') == 2"),
    "a new builtin": ("import builtins\nbuiltins.secret = 1", "assert 'secret' not in dir(__import__('builtins'))"),
    "the judge's own code": ("import sys\nsys.modules['dcoder_cli.execution.compare'].same_output = 1\nsys.modules['json'].loads = None",
                             "import sys\nassert callable(sys.modules['dcoder_cli.execution.compare'].same_output)\nassert sys.modules['json'].loads"),
    "modules": ("import sys\nsys.modules['math'] = None\nsys.modules['made'] = sys", "import math, sys\nassert 'made' not in sys.modules"),
    "the path": ("import sys\nsys.path.insert(0, '/dev')", "import sys\nassert '/dev' not in sys.path"),
    "finders": ("import sys\nsys.meta_path.clear()", "import sys\nassert sys.meta_path"),
    "environment": ("import os\nos.environ['LEFT'] = '1'", "import os\nassert 'LEFT' not in os.environ and os.getenv('LEFT') is None"),
    "time zone": ("import os, time\nos.environ['TZ'] = 'XYZ+5'\ntime.tzset()", "import time\nassert time.tzname[0] != 'XYZ'"),
    "folder": ("import os\nos.chdir('/dev')", "import os\nassert os.getcwd() != '/dev'"),
    "umask": ("import os\nos.umask(0o123)", "import os\nassert os.umask(0) != 0o123"),
    "descriptors": ("import os\nfor _ in range(30): os.dup(0)", "import os\nassert os.dup(0) < 20"),
    "recursion limit": ("import sys\nsys.setrecursionlimit(200)", "import sys\nassert sys.getrecursionlimit() == 1000"),
    "digits of integers": ("import sys\nsys.set_int_max_str_digits(0)", "import sys\nassert sys.get_int_max_str_digits() == 4300"),
    "signal handlers": ("import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nsignal.setitimer(signal.ITIMER_REAL, 99)",
                        "import signal\nassert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL) == (0, 0)"),
    "garbage collector": ("import gc\ngc.disable()\ngc.set_threshold(9)", "import gc\nassert gc.isenabled() and gc.get_threshold()[0] != 9"),
    "warnings": ("import warnings\nwarnings.simplefilter('error')", "import warnings\nwarnings.warn('x')"),
    "tracing": ("import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)", "import sys\nassert sys.gettrace() is None and sys.getprofile() is None"),
    "random numbers": ("import random\nrandom.seed(5)", "import random\na = random.random()\nrandom.seed(5)\nassert a != random.random()"),
    "numpy's random numbers": ("import numpy\nnumpy.random.seed(5)", "import numpy\na = numpy.random.rand()\nnumpy.random.seed(5)\nassert a != numpy.random.rand()"),
    "numpy's errors": ("import numpy\nnumpy.seterr(all='raise')", "import numpy\nassert numpy.geterr()['divide'] == 'warn'"),
    "locale": ("import locale\nlocale.setlocale(locale.LC_ALL, 'C')\nlocale.atof = lambda x: 7", "import locale\nassert locale.atof('1') == 1"),
    "codecs": ("import codecs\ncodecs.register_error('strict2', lambda e: ('', 9))", "import codecs\ntry: codecs.lookup_error('strict2')\nexcept LookupError: pass\nelse: assert 0"),
    "a cache": ("import functools, re\nre.compile = functools.lru_cache(lambda *a: None)", "import re\nassert re.compile('a').match('a')"),
    "what is in a class": ("import collections.abc\ncollections.abc.Sized.register(int)", "import collections.abc\nassert not isinstance(1, collections.abc.Sized)"),
    "files": ("import os\ntry: open('left', 'w').close()\nexcept OSError: pass", "import os\nassert not os.path.exists('left')"),
    "standard streams": ("import sys\nsys.stdout = sys.stdin = None", "import sys\nassert sys.stdout and sys.stdin"),
}  # fmt: skip


# Three of these wait for a time-out of ten seconds; one of them will do by default.
_WAITS = ("a builtin by a frame", "a builtin by a traceback")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in _WAITS else []) for name in LEAVES]
)
def test_test_code_leaves_nothing_for_the_next_job(running: Judge, name: str) -> None:
    leave, look = LEAVES[name]
    for _ in range(2):
        verdict(running, leave, RIGHT)
        verdict(running, "assert f(1) == 2", RIGHT, setup=leave)
        found = verdict(running, f"{look}\nassert f(1) == 2", RIGHT)
        assert found.passed, found.why


@pytest.mark.parametrize("name", LEAVES)
def test_candidates_leave_nothing_for_the_next_job(running: Judge, name: str) -> None:
    leave, look = LEAVES[name]
    for _ in range(2):
        verdict(running, "assert f(1) == 2", f"{leave}\n{RIGHT}")
        found = verdict(running, "assert f(1) == 2", f"{look}\n{RIGHT}")
        assert found.passed, found.why


def test_the_issues_two_examples(running: Judge) -> None:
    solution = "from decimal import Decimal\ndef f(x): return Decimal(x)"
    third = "import decimal\nassert decimal.Decimal(1) / decimal.Decimal(3) == f('0.3333333333333333333333333333')"
    wrong = "assert math.isclose(f(1), 5)"
    before = verdict(running, third, solution).passed, verdict(running, wrong, RIGHT).passed
    assert before == (True, False)
    verdict(running, "import decimal, math\ndecimal.getcontext().prec = 3\nmath.isclose = lambda *a, **k: True", RIGHT)
    assert (verdict(running, third, solution).passed, verdict(running, wrong, RIGHT).passed) == before


def test_a_process_used_again_is_told_from_one_that_may_not_be(running: Judge) -> None:
    """Harmless test code shares a process: what makes the fresh ones affordable."""
    worker = running._workers[0]
    verdict(running, "assert f(1) == 2", RIGHT)
    kept = worker._tester
    verdict(running, "assert all(f(x) == x + 1 for x in [1, 2])", RIGHT)
    assert kept is not None and worker._tester is kept
    verdict(running, "import random\nassert f(1) == 2", RIGHT)
    assert worker._tester is None


@pytest.mark.parametrize(
    "code",
    ["assert f(1) == 2", "import math\nassert math.isclose(f(1), 2.0)", "a = [1]\na.append(f(1))\nassert sorted(a) == [1, 2]",
     "from typing import List, Optional\ndef check(c: 'List') -> Optional[int]:\n    assert c(1) == {'a': (1, 2)}['a'][1]",
     "try: f(1)\nexcept ValueError as e: assert str(e)\nelse: assert 0", "assert f'{f(1)!r:>3}' == '  2'",
     "for i in range(3): x: int = i; x += 1\nassert (lambda y: y)(x) in {3} and not [z for z in 'a' if (w := z) != 'a']"],
)  # fmt: skip
def test_harmless_test_code(code: str) -> None:
    assert testcode.leaves_nothing([ast.parse(code)])


@pytest.mark.parametrize(
    "code",
    [*(leave for leave, _ in LEAVES.values()), "x = open\nopen = 1\nx('a')", "import math as m\nm.pi = 3", "for math.pi in [3]: pass",
     "[0 for math.pi in [3]]", "del math.pi", "math.pi += 1", "(math.pi, a) = 1, 2", "from math import *", "from typing import EXCLUDED_ATTRIBUTES as e\ne.clear()", "from typing import *",
     "from typing import sys", "import math, os", "import os.path as math", "from . import math", "from math.x import y", "f.__globals__",
     "().__class__.__base__.__subclasses__()", "str.__init__", "(i for i in ()).gi_frame", "exec('import os')", "eval('1')", "getattr(f, 'x')",
     "setattr(f, 'x', 1)", "vars(math)['pi'] = 3", "globals()", "__import__('os')", "__builtins__", "class C: pass", "with f() as math.pi: pass",
     "@f\ndef g(): pass", "async def g(): pass", "match f(1):\n    case 1: pass", "print(1)", "input()", "breakpoint()", "def g():\n    yield",
     "f.x = 1", "f(1).x", "def g():\n    global print\n    print = 1", "memoryview(b'')", "compile('1', '', 'eval')", "delattr(f, 'x')"],
)  # fmt: skip
def test_test_code_that_is_not_sure_to_be_harmless(code: str) -> None:
    assert not testcode.leaves_nothing([ast.parse(code)])


def test_modules_used_without_an_import_count() -> None:
    assert Problem("t", "f", tests=("assert math.isclose(f(1), 2)",)).leaves_nothing
    assert not Problem("t", "f", tests=("assert f(1) == random.choice([2])",)).leaves_nothing
    assert not Problem("t", "f", tests=("assert f(1)",), prelude="import os").leaves_nothing


# --- a candidate's words ---------------------------------------------------------------------------------------------

WORDS = {
    "a lone surrogate": "def {f}(*a, **k): raise ValueError('\\ud800')",
    "a lone surrogate, asserted": "def {f}(*a, **k): assert False, chr(0xdfff) * 1000",
    "controls": "def {f}(*a, **k): raise ValueError('\\0\\x1b[2J\\x9b\\r')",
    "a huge text": "def {f}(*a, **k): raise ValueError('x' * (1 << 22))",
    "a lone surrogate as the answer": "def {f}(*a, **k): return '\\ud800'",
    "an object named by surrogates": "def {f}(*a, **k): return type('C', (), {{}})",
    "a lone surrogate in the source": "x = '\ud800'\ndef {f}(*a, **k): return x",
    "NUL in the source": "x = '\0'\ndef {f}(*a, **k): return x",
    "a syntax error of surrogates": "def {f}(\ud800",
    "a huge source": "x = '" + "x" * (17 << 20) + "'\ndef {f}(*a, **k): return x",
}


@pytest.mark.parametrize("task", ["micro", "mbpp+"])
def test_judge_survives_what_candidates_say(
    task: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sandbox.best_tier() == "C":
        pytest.skip("no sandbox holds here")
    if task != "micro":
        monkeypatch.setenv("DCODER_BENCHMARKS", str(request.getfixturevalue("benchmarks")))
        monkeypatch.setenv("DCODER_CACHE", str(tmp_path / "cache"))
    items = suites.load(task).items[:1]
    rows = [{"task_id": items[0].task_id, "solution": text.format(f=items[0].entry_point)} for text in WORDS.values()]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = judge_file(tmp_path / "s.jsonl", task, tmp_path / "out")
    lines = (tmp_path / "out" / "judged.jsonl").read_bytes().decode("utf-8").splitlines()
    judged = [json.loads(line) for line in lines]
    assert len(judged) == len(WORDS) and {row["status"] for row in judged} == {"failed", "syntax"}
    assert all(scores["pass@1"]["score"] == 0.0 for scores in result.record["scores"].values())
    assert all(
        row["why"].encode() and len(row["why"]) < 2000 and valid_text(row["why"]) == row["why"] for row in judged
    )
    assert "\\ud800" in judged[0]["why"]


def test_an_evaluation_goes_on_after_a_lone_surrogate(tmp_path: Path) -> None:
    if sandbox.best_tier() == "C":
        pytest.skip("no sandbox holds here")
    suite = suites.load("micro")
    item = suite.items[0]
    with Judging(suites.only(suite, (item,)), workers=1) as judging:
        row = judging.submit(item, 0, WORDS["a lone surrogate"].format(f=item.entry_point)).result()
    for _ in range(2):
        with Store(tmp_path / "out", {"model": "m"}) as store:
            store.add("judged", row)
            assert store.judged[item.task_id, 0]["status"] == "failed"


def test_words_of_tests_beside_the_candidate() -> None:
    """The unittest driver's answer is whatever the candidate makes of it."""
    for answer in (
        b"[" * 100000,
        b'{"ran": Infinity, "wrong": 0, "why": ""}',
        b'{"ran": 1, "wrong": NaN, "why": ""}',
        b"[1]",
        b"\xff",
    ):
        assert unittests._judged(answer, False, 0, 1.0)[0] == "failed"
    status, why, ran, wrong = unittests._judged(b'{"ran": 1, "wrong": 1, "why": "\\ud800"}', False, 0, 1.0)
    found = Verdict("t", status, False, None, ran - wrong, ran, 0.0, why, "A", low_trust=True)
    assert json.dumps(found.row(), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("text", "valid"),
    [("", ""), ("plain", "plain"), ("ä → 😀\n\t", "ä → 😀\n\t"), ("\ud83d", "\\ud83d"), ("a\0b", "a\\x00b"), ("\x1b[2J\x9b", "\\x1b[2J\\x9b")],
)  # fmt: skip
def test_valid_text(text: str, valid: str) -> None:
    assert valid_text(text) == valid

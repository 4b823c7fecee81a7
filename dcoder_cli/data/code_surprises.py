"""How much of an answer no reader of its request could know: attributes, keys and file names that are told nowhere.

A request is worth an answer only if the answer follows from it. Names that every Python programmer knows (of built-in types, of
files and paths, of arrays) and those of imported modules are no surprise, nor is anything that the request says.
"""

from __future__ import annotations

import ast
import collections
import datetime
import io
import pathlib
import re
import types

from dcoder_cli.data.code_files import parse
from dcoder_cli.data.code_names import Function

_MOST = 0  # surprises that are forgiven (ours, from reading: with one, 82 of 100 pairs were good)
_TYPES = (
    str, bytes, bytearray, list, tuple, dict, set, frozenset, int, float, complex, slice, range, memoryview, BaseException, OSError,
    UnicodeDecodeError, SyntaxError, StopIteration, ImportError, type, object, property, io.StringIO, io.BytesIO, io.TextIOWrapper,
    io.FileIO, io.BufferedReader, pathlib.Path, re.Pattern, re.Match, datetime.datetime, datetime.date, datetime.timedelta,
    types.FunctionType, types.ModuleType, types.FrameType, types.CodeType, types.GeneratorType, types.TracebackType, types.MethodType,
    collections.Counter, collections.OrderedDict, collections.deque, collections.defaultdict,
)  # fmt: skip
# Of arrays, tensors and tables, and of what is passed around as often.
_ARRAYS = re.findall(
    r"\w+",
    """
shape dtype ndim size T device sum mean std var min max argmin argmax argsort sort cumsum cumprod prod all any abs reshape ravel flatten
squeeze unsqueeze transpose permute view expand repeat astype to float double half long int bool item tolist numpy cpu cuda clone detach
fill fill_ zero_ copy_ masked_fill masked_fill_ new_zeros new_ones new_full type_as contiguous matmul dot mm bmm norm exp log sqrt pow
clip clamp nonzero scatter gather index_select chunk split stack unbind topk softmax log_softmax sigmoid tanh relu grad requires_grad
backward weight bias parameters named_parameters state_dict modules children train eval values index columns iloc loc groupby apply
real imag conj diagonal trace rows cols take swapaxes data name value key args kwargs path group start stop step
acquire release put set wait notify notify_all cancel done result set_result set_exception add_done_callback submit shutdown fileno
""",
)
_KNOWN = frozenset(name for one in _TYPES for name in dir(one)) | frozenset(_ARRAYS)
_TOLD = re.compile(r"\w+")
_NAME_LIKE = re.compile(r"[@\w./:=%-]{5,}$")
_USUAL = frozenset(
    ("utf-8", "utf8", "utf_8", "ascii", "latin-1", "strict", "ignore", "replace", "backslashreplace", "surrogateescape",
     "win32", "darwin", "linux", "posix")
)  # fmt: skip


def surprises(node: Function, program: str, request: str) -> list[str]:
    """The names and short texts in a function that neither its request tells nor everybody knows, each once.

    Args:
        node: the function.
        program: its text with its imports, of which the names' attributes are known.
    """
    told = set(_TOLD.findall(request))
    tree = parse(program)
    modules = {
        alias.asname or alias.name.partition(".")[0]
        for one in (ast.walk(tree) if tree is not None else ())
        if isinstance(one, (ast.Import, ast.ImportFrom))
        for alias in one.names
    }
    owner = {one.arg for one in node.args.args[:1] if one.arg in ("self", "cls")}
    found: dict[str, None] = {}
    words: set[int] = set()
    for one in ast.walk(node):
        if isinstance(one, (ast.Raise, ast.Assert)) or (isinstance(one, ast.Call) and _speaks(one)):
            words |= {id(inner) for inner in ast.walk(one)}
    own = {
        one.attr
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store) and _root(one) in owner
    }
    for one in ast.walk(node):
        if isinstance(one, ast.Attribute):
            known = one.attr in told or one.attr in own or one.attr in _KNOWN
            of_module = _root(one) in modules and not re.match("_[A-Za-z]", one.attr)
            if not known and not of_module and not (isinstance(one.value, ast.Name) and one.value.id in owner):
                found[one.attr] = None
        elif isinstance(one, ast.Constant) and isinstance(one.value, str) and id(one) not in words:
            text = one.value
            if _NAME_LIKE.match(text) and text.lower() not in _USUAL and not set(_TOLD.findall(text)) <= told:
                found[text] = None
    return list(found)


def too_many(node: Function, program: str, request: str) -> bool:
    """Whether more of a function is a surprise than is forgiven."""
    found = surprises(node, program, request)
    return len(found) > _MOST


def _speaks(call: ast.Call) -> bool:
    """Whether a call only says something to people: `warn`, `log.info`, `print`."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in (
        "warn",
        "warning",
        "info",
        "debug",
        "error",
        "exception",
        "critical",
        "log",
        "print",
        "write",
        "format",
    )


def _root(node: ast.expr) -> str | None:
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None

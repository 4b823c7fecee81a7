"""The command line as a process that need not import torch and transformers anew: forked from one that has.

`python warm.py` is that one. It reads a call a line (arguments, folder, files for the three streams), forks, and answers with the
child's number, then with its exit code. The child runs `python -m dcoder_cli` as the interpreter does; what it saw of its
environment while importing is what the server was started with, so `Warm.run` takes no call with another one.
"""

from __future__ import annotations

import atexit
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What nothing reads while importing, and what the command itself sets before it imports, as the server does.
_UNSEEN = {
    "PYTEST_CURRENT_TEST", "COLUMNS", "LINES", "DCODER_BENCHMARKS",
    "TORCHINDUCTOR_CACHE_DIR", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",  # PyTorch sets them once it has compiled
}  # fmt: skip
_OWN = {"TRANSFORMERS_VERBOSITY": "error", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}


class Warm:
    """The server, started with the first call, and gone with this process."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        self._environment: dict[str, str] = {}

    def run(
        self, arguments: Sequence[str], timeout: float, cwd: str | Path | None = None, input: str = ""
    ) -> subprocess.CompletedProcess[str] | None:
        """As `subprocess.run` with captured text; None where the environment is another one than the server's."""
        seen = {name: value for name, value in os.environ.items() if name not in _UNSEEN and name not in _OWN}
        if self._server is None or self._server.poll() is not None:
            self._environment = seen
            self._server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
        if seen != self._environment:
            return None
        with tempfile.TemporaryDirectory() as folder:
            streams = [str(Path(folder) / name) for name in ("in", "out", "err")]
            Path(streams[0]).write_text(input)
            call = {
                "arguments": list(arguments), "cwd": str(cwd or os.getcwd()), "streams": streams,
                "environment": dict(os.environ),
            }  # fmt: skip
            child = int(self._asked(json.dumps(call)))
            if not select.select([self._server.stdout], [], [], timeout)[0]:
                os.kill(child, 9)
                self._answer()
                raise subprocess.TimeoutExpired(list(arguments), timeout)
            code = int(self._answer())
            out, err = (Path(path).read_bytes().decode() for path in streams[1:])
        universal = [text.replace("\r\n", "\n").replace("\r", "\n") for text in (out, err)]
        return subprocess.CompletedProcess(["dcoder", *arguments], code, *universal)

    def _asked(self, line: str) -> str:
        assert self._server is not None and self._server.stdin is not None
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        """A line of the server's, read byte by byte: what it says later must stay where `select` sees it."""
        assert self._server is not None and self._server.stdout is not None
        found = b""
        while not found.endswith(b"\n"):
            byte = os.read(self._server.stdout.fileno(), 1)
            assert byte, "the server of tests/warm.py ended"
            found += byte
        return found.decode()


def _serve() -> None:
    os.environ.update(_OWN)
    import accelerate  # noqa: F401
    import torch  # noqa: F401
    import transformers

    import dcoder_cli

    for module in pkgutil.walk_packages(dcoder_cli.__path__, "dcoder_cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("Qwen2ForCausalLM", "LlamaForCausalLM", "PreTrainedTokenizerFast"):
        getattr(transformers, name)
    assert threading.active_count() == 1, "a process of several threads cannot be forked safely"
    answers = os.dup(1)
    while line := _line():
        call = json.loads(line)
        child = os.fork()
        if not child:
            os.close(answers)
            _run(call)
        os.write(answers, f"{child}\n".encode())
        os.write(answers, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())


def _line() -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        some = os.read(0, 1 << 16)
        if not some:
            return b""
        found += some
    return found


def _run(call: dict[str, Any]) -> None:
    code: Any = 0
    try:
        for number, (path, mode) in enumerate(zip(call["streams"], ("rb", "wb", "wb"), strict=True)):
            handle = open(path, mode)  # noqa: SIM115
            os.dup2(handle.fileno(), number)
        sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False))  # noqa: SIM115
        os.environ.clear()
        os.environ.update(call["environment"])
        os.chdir(call["cwd"])
        sys.path[0] = call["cwd"]
        sys.argv = ["dcoder", *call["arguments"]]
        runpy.run_module("dcoder_cli", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _serve()

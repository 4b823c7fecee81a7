"""How OpenMP's threads wait: a short spin that is set before torch loads, and what it saves beside a busy process."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import pytest

SET = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")
MARK = f"print({{name: os.environ.get(name) for name in {SET!r}}}, 'torch' in sys.modules)"
LOOP = """
import sys, time
from dcoder_cli import load
import torch
torch.set_num_threads(2)
net = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(128, 512), torch.nn.GELU(), torch.nn.Linear(512, 128))
                            for _ in range(4)])
opt, rows = torch.optim.AdamW(net.parameters()), torch.randn(256, 128)
for line in sys.stdin:
    times = []
    for _ in range(60):
        began = time.perf_counter()
        net(rows).square().mean().backward()
        opt.step()
        times.append(time.perf_counter() - began)
    print(sum(times), flush=True)
"""


def environment(**given: str) -> dict[str, str]:
    """This process's environment without what anybody has said about threads."""
    said = (*SET, "OMP_WAIT_POLICY", "KMP_LIBRARY", "OMP_NUM_THREADS")
    return {**{name: value for name, value in os.environ.items() if name not in said}, **given}


def python(code: str, **given: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", code], env=environment(**given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_the_spin_is_bounded_before_torch_loads() -> None:
    done = python(f"import os, sys, dcoder_cli\n{MARK}")
    assert done.stdout.strip() == "{'GOMP_SPINCOUNT': '1000', 'KMP_BLOCKTIME': '1'} False"


def test_openmp_itself_says_that_it_heard() -> None:
    """libgomp and LLVM's runtime print what they run with when they load: from Python, and from the command line."""
    asked = {"OMP_DISPLAY_ENV": "verbose"}
    command = "import sys\nfrom dcoder_cli.main import main\nsys.argv[1:] = ['inspect', 'nowhere']\nassert 'torch' not in sys.modules\ntry:\n    main()\nexcept SystemExit:\n    import torch\n"
    for code in ("from dcoder_cli import load", command):
        heard = python(code, **asked).stderr.replace(" ", "")
        if "_OPENMP" not in heard:
            pytest.skip("this torch has no OpenMP")
        assert "GOMP_SPINCOUNT='1000'" in heard or "KMP_BLOCKTIME='1" in heard, heard


def test_worker_processes_wait_as_their_parent_does() -> None:
    code = (
        "import dcoder_cli, os, sys\nfrom concurrent.futures import ProcessPoolExecutor\nfrom multiprocessing import get_context\n"
        "with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:\n"
        f"    print([pool.submit(os.getenv, name).result() for name in {SET!r}])\n"
    )
    assert python(code).stdout.strip() == "['1000', '1']"


@pytest.mark.parametrize(
    ("name", "value"),
    [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7"), ("KMP_BLOCKTIME", "200"), ("KMP_LIBRARY", "turnaround")],
)
def test_a_users_own_choice_stays_and_nothing_is_set_beside_it(name: str, value: str) -> None:
    """Our variables would override OMP_WAIT_POLICY in both runtimes."""
    done = python(f"import os, sys, dcoder_cli\n{MARK}\nprint(os.environ[{name!r}])", **{name: value})
    want = {other: value if other == name else None for other in SET}
    assert done.stdout.splitlines() == [f"{want} False", value]


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has no waiting threads")
def test_a_busy_neighbour_costs_a_few_times_not_tens() -> None:
    """Two threads beside one busy process a core but one: the share of a core that is left makes it 2 to 3 times slower.

    With libgomp's default it was 10 to 70 times. Idle and busy rounds alternate, so that other load falls on both.
    """
    loop = subprocess.Popen(
        [sys.executable, "-c", LOOP], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert loop.stdin is not None and loop.stdout is not None

    def measured() -> float:
        print("go", file=loop.stdin, flush=True)
        return float(loop.stdout.readline())

    try:
        measured()
        alone, beside = [], []
        for _ in range(5):
            alone.append(measured())
            busy = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range((os.cpu_count() or 2) - 1)
            ]
            try:
                beside.append(measured())
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
    finally:
        loop.kill()
        loop.wait()
    ratio = statistics.median(beside) / statistics.median(alone)
    assert ratio < 5, (ratio, alone, beside)

"""`run.py` itself: the whole of it at toy size on the CPU; what it does about failures and the end of its time; its card-only lines."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import benches
import ground
import places
import pytest
import run
import torch
from places import CARD, CPU, CardPeak, Place, timed

# What makes a process one of a machine that has neither these packages nor dcoder.
BARE = """
import sys
from importlib.machinery import PathFinder

sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
real, missing = PathFinder.find_spec, {"datasets", "datasketch", "zstandard"}
PathFinder.find_spec = classmethod(lambda cls, name, *more: None if name.split(".")[0] in missing else real(name, *more))
"""


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu_in_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    """Without packages that a lent machine may lack, from another folder."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    command = [sys.executable, run.__file__, "--out", tmp_path / "out", "--device", "cpu"]
    environment = {**run.os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "log.txt").read_text()[-4000:]
    assert "memory: stage 4, fast rollouts: " in done.stdout and "\ntop-p: heat alone " in done.stdout
    found = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert [part["outcome"] for part in found["parts"]] == ["done"] * 4
    assert found["versions"]["torch"] == torch.__version__ and found["settings"]["shape"] == "tiny"
    assert [line["bench"] for line in found["benches"]] == [bench.name for bench in benches.BENCHES]
    assert sum(line["outcome"] == "passed" for line in found["benches"]) == len(benches.BENCHES) - 1
    assert sum(line["outcome"] == "passed" for line in found["tests"]) > 30
    assert sum(line["numbers"].startswith("memory: ") for line in found["numbers"]) == 8 + 2 + 2 + 4
    assert all(line["why"] for line in found["tests"] if line["outcome"] == "skipped")


def main(
    monkeypatch: pytest.MonkeyPatch, out: Path, files: dict[str, str], *arguments: str
) -> tuple[int, dict[str, Any]]:
    """Run parts of one test file each; the exit code and numbers.json."""
    known = []
    for name, text in files.items():
        file = out.parent / f"test_{name}.py"
        file.write_text(text)
        known.append(run.Part(name, [file]))
    monkeypatch.setattr(run, "parts", lambda device: [[part] for part in known])
    monkeypatch.setattr(run, "GRACE", 1)
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(out), "--device", "cpu", *arguments])
    return run.main(), json.loads((out / "numbers.json").read_text())


@pytest.mark.slow
def test_a_checkout_serves_as_the_package(tmp_path: Path) -> None:
    """Commands and presets too, which lie beside dcoder_cli there; and it is this checkout, not what is installed."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    found = run.environment("cpu", "tiny", tmp_path / "log", 0.0, run.link(tmp_path / "package"))
    found["PYTHONPATH"] += run.os.pathsep + str(tmp_path)
    code = "import dcoder_cli.commands.doctor, dcoder_cli.presets as p; print(dcoder_cli.__file__, p.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=run.ROOT, env=found, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(file.startswith(str(tmp_path / "package")) for file in done.stdout.split())


@pytest.mark.slow
def test_a_failure_is_told_and_is_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "good": "import pytest\ndef test_one(): pass\ndef test_two(): pytest.skip('no card')\n",
        "bad": "def test_three(): assert 1 == 2, 'one is not two'\n",
        "broken": "import no_such_module\n",
    }
    code, found = main(monkeypatch, tmp_path / "out", files)
    told = capsys.readouterr().out
    assert code == 1 and [part["outcome"] for part in found["parts"]] == ["done", "failed", "failed"]
    assert [line["outcome"] for line in found["tests"]] == ["passed", "skipped", "failed", "error"]
    assert "skipped 1: no card" in told and "one is not two" in told and "no_such_module" in told
    code, found = main(monkeypatch, tmp_path / "again", files, "--only", "good")
    assert code == 0 and len(found["parts"]) == 1
    skips = {"no_card": "import pytest\ndef test_four(): pytest.skip('no card')\n"}
    assert main(monkeypatch, tmp_path / "none", skips)[0] == 1
    assert "nothing has passed" in capsys.readouterr().out


@pytest.mark.slow
def test_what_does_not_fit_the_time_is_stopped_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "long": "import time\ndef test_short(): pass\ndef test_long(): time.sleep(100)\n",
        "next": "def test_never(): pass\n",
    }
    began = time.time()
    code, found = main(monkeypatch, tmp_path / "out", files, "--minutes", "0.15")
    assert code == 0 and time.time() - began < 30
    assert [part["outcome"] for part in found["parts"]] == ["stopped", "left out"]
    assert [line["test"].split("::")[1] for line in found["tests"]] == ["test_short"]
    told = capsys.readouterr().out
    assert "1 of 2 tests had ended" in told and "not all of it ran in 0.15 minutes: long, next" in told


@pytest.mark.slow
def test_after_the_deadline_no_test_and_no_bench_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_late.py").write_text("import time\ndef test_one(): time.sleep(4)\ndef test_two(): pass\n")
    part = run.Part("late", [tmp_path / "test_late.py"])
    monkeypatch.setattr(run, "GRACE", 1)
    run.run([part], "cpu", "tiny", tmp_path, time.time() + 5, tmp_path)
    assert part.outcome in ("cut short", "stopped") and len(part.lines) <= 3
    log = tmp_path / "benches.jsonl"
    assert benches.main("cpu", "tiny", str(log), 0.0, []) == 0
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    assert [line["outcome"] for line in lines] == ["left out"] * len(benches.BENCHES)


def test_the_lines_for_a_card_are_no_typos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, PyTorch's functions are stood in for."""
    events: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            events.append(self)

        def record(self) -> None: ...
        def synchronize(self) -> None: ...
        def elapsed_time(self, other: Any) -> float:
            return 250.0

    cuda = mock.Mock(spec=torch.cuda)
    cuda.Event, cuda.is_available.return_value = Event, True
    cuda.memory_allocated.return_value, cuda.max_memory_allocated.return_value = 100, 350
    cuda.mem_get_info.return_value = (20 * 2**30, 80 * 2**30)
    cuda.get_device_name.return_value = "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(torch, "cuda", cuda)
    card = Place("cuda", "full")
    assert card.torch == torch.device("cuda", 0) and CARD.device == "cuda"
    assert timed(card, lambda: None, 3)["median"] == 0.25 and len(events) == 6
    peak = places.peak_of(card)
    assert isinstance(peak, CardPeak)
    peak.start()
    assert peak.stop() == 250
    card.needs(19)
    with pytest.raises(pytest.skip.Exception, match=r"needs 30 GiB of the card, and 20\.0 are free"):
        card.needs(30)
    CPU.needs(1000)


def test_the_share_of_a_cards_arithmetic_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.5B: 24 blocks of 14,909,440 weights and a head of 151,936 x 896; 8,192 tokens in rows of 1,024 in 0.1 s on an H100."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    here = ground.Ground(Place("cuda", "full"), tmp_path, "half", rows=8, length=1024)
    found = ground.speed(here, 0.1)
    each = 6 * (24 * 14_909_440 + 151_936 * 896) + 12 * 24 * 1024 * 896
    assert found["tokens_per_second"] == 81_920 and found["tflops"] == pytest.approx(each * 81_920 / 1e12)
    assert found["mfu"] == pytest.approx(each * 81_920 / 989e12, abs=1e-4)

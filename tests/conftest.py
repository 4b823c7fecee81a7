"""Shared fixtures. Tests that need the project's ../shared folder skip without it."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import own_benchmarks
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from a second thread and wait for it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell that starts the tests in the background has them ignore Ctrl-C, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


# The files that take longest, the longest first. Where files are shared out among processes (--dist loadfile), these begin
# first, so that no process is left alone with one of them at the end.
_LONG = (
    "test_verdicts", "test_grpo_loop", "test_lora", "test_grpo_resume", "test_arness_command", "test_claims", "test_fast",
    "test_sampling_memory", "test_tracking", "test_attacks", "test_golden", "test_serve", "test_external_samples",
    "test_provenance", "test_eval", "test_extending", "test_one_benchmark", "test_sampler", "test_training", "test_replay",
    "test_nproc", "test_sharded", "test_lora_weights", "test_answer_length", "test_not_finite", "test_progress",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Files are handed out in the order of collection, which is ours, rather than by their number of tests."""
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist has it
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first; else the order stays."""
    place = {name: number for number, name in enumerate(_LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(_LONG)))


_last_file: list[Path] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """What lives when a file's tests begin (thousands of tests, torch, transformers) is not for the garbage collector to
    go through again and again: a test that makes many objects took three times as long for it."""
    if _last_file != [item.path]:
        _last_file[:] = [item.path]
        gc.collect()
        gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`-m gpu` on a machine without a card skips, rather than fails in as many ways as there are tests."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the project with published benchmark data; only its developers have it."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the project")
    return folder


# The published files where they are, beside our own; without them nothing is skipped for it. They run the same code, so they
# are of the slow tests; what is about the published tasks themselves takes the fixture `benchmarks` and is not.
_PUBLISHED = pytest.param("published", marks=pytest.mark.slow)
_DATA = ["own", _PUBLISHED] if (ROOT.parent / "shared" / "benchmarks").is_dir() else ["own"]


@pytest.fixture(scope="session")
def benchmarks(shared: Path) -> Path:
    """The folder with the public benchmark files, for tests about the published tasks themselves."""
    return shared / "benchmarks"


@pytest.fixture(scope="session")
def own_benchmark_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own tasks in the formats, ids and counts of the public benchmarks."""
    return own_benchmarks.write(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(params=_DATA)
def benchmark_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of benchmark files, named by DCODER_BENCHMARKS: our own, then the published ones where they are."""
    name = "own_benchmark_files" if request.param == "own" else "benchmarks"
    folder: Path = request.getfixturevalue(name)
    monkeypatch.setenv("DCODER_BENCHMARKS", str(folder))
    return folder

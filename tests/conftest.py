"""Shared fixtures. Tests that need the project's ../shared folder skip without it."""

from __future__ import annotations

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

"""`dcoder tokenize --ray`: on two nodes of Ray's own cluster utility, the bytes of one process, whatever is lost on the way."""

# ruff: noqa: F811 - fixtures of another file

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import refused
from test_data_pipeline import (  # noqa: F401
    RUN,
    UNIT_BYTES,
    UNITS,
    corpus,
    on_a_full_disk,
    once,
    pretrain_settings,
    tokenizer,
    tree,
)  # fmt: skip

from dcoder_cli.base.errors import UserError
from dcoder_cli.data import cluster as engine
from dcoder_cli.data import copies, sources, writing
from dcoder_cli.data.pipeline import tokenize_pretrain
from dcoder_cli.data.unit_files import unit_path

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # a cluster takes some 10 s to start


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster of two nodes of a core each, on this machine."""
    from ray.cluster_utils import Cluster

    made = Cluster()
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=100 * 2**20, include_dashboard=False)
    yield made
    ray.shutdown()
    made.shutdown()


# Many tasks for the copies and the rows too, so that a stop falls among them.
MANY = RUN.replace(
    "main()\n", "from dcoder_cli.data import copies\ncopies._DOCUMENTS, copies._PART_BYTES = 3, 200\nmain()\n"
)


def command(corpus: Path, tokenizer: str, out: Path, address: str) -> list[str]:
    arguments = ["pretrain", str(corpus), "--out", str(out), "--tokenizer", tokenizer, "--seq-len", "128"]
    return [sys.executable, "-c", MANY, "tokenize", *arguments, "--heldout", "0.2", "--ray", address]


def begun(process: subprocess.Popen[str], units: Path) -> None:
    """Wait for the first unit."""
    deadline = time.monotonic() + 120
    while not any(unit_path(units, index).exists() for index in range(UNITS)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_nodes_give_the_bytes_of_one_process(
    nodes: Any,
    corpus: Path,
    tokenizer: str,
    once: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "_FILES_UNIT_BYTES", UNIT_BYTES)
    settings = pretrain_settings(corpus, tokenizer, tmp_path / "data")
    for name, value in (("DOCUMENTS", 5), ("PART_BYTES", 300)):  # many tasks, on both machines, for the copies too
        monkeypatch.setattr(copies, f"_{name}", value)
    manifest = tokenize_pretrain(replace(settings, ray=nodes.address))
    assert tree(tmp_path / "data") == tree(once)
    assert {reason: entry["examples"] for reason, entry in manifest["dropped"].items()} == {
        "exact duplicate": ["m001.py (of copy.py)"], "near duplicate": ["m001_close.py (of copy.py (1.00))"],
    }  # fmt: skip
    monkeypatch.setattr(writing, "_TOKENS_PER_FILE", 128 * 700)  # and for the rows
    tokenize_pretrain(replace(settings, out=str(tmp_path / "files")))
    tokenize_pretrain(replace(settings, out=str(tmp_path / "many"), ray=nodes.address))
    assert tree(tmp_path / "many") == tree(tmp_path / "files") and len(tree(tmp_path / "many")) > 6
    for name in ("files", "many"):
        shutil.rmtree(tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
    # A machine that does not see the folder, and one of another release
    monkeypatch.setattr(engine, "_seen", lambda path: (engine.__version__, None))
    with pytest.raises(UserError, match=r"of the cluster does not see .*; give an --out in a folder that all share"):
        tokenize_pretrain(replace(settings, out=str(tmp_path / "other"), ray=nodes.address))
    monkeypatch.setattr(engine, "_seen", lambda path: ("0.0.1", ""))
    with pytest.raises(UserError, match=r"of the cluster has dcoder 0.0.1, and here is"):
        tokenize_pretrain(replace(settings, out=str(tmp_path / "other"), ray=nodes.address))
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_a_node_that_is_lost_and_one_that_joins_change_nothing(
    nodes: Any,
    corpus: Path,
    tokenizer: str,
    once: Path,
    tmp_path: Path,
) -> None:
    process = subprocess.Popen(
        command(corpus, tokenizer, tmp_path / "data", nodes.address), stderr=subprocess.PIPE, text=True
    )
    begun(process, tmp_path / ".data.partial" / "units")
    nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
    nodes.add_node(num_cpus=1, object_store_memory=100 * 2**20, include_dashboard=False)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert tree(tmp_path / "data") == tree(once) and "Traceback" not in told


@pytest.mark.parametrize("among", ["units", "copies"])
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_stopped_goes_on_to_the_same_bytes(
    nodes: Any,
    corpus: Path,
    tokenizer: str,
    once: Path,
    tmp_path: Path,
    kill: signal.Signals,
    among: str,
) -> None:
    out, units = tmp_path / "data", tmp_path / ".data.partial" / "units"
    process = subprocess.Popen(command(corpus, tokenizer, out, nodes.address), stderr=subprocess.PIPE, text=True)
    begun(process, units)
    while among == "copies" and not any((units.parent / "copies").glob("bands-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(kill)
    _, told = process.communicate(timeout=60)
    assert process.returncode == (130 if kill == signal.SIGINT else -kill) and not out.exists(), told
    assert ("run the same command again" in told) == (kill == signal.SIGINT) and "Traceback" not in told
    result = subprocess.run(command(corpus, tokenizer, out, nodes.address), capture_output=True, text=True)
    assert result.returncode == 0 and "going on from" in result.stderr, result.stderr
    assert tree(out) == tree(once)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_a_full_disk_is_one_line(nodes: Any, corpus: Path, tokenizer: str, once: Path, tmp_path: Path) -> None:
    on_a_full_disk(lambda out: command(corpus, tokenizer, out, nodes.address), tmp_path / "small", once)


def test_a_damaged_source_is_one_line(nodes: Any, tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "x = 1"}\n')
    (tmp_path / "cut.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd and no more")
    told = refused("tokenize", "pretrain", tmp_path / "rows.jsonl", tmp_path / "cut.jsonl.zst", "--tokenizer", tokenizer,
                   "--out", tmp_path / "data", "--ray", nodes.address)  # fmt: skip
    assert "cut.jsonl.zst" in told and not (tmp_path / "data").exists()


def test_without_a_cluster_one_of_this_machine_is_made(tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("def f(x):\n    return x + 1\n" * 20)
    call = [sys.executable, "-m", "dcoder_cli", "tokenize", "pretrain", str(tmp_path / "code.py"), "--tokenizer", tokenizer,
            "--seq-len", "16", "--heldout", "0"]  # fmt: skip
    for name, more in (("one", []), ("two", ["--ray"]), ("three", ["--ray", "local"])):
        done = subprocess.run([*call, "--out", str(tmp_path / name), *more], capture_output=True, text=True)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(tmp_path / "three")
    began = time.monotonic()
    done = subprocess.run(
        [*call, "--out", str(tmp_path / "four"), "--ray", "127.0.0.1:1"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "--ray 127.0.0.1:1: no cluster there" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and time.monotonic() - began < 60
    assert not list(tmp_path.glob("*four*"))

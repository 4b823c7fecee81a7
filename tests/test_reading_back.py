"""`read_metrics`, `read_results`, `read_samples`, `read_trajectories` on files that the commands wrote, whole and not."""

from __future__ import annotations

import builtins
import contextlib
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from helpers import make_model, make_shards, make_tokenizer, said

import dcoder_cli
from dcoder_cli import read_metrics, read_results, read_samples, read_trajectories
from dcoder_cli.base.errors import UserError

READERS = [read_metrics, read_results, read_samples, read_trajectories]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in their seed, an evaluation of two models, one alone, and trajectories."""
    root = tmp_path_factory.mktemp("written")
    tokenizer = make_tokenizer(300)
    make_model(root / "m", context=512, tokenizer=tokenizer)
    make_model(root / "n", context=512, tokenizer=tokenizer, seed=1)
    make_shards(root / "d", tokenizer)
    small = "--set steps=2 --set global_batch=4 --set micro_batch=2 --set precision=fp32 --set anneal_steps=0"
    with contextlib.chdir(root):
        for seed in ("2", "10"):
            said(*f"train-stage 1 --preset cpu-tiny --model m --data d --device cpu {small} --set log_every=1 --set seed={seed}"
                 f" --out runs/seed-{seed}".split())  # fmt: skip
        said(
            *[
                "eval",
                "micro",
                "--model",
                "m",
                "--model",
                "n",
                "--limit",
                "1",
                "--max-new-tokens",
                "4",
                "--out",
                "scores",
            ]
        )
        said(*["generate", "--model", "m", "--max-new-tokens", "4", "--trajectories", "t.jsonl", "a", "b"])
    return root


def test_the_package_offers_them_and_loads_nothing_heavy(place: Path) -> None:
    assert {one.__name__ for one in READERS} <= {*dcoder_cli.__all__} & {*dir(dcoder_cli)}
    code = (
        "import sys\nfrom dcoder_cli import read_metrics\nread_metrics(sys.argv[1])\n"
        "assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, place / "runs"], check=True)
    assert (Path(dcoder_cli.__file__).parent / "py.typed").is_file()


def test_metrics_of_a_run_and_of_its_seeds(place: Path) -> None:
    lines = [json.loads(line) for line in (place / "runs/seed-2/metrics.jsonl").read_text().splitlines()]
    assert read_metrics(place / "runs" / "seed-2") == [{"run": ".", **line} for line in lines]
    assert read_metrics(place / "runs" / "seed-2" / "metrics.jsonl") == read_metrics(place / "runs" / "seed-2")
    both = read_metrics(str(place / "runs"))
    assert [row["run"] for row in both if row["step"] == 1] == ["seed-2", "seed-10"], "by number"
    timed = read_metrics(place / "runs" / "seed-2", timings=True)
    assert [set(new) - set(old) for new, old in zip(timed, lines, strict=True) if "loss" in old] == [
        {"run", "seconds", "tokens_per_second"}
    ] * 2
    assert all(set(new) - set(old) == {"run"} for new, old in zip(timed, lines, strict=True) if "loss" not in old)


def test_metrics_of_a_run_that_goes_on(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert read_metrics(run) == [{"run": ".", "step": 1, "loss": 2.5}]
    (run / "metrics.jsonl").write_bytes(b'{"step": 1, "lo\n{"step": 2, "loss": 1}\n')
    with pytest.raises(UserError, match=r"log '.*metrics.jsonl' line 1 is not JSON"):
        read_metrics(run)


def test_results_of_one_and_of_several(place: Path) -> None:
    both = read_results(place / "scores")
    assert [(one["folder"], one["model"]) for one in both] == [
        (f"{name}/{task}", name) for name in ("m", "n") for task in ("micro", "micro-kinds")
    ]
    assert read_results(place / "scores" / "results.json") == both
    alone = read_results(place / "scores" / "n" / "micro")
    assert alone == read_results(place / "scores" / "n" / "micro" / "results.json") == [{**both[2], "folder": "."}]
    assert alone[0]["scores"] == json.loads((place / "scores/n/micro/results.json").read_text())["scores"]


def test_samples_with_their_verdicts(place: Path, tmp_path: Path) -> None:
    folder = place / "scores" / "m" / "micro"
    (row,) = read_samples(folder)
    sample = json.loads((folder / "samples.jsonl").read_text())
    verdict = json.loads((folder / "judged.jsonl").read_text())
    assert row == {"folder": ".", **verdict, **sample, "judge_seconds": verdict["seconds"]}
    assert {one["folder"] for one in read_samples(place / "scores")} == {
        one["folder"] for one in read_results(place / "scores")
    }
    # as a running evaluation of two processes leaves it: judged again after trouble, another not judged yet
    lost = {**verdict, "status": "infrastructure", "passed": False}
    (tmp_path / "samples.rank-0.jsonl").write_text(json.dumps(sample) + "\n")
    (tmp_path / "samples.rank-1.jsonl").write_text(json.dumps({**sample, "sample": 1}) + "\n{")
    (tmp_path / "judged.rank-1.jsonl").write_text(json.dumps(lost) + "\n" + json.dumps(verdict) + "\n")
    first, second = read_samples(tmp_path)
    assert first["status"] == verdict["status"] and "status" not in second and second["sample"] == 1


def test_trajectories_packed_and_of_others(place: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (place / "t.jsonl").read_text().splitlines()]
    assert read_trajectories(place / "t.jsonl") == [{"file": "t.jsonl", **line} for line in lines]
    shutil.copy(place / "t.jsonl", tmp_path / "trajectories-a.jsonl")
    (tmp_path / "trajectories-b.jsonl.gz").write_bytes(gzip.compress(b'{"order": [1, 0]}\n'))
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-3.jsonl.zst").write_bytes(zstandard.compress(b'{"reveal_step": [0], "text": "x"}\n'))
    found = read_trajectories(tmp_path)
    assert [row["file"] for row in found] == [
        "samples/step-3.jsonl.zst",
        *["trajectories-a.jsonl"] * 2,
        "trajectories-b.jsonl.gz",
    ]
    (tmp_path / "bad.jsonl").write_text('{"reveal_step": [0]}\n{"text": "x"}\n')
    with pytest.raises(UserError, match=r"bad.jsonl' line 2 has neither a list 'reveal_step' nor 'order'"):
        read_trajectories(tmp_path / "bad.jsonl")


def test_frames(place: Path) -> None:
    metrics = read_metrics(place / "runs", frame=True)
    assert len(metrics) == len(read_metrics(place / "runs")) and {"run", "step", "loss", "heldout.loss"} <= {
        *metrics.columns
    }
    assert metrics.groupby("run")["loss"].count().to_dict() == {"seed-2": 2, "seed-10": 2}
    scores = read_results(place / "scores", frame=True)
    assert list(scores["metric"]) == ["micro", "micro-kinds"] * 2 and set(scores["pass"]) == {"pass@1"}
    assert {"score", "low", "high", "model", "protocol", "counts.samples", "settings.temperature"} <= {*scores.columns}
    assert list(read_trajectories(place / "t.jsonl", frame=True)["tokens"].map(len)) == [4, 4]
    assert len(read_samples(place / "scores", frame=True)) == 4


def test_frames_without_pandas(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError(name)
        return really(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert read_metrics(place / "runs")
    with pytest.raises(
        UserError, match="frame=True needs pandas; install it with `pip install pandas`, or leave frame out"
    ):
        read_metrics(place / "runs", frame=True)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_none_is_named(reader: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        reader(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no .*; "):
        reader(tmp_path)
    for number, content in enumerate((b"[1]\n", b"nonsense\n", b"\xff\n", b'"a"\n', b"[" * 10**5 + b"\n", b"{}\n1\n")):
        file = tmp_path / f"{number}.jsonl"
        file.write_bytes(content)
        with pytest.raises(UserError, match=str(number)) as told:
            reader(file)
        assert "\n" not in str(told.value)
    for line in ('{"loss": 1.0}', '{"step": "1"}', '{"step": -1}', '{"step": true}', '{"step": 1.5}'):
        (tmp_path / "metrics.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match=r"line 1 has (no step|step = ).*; mend or remove that line"):
            read_metrics(tmp_path)  # what `dcoder plot` refuses of the same file
    for line in (
        '{"text": ""}',
        '{"task_id": [1], "sample": 0, "text": ""}',
        '{"task_id": "a", "sample": {}, "text": ""}',
    ):
        (tmp_path / "samples.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match=r"line 1 has (no task_id|task_id =|sample =).*; mend or remove that line"):
            read_samples(tmp_path)  # a list for an id ended in a TypeError
    (tmp_path / "cut.jsonl.gz").write_bytes(
        gzip.compress(b'{"step": 0, "task_id": "a", "sample": 0, "text": "", "reveal_step": [0]}\n' * 99)[:-9]
    )
    with pytest.raises(UserError, match="is damaged"):
        reader(tmp_path / "cut.jsonl.gz")

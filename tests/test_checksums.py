"""Bytes that change on a disk are found, by the file's name, before anything is made of them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import make_model, make_shards, make_tokenizer, refused, said

from dcoder_cli.base import checksums
from dcoder_cli.base.checksums import Damaged
from dcoder_cli.base.errors import UserError
from dcoder_cli.data import shards
from dcoder_cli.data.manifest import read_manifest, write_manifest
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.model import checkpoint
from dcoder_cli.model.loading import load
from dcoder_cli.training import damage
from dcoder_cli.training.grpo.estimate import Completion
from dcoder_cli.training.grpo.rewards import Reward
from dcoder_cli.training.grpo.rollouts import Rollout, load_rollouts, save_rollouts

FLIPS = 50
SETTINGS = "steps: 4\nglobal_batch: 2\nmicro_batch: 2\nprecision: fp32\ncheckpoint_every: 2\nevaluate_every: 0\n"


def train(place: Path, out: Path, *more: str | Path) -> list[str | Path]:
    model, data = place / "model", place / "shards"
    return ["train-stage", "2", "--model", model, "--data", data, "--out", out, "--config", place / "c.yaml", *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows whose manifest is sealed, and a run over them with checkpoints at steps 2 and 4."""
    folder = tmp_path_factory.mktemp("checksums")
    tokenizer = make_tokenizer()
    make_model(folder / "model", tokenizer=tokenizer)
    make_shards(folder / "shards", tokenizer)
    write_manifest(folder / "shards", {**read_manifest(folder / "shards"), "format_version": 2})
    (folder / "c.yaml").write_text(SETTINGS)
    said(*train(folder, folder / "run"))
    trajectory = Trajectory("a", "", [5, 6], "def f", [0, 1], [0.5, 0.25], [0.1, 0.2], 0)
    save_rollouts(
        folder / "kept.jsonl", [Rollout(0, Completion((1, 2), (5, 6), 2), trajectory, Reward(1.0, {"a": 1}, ""))]
    )
    return folder


def weights(folder: Path) -> None:
    checkpoint.check_files(folder, checkpoint.weight_files(folder))


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "rows": ("shards/train-00000.safetensors", lambda file: found(shards.damage([ShardSet.open(file.parent)]))),
    "held-out rows": (
        "shards/heldout-00000.safetensors",
        lambda file: found(shards.damage([ShardSet.open(file.parent, "heldout")])),
    ),
    "manifest": ("shards/manifest.json", lambda file: read_manifest(file.parent)),
    "weights": ("run/checkpoints/step-4/model.safetensors", lambda file: weights(file.parent)),
    "optimizer": (
        "run/checkpoints/step-4/training/optimizer.pt",
        lambda file: damage.check_state(file.parents[1], ["optimizer.pt"]),
    ),
    "state": (
        "run/checkpoints/step-4/training/state.pt",
        lambda file: damage.check_state(file.parents[1], ["optimizer.pt", "state.pt"]),
    ),
    "record": ("run/checkpoints/step-4/checksums.json", lambda file: checksums.read_record(file.parent)),
    "kept rollouts": ("kept.jsonl", load_rollouts),
}


def found(damaged: Damaged | None) -> None:
    if damaged is not None:
        raise damaged


def flipped(data: bytes, chance: random.Random) -> bytes:
    """One byte is another: a bit of it, or all of it."""
    changed, at = bytearray(data), chance.randrange(len(data))
    changed[at] = changed[at] ^ 1 << chance.randrange(8) if chance.random() < 0.5 else chance.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("fast", [True, False], ids=["xxhash", "standard library"])
@pytest.mark.parametrize("name", READERS)
def test_a_byte_that_changed_anywhere_is_found(
    name: str, fast: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(checksums, "fast", lambda: None)
    where, reader = READERS[name]
    folder = where.split("/")[0]
    (shutil.copytree if (place / folder).is_dir() else shutil.copy)(place / folder, tmp_path / folder)  # type: ignore[operator]
    file, chance = tmp_path / where, random.Random(name)
    reader(file)  # a copy is whole
    data = file.read_bytes()
    zeros = bytes(16)
    damages = [flipped(data, chance) for _ in range(FLIPS)] + [data[:100] + zeros + data[116:], data[:-1], data + b"\0"]
    for changed in damages:
        if changed != data:
            file.write_bytes(changed)
            with pytest.raises(UserError, match=file.name.replace(".", r"\.")) as caught:
                reader(file)
            assert "\n" not in str(caught.value)


def test_rows_are_checked_before_the_first_step_or_not_at_all(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "shards", tmp_path / "shards")
    for file in (place / "model", place / "c.yaml"):
        (tmp_path / file.name).symlink_to(file)
    file = tmp_path / "shards" / "train-00000.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    line = refused(*train(tmp_path, tmp_path / "run"))
    assert f"shard {str(file)!r} is damaged or was changed" in line and "copy the data again" in line
    assert not (tmp_path / "run").exists()
    said(*train(tmp_path, tmp_path / "run", "--set", "check_data=false"))


def test_a_damaged_checkpoint_names_the_one_to_go_on_from(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run", tmp_path / "run", symlinks=True)
    steps = tmp_path / "run" / "checkpoints"
    resume = train(place, tmp_path / "run", "--set", "steps=5", "--resume")
    for name, what in (("model.safetensors", "weights file"), ("training/optimizer.pt", "training state")):
        file = steps / "step-4" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:])
        line = refused(*resume)
        assert f"{what} {str(file)!r} is damaged" in line
        assert line.endswith(f"or remove {str(steps / 'step-4')!r} to resume from step-2, which is whole")
        file.write_bytes(whole)
    (steps / "step-4" / "model.safetensors").write_bytes(b"")
    assert "to resume from step-2, which is whole" in refused(*resume)
    (steps / "step-2" / "training" / "state.pt").unlink()
    assert "no earlier checkpoint is whole" in refused(*resume)
    shutil.copy(place / "run" / "checkpoints" / "step-2" / "training" / "state.pt", steps / "step-2" / "training")
    shutil.rmtree(steps / "step-4")
    said(*resume)  # the remedy
    assert (steps / "step-5").is_dir()


def test_config_and_tokenizer_may_be_edited_and_a_record_may_be_missing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(place / "model", tmp_path / "model")
    load(folder, device="cpu")
    assert not capsys.readouterr().err, "a copy is as it was"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    load(folder, device="cpu")
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "warning: config.json of" in told and "all is well" in told
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(Damaged, match=r"if you replaced it, remove checksums\.json"):
        load(folder, device="cpu")
    (folder / "checksums.json").unlink()
    load(folder, device="cpu")


def test_what_is_exported_and_converted_has_a_record_of_its_own(place: Path, tmp_path: Path) -> None:
    model = shutil.copytree(place / "model", tmp_path / "model")
    said("export", model, "--out", tmp_path / "out")
    recorded = checksums.read_record(tmp_path / "out")
    assert recorded is not None and set(recorded.files) == set(checksums.names(tmp_path / "out")) > {"config.json"}
    assert all(sums == checksums.sums_of(tmp_path / "out" / name) for name, sums in recorded.files.items())
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert "is damaged or was changed" in refused("export", model, "--out", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_newer_record_or_manifest_is_not_called_damaged(place: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(place / "model", tmp_path / "model")
    text = (folder / "checksums.json").read_text()
    (folder / "checksums.json").write_text(text.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(UserError, match=r"written by a newer dcoder \(format 2; this one reads 1\); update dcoder"):
        load(folder, device="cpu")

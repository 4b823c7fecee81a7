"""The held-out loss is that of the mixture which training reads, and of each source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from helpers import make_tokenizer
from torch import Tensor, nn

from dcoder_cli.data.arrays import write_arrays
from dcoder_cli.data.batches import RowRules
from dcoder_cli.data.filters import FilterSettings
from dcoder_cli.data.pipeline import PretrainSettings, SftSettings, tokenize_pretrain, tokenize_sft
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.evaluation import evaluate, told

L = 32
LEFT_ALONE = FilterSettings(near_duplicates=0.0, code_filters="none")


def made(folder: Path, known: bool = True) -> ShardSet:
    """Two rows of token 1 from a source that taught 100 tokens, three of token 5 (half of the last is padding) from one of 300."""
    folder.mkdir()
    files: list[dict[str, Any]] = []
    for number, (token, rows, padding) in enumerate(((1, 2, 0), (5, 3, L // 2))):
        tokens = np.full((rows, L), token, np.uint16)
        tokens[-1, L - padding :] = 0
        name = f"heldout-{number:05d}.safetensors"
        digest = write_arrays(folder / name, {"tokens": tokens, "document_ids": np.zeros((rows, L), np.uint16)}, {})
        files.append({"split": "heldout", "file": name, "rows": rows, "sha256": digest})
        if known:
            files[-1] |= {"source": number, "padding": padding}
    manifest = {
        "format_version": 1, "kind": "pretrain", "sequence_length": L, "files": files,
        "tokenizer": {"hash": "", "vocab_size": 300, "name": ""}, "special_tokens": {},
        "sources": [{"name": "library", "weight": 1, "taught_tokens": 100}, {"name": "tasks", "weight": 3, "taught_tokens": 300}],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return ShardSet.open(folder, "heldout")


class TokenIsLoss(nn.Module):
    """A model whose loss at a token is the token's id."""

    def forward(self, noised_BL: Tensor, places_N: Tensor, targets_N: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        return targets_N.float().sum(), targets_N.float()


def measured(shards: ShardSet, mask_id: int | None = None, **changes: Any) -> dict[str, Any]:
    accelerator = Accelerator(cpu=True)
    config = StageConfig(precision="fp32", **changes)
    return evaluate(accelerator, TokenIsLoss(), shards, config, RowRules(0, 0, keep_first=False), mask_id)


def test_each_source_counts_as_its_share_of_training(tmp_path: Path) -> None:
    """By hand: library 1, tasks 5, of what training teaches 100 and 300 tokens: (100 * 1 + 300 * 5) / 400 = 4."""
    result = measured(made(tmp_path / "new"))
    assert result["loss"] == pytest.approx(4.0) and result["mixture"] == "as trained" and result["rows"] == 5
    assert result["sources"] == [
        {"name": "library", "loss": 1.0, "share": 0.25, "rows": 2},
        {"name": "tasks", "loss": 5.0, "share": 0.75, "rows": 3},
    ]
    assert told(result) == "held-out 4.00 as mixed (library 1.00, tasks 5.00)"


def test_shards_of_before_say_that_they_are_unweighted(tmp_path: Path) -> None:
    """Every token once, the padding (token 0) too: (64 * 1 + 80 * 5 + 16 * 0) / 160 = 2.9."""
    result = measured(made(tmp_path / "old", known=False))
    assert result["loss"] == pytest.approx(2.9) and result["mixture"] == "unweighted" and "sources" not in result
    assert "each document once, sources not told apart" in told(result)


def test_the_noised_loss_and_its_bands_are_mixed_alike(tmp_path: Path) -> None:
    shards = made(tmp_path / "new")
    result = measured(shards, mask_id=9)
    library, tasks = result["sources"]
    assert result["loss"] == pytest.approx(0.25 * library["loss"] + 0.75 * tasks["loss"])
    # library's rows at t = 1/4 and 3/4, tasks' at 1/6, 1/2 and 5/6: bands of one source hold its loss alone
    assert [result["by_t"][band] for band in (1, 2, 5, 7, 8)] == pytest.approx([5.0, 1.0, 5.0, 1.0, 5.0])
    parts = [measured(shards, mask_id=9, micro_batch=size) for size in (1, 3)]
    assert parts[0]["loss"] == pytest.approx(parts[1]["loss"]) == pytest.approx(result["loss"])


def test_rows_are_shared_out_over_the_sources(tmp_path: Path) -> None:
    shards = made(tmp_path / "new")
    assert [source["rows"] for source in measured(shards, evaluate_rows=4)["sources"]] == [2, 2]
    assert [source["rows"] for source in measured(shards, evaluate_rows=2)["sources"]] == [1, 1]
    alone = measured(shards, evaluate_rows=1)
    assert [source["share"] for source in alone["sources"]] == [1.0] and alone["loss"] in (1.0, 5.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def corpus(folder: Path, name: str, count: int) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text(
        "".join(
            json.dumps({"text": f"{name} {number}", "prompt": f"{name} {number}", "completion": "yes"}) + "\n"
            for number in range(count)
        )
    )
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_tokenize_tells_the_sources_of_held_out_rows_and_what_training_has_of_each(
    kind: str, tokenizer: str, tmp_path: Path
) -> None:
    """Weights 1, 3 and 0.5: the shares are counted from the training rows themselves, the held-out files hold one source each."""
    sources = [corpus(tmp_path, "one", 60), corpus(tmp_path, "three", 40), corpus(tmp_path, "half", 80)]
    names = (f"{sources[0]}", f"{sources[1]}@3", f"{sources[2]}@0.5")
    for workers in (1, 2):
        out = str(tmp_path / f"out{workers}")
        if kind == "pretrain":
            settings: Any = PretrainSettings(
                names, out, tokenizer, seq_len=16, heldout=0.2, workers=workers, filters=LEFT_ALONE, quiet=True
            )
            manifest = tokenize_pretrain(settings)
        else:
            settings = SftSettings(names, out, tokenizer, seq_len=48, heldout=0.2, workers=workers, quiet=True)
            manifest = tokenize_sft(settings)
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2")

    text = _text(tokenizer)
    taught = {"one": 0, "three": 0, "half": 0}
    train = ShardSet.open(tmp_path / "out1", "train")
    rows = train.rows(range(len(train)))
    if kind == "pretrain":
        end, stream = manifest["special_tokens"]["eos"]["id"], [int(token) for row in rows["tokens"] for token in row]
        document: list[int] = []
        for token in stream:
            if token != end:
                document.append(token)
            elif document:
                taught[text(document).split()[0]] += len(document) + 1
                document = []
    else:
        for tokens, eligible in zip(rows["tokens"], rows["eligible"], strict=True):
            taught[next(name for name in taught if f"{name} " in text(tokens))] += int(eligible.sum())
    assert [source["taught_tokens"] for source in manifest["sources"]] == list(taught.values())

    shards = ShardSet.open(tmp_path / "out1", "heldout")
    assert [source.name for source in shards.sources] == ["one.jsonl", "three.jsonl", "half.jsonl"]
    assert [source.share for source in shards.sources] == pytest.approx(
        [n / sum(taught.values()) for n in taught.values()]
    )
    for source, name in zip(shards.sources, taught, strict=True):
        for tokens in shards.rows(source.rows)["tokens"]:
            assert not [other for other in taught if other != name and other in text(tokens)]
    assert sum(len(source.rows) for source in shards.sources) == len(shards) and not train.sources
    for row, padding in shards.padding.items():
        assert kind == "pretrain" and set(shards.rows([row])["tokens"][0, -padding:].tolist()) == {end}


def test_a_set_of_two_machines_adds_up_what_its_parts_teach(tokenizer: str, tmp_path: Path) -> None:
    names = tuple(str(corpus(tmp_path, name, 40)) for name in ("one", "two"))
    for part in ("1/2", "2/2"):
        settings = PretrainSettings(
            names, str(tmp_path / "out"), tokenizer, seq_len=16, heldout=0.2, shard=part, filters=LEFT_ALONE, quiet=True
        )
        tokenize_pretrain(settings)
    shards = ShardSet.open(tmp_path / "out", "heldout")
    assert [source.name for source in shards.sources] == ["one.jsonl", "two.jsonl"]
    assert (
        sum(source.share for source in shards.sources) == pytest.approx(1)
        and min(source.share for source in shards.sources) > 0.4
    )


def _text(tokenizer: str) -> Any:
    from dcoder_cli.model.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    return lambda ids: loaded.decode([int(one) for one in ids])

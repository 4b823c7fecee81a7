"""The model card of `dcoder export`: what the files of a run and of its measurements say, of these weights, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import dcoder, make_model, make_shards, make_tokenizer, refused
from markdown_it import MarkdownIt
from test_export import SHAPE, logits

from dcoder_cli.base import markup
from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import card_history
from dcoder_cli.benchmarks.publish import publish
from dcoder_cli.benchmarks.samples import Store
from dcoder_cli.model import identity


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("card") / "tiny", context=128, **SHAPE)


# --- whose measurements ----------------------------------------------------------------------------------------------

SCORE: dict[str, Any] = {
    "task": "humaneval", "subset": "", "tasks": 3, "tasks_of_benchmark": 164, "n": 2, "protocol": "diffucoder-instruct",
    "scores": {"humaneval": {"pass@1": {"score": 12.345, "low": 1.0, "high": 40.0, "interval": "wilson"},
                             "pass@2": {"score": 20.0, "low": 2.0, "high": 50.0, "interval": "wilson"}}},
    "counts": {"samples": 6, "empty": 0, "syntax_error": 2}, "settings": {"max_new_tokens": 8, "temperature": 0.2, "seed": 0},
    "departures": {"max_new_tokens": {"protocol": 512, "here": 8}}, "data": {"version": "1", "origin": "/home/me/x", "sha256": "ab"},
    "sandbox_tier": "B", "low_trust": False, "device": "cpu", "dtype": "float32",
    "environment": {"packages": {"dcoder": "0.1.0"}, "command": ["eval", "--model", "/home/me/secret"]},
}  # fmt: skip


def score(folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({**SCORE, **more}))
    return folder


def order(file: Path, *series: dict[str, Any], **more: Any) -> Path:
    curve = {
        "mean": [0.5, 0.25],
        "low": [0.4, None],
        "high": [0.6, None],
        "tie_low": [0.1, 0.0],
        "tie_high": [0.9, 0.3],
        "k": [1, 2],
    }
    one = {"label": "m", "samples": 4, "convention": "defined", "ties": "random", "until": "all", "interval_method": "t over prompts",
           "tokens": 8.0, "commits_per_step": 1.0, "tied_share": 0.96, "tie_break": ["model"], "temperature": 0.2,
           "local": curve, "global": curve}  # fmt: skip
    settings = {
        "rule": "confidence",
        "max_new_tokens": 8,
        "prompts": ["/home/me/p.jsonl"],
        "departures": {"max_new_tokens": {"paper": 512, "here": 8}},
    }
    file.write_text(json.dumps({"series": [{**one, **of} for of in series], "settings": settings, **more}))
    return file


def test_measurements_of_other_weights_are_refused(model: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=1, context=128, **SHAPE)
    mine, theirs = identity.weights_id(model), identity.weights_id(other)
    assert mine != theirs
    told = refused(
        "export", model, "--out", tmp_path / "out", "--results", score(tmp_path / "a", weights=theirs, model=str(model))
    )
    assert "other weights than" in told and "by the weights it notes, else by the path" in told
    file = order(tmp_path / "arness.json", {"model": str(model), "weights": theirs})
    assert "other weights than" in refused("export", model, "--out", tmp_path / "out", "--arness", file)
    # a copy elsewhere has the same weights, and a comparison gives what is of this one
    shutil.copytree(model, tmp_path / "copy")
    (
        score(tmp_path / "all" / "x", weights=theirs, model="x"),
        score(tmp_path / "all" / "y", weights=mine, model="elsewhere", n=7),
    )
    (tmp_path / "all" / "results.json").write_text(
        json.dumps({"task": "t", "runs": [{"folder": "x"}, {"folder": "y"}]})
    )
    file = order(file, {"model": "x", "weights": theirs}, {"model": "y", "weights": mine, "label": "mine"})
    facts = publish(str(tmp_path / "copy"), tmp_path / "out", results=[tmp_path / "all"], orders=[file])
    assert [one["n"] for one in facts["scores"]] == [7] and [one["label"] for one in facts["arness"]] == ["mine"]
    judged = score(tmp_path / "judged", samples_from="samples.jsonl")
    assert "name no model" in refused("export", model, "--out", tmp_path / "out2", "--results", judged)


def test_files_of_earlier_releases_are_known_by_their_path(model: Path, tmp_path: Path) -> None:
    """Over `last`, which moves, a file must not be older than what it leads to now."""
    run = tmp_path / "run"
    shutil.copytree(model, run / "checkpoints" / "step-2")
    (run / "checkpoints" / "last").symlink_to("step-2")
    (run / "config.yaml").write_text(RECORD.format(model="x", data="d"))
    for place in (run, run / "checkpoints" / "last", run / "checkpoints" / "step-2"):
        assert publish(str(run), tmp_path / f"out-{place.name}", results=[score(tmp_path / "s", model=str(place))])[
            "scores"
        ]
    old = score(tmp_path / "s", model=str(run))
    os.utime(old / "results.json", (1, 1))
    assert "was measured on" in refused("export", run, "--out", tmp_path / "out", "--results", old)
    elsewhere = score(tmp_path / "s", model="runs/sft")
    assert "was measured on 'runs/sft'" in refused("export", run, "--out", tmp_path / "out", "--results", elsewhere)


def test_an_evaluation_does_not_go_on_with_other_weights(tmp_path: Path) -> None:
    with Store(tmp_path / "new", {"model": "m", "weights": "a"}):
        pass
    with pytest.raises(UserError, match="weights"):
        Store(tmp_path / "new", {"model": "m", "weights": "b"})
    with Store(tmp_path / "earlier", {"model": "m"}):  # which noted none
        pass
    Store(tmp_path / "earlier", {"model": "m", "weights": "b"}).close()


# --- the card --------------------------------------------------------------------------------------------------------

RECORD = """stage: 3
model: {model}
data: {data}
data_sha256: "0"
config: {{global_batch: 4, seed: 0, lora: null, optimizer: {{name: adamw, learning_rate: 3.0e-05, warmup_steps: 9, warmup_ratio: 0.1}}}}
"""
HOSTILE = 'a|b`c``d" <b>*x*</b> [l](http://evil) é漢 --- #'


def parts(card: str) -> tuple[dict[str, Any], list[Any]]:
    """A card's metadata, and the tokens of its Markdown as CommonMark with tables reads it."""
    match = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL)
    assert match is not None
    return yaml.safe_load(match[1]), MarkdownIt("commonmark").enable("table").parse(match[2])


def tables(tokens: list[Any]) -> list[list[list[str]]]:
    found: list[list[list[str]]] = []
    for place, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            found[-1][-1].append(tokens[place + 1].content)
    return found


@pytest.fixture
def history(model: Path, tmp_path: Path) -> Path:
    """A run of stage 3 that began with one of stage 1, both with hostile names, the data of one still there."""
    make_shards(tmp_path / "data" / HOSTILE.replace("/", ":"), make_tokenizer())
    from dcoder_cli.data.manifest import fingerprint

    data = tmp_path / "data" / HOSTILE.replace("/", ":")
    first, second = tmp_path / "runs" / "adapt", tmp_path / "runs" / HOSTILE.replace("/", ":")
    for number, (run, start) in enumerate(((first, "Qwen/Qwen2.5-Coder-0.5B"), (second, "runs/adapt"))):
        shutil.copytree(model, run / "checkpoints" / "step-7")
        (run / "checkpoints" / "last").symlink_to("step-7")
        record = yaml.safe_load(RECORD.format(model=start, data="gone"))
        if number == 0:
            record |= {"stage": 1, "data": str(data), "data_sha256": fingerprint(data)}
        (run / "config.yaml").write_text(yaml.safe_dump(record))
        rows = [{"step": 4, "tokens": 100, "loss": 1.0}, {"step": 7, "tokens": 175, "loss": 1.0},
                {"step": 7, "heldout": {"loss": 2.5}}, {"step": 9, "tokens": 999, "loss": 1.0}]  # fmt: skip
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        start_of = {"folder": str(tmp_path), "device": "cpu", "processes": 1, "host": "secret-host", "commit": "c0ffee",
                    "packages": {"dcoder": "0.1.0"}}  # fmt: skip
        (run / "environment.json").write_text(json.dumps({"starts": [start_of]}))
    return second


def test_the_card_says_what_the_files_say(history: Path, tmp_path: Path) -> None:
    mine = identity.weights_id(history / "checkpoints" / "last")
    results = score(tmp_path / "scores", weights=mine, model=HOSTILE)
    orders = order(tmp_path / "arness.json", {"model": "m", "weights": mine, "label": HOSTILE})
    out = tmp_path / HOSTILE.replace("/", ":")
    facts = publish(str(history), out, "bfloat16", "apache-2.0", [results], [orders])
    assert json.loads((out / "dcoder_card.json").read_text()) == {
        key: one for key, one in facts.items() if key not in ("out", "files")
    }
    card = (out / "README.md").read_text()
    metadata, tokens = parts(card)
    assert metadata["license"] == "apache-2.0" and metadata["base_model"] == "Qwen/Qwen2.5-Coder-0.5B"
    assert metadata["library_name"] == "transformers" and metadata["pipeline_tag"] == "text-generation"
    assert metadata["model-index"][0]["name"] == out.name
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"] == {"type": "openai/openai_humaneval", "name": "humaneval"}
    assert [(one["type"], one["value"]) for one in result["metrics"]] == [("pass@1", 12.345), ("pass@2", 20.0)]
    _, training, scores, orders_shown = tables(tokens)
    assert [row[0] for row in training[1:]] == ["adapt", "sft"]
    assert training[1][1] == "Qwen/Qwen2.5-Coder-0.5B" and training[2][1] == "adapt"
    assert training[1][3:] == ["40 of 32 tokens", "7", "4 rows", "3e-05", "175 tokens"], (
        "steps after the exported one do not count"
    )
    assert training[2][3] == "not recorded"
    assert [row[1:3] for row in scores[1:]] == [
        ["humaneval pass@1", "12.3 [1.0, 40.0]"],
        ["humaneval pass@2", "20.0 [2.0, 50.0]"],
    ]
    assert scores[1][3:] == ["3 of 164", "2", "diffucoder-instruct"]
    assert orders_shown[1][1:] == [
        "0.2",
        "4",
        "96.0%",
        "0.500 [0.400, 0.600]",
        "0.250",
        "0.500 [0.400, 0.600]",
        "0.250",
    ]
    for said in (
        "max_new_tokens=8 temperature=0.2 seed=0", "departs from the protocol in max_new_tokens 8 (there 512)", "sandbox tier B",
        "2 syntax error", "float32 on cpu", "held out: loss 2.5", "optimizer.warmup_ratio=0.1", "at `c0ffee`",
        "Measured before the weights were cast from float32 to bfloat16.", "prompts=[p.jsonl]", "ties broken by model",
        "other tie breaks could have given local@1 from 0.100 to 0.900", "departs from the paper's settings in max_new_tokens 8 (there 512)",
    ):  # fmt: skip
        assert said in card, said
    assert "warmup_steps" not in card and card.count("Measured before") == 2
    for secret in ("/home/me", "secret", str(tmp_path)):
        assert secret not in card.replace(out.name, "") and secret not in (out / "dcoder_card.json").read_text(), secret
    # what the names hold stays text
    kinds = {child.type for token in tokens for child in token.children or []}
    assert not kinds & {"html_inline", "link_open", "em_open", "image"} and not any(
        token.type == "html_block" for token in tokens
    )
    assert all(len({len(row) for row in one}) == 1 for one in tables(tokens))
    snippets = [token.content for token in tokens if token.type == "fence"]
    for snippet in snippets:
        compile(snippet, "card", "exec")
    assert len(snippets) == 2 and all(json.dumps(out.name, ensure_ascii=False) in one for one in snippets)


def test_stage_4_and_hub_data_are_told_too(model: Path, tmp_path: Path) -> None:
    """What the run was of is in its record; its data are gone, so nothing but name and hash is known of them."""
    from dcoder_cli.data.manifest import fingerprint

    make_shards(tmp_path / "data", make_tokenizer(), kind="sft")
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    manifest |= {
        "kind": "rl",
        "sources": [{"name": "hub:TIGER-Lab/AceCode-87K:config", "weight": 1.0}, {"name": "mine#2", "weight": 3.0}],
    }
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    run = tmp_path / "runs" / "grpo"
    shutil.copytree(model, run / "checkpoints" / "step-5")
    config = {
        "prompts_per_step": 2,
        "group_size": 10,
        "estimator": "coupled",
        "rewards": {"code": 2.0},
        "optimizer": {"learning_rate": 1e-6},
    }
    record = {"stage": 4, "model": "apple/DiffuCoder-7B-Instruct", "data": str(tmp_path / "data"), "config": config}
    (run / "config.yaml").write_text(yaml.safe_dump({**record, "data_sha256": fingerprint(tmp_path / "data")}))
    facts = publish(str(run / "checkpoints" / "step-5"), tmp_path / "out")
    metadata, tokens = parts((tmp_path / "out" / "README.md").read_text())
    assert (
        metadata["datasets"] == ["TIGER-Lab/AceCode-87K"] and metadata["base_model"] == "apple/DiffuCoder-7B-Instruct"
    )
    row = tables(tokens)[1][1]
    assert row[:3] == ["grpo", "apple/DiffuCoder-7B-Instruct", "data"]
    assert row[4:] == ["5", "2 prompts x 10", "1e-06", "100 completions"]
    said = (tmp_path / "out" / "README.md").read_text()
    assert "estimator=coupled rewards.code=2" in said and "`mine#2` x 3" in said
    (tmp_path / "data" / "manifest.json").write_text(json.dumps({**manifest, "files": []}))  # other data by now
    assert card_history.stages(run / "checkpoints" / "step-5")[0][0]["data"] == {
        "name": "data",
        "sha256": facts["stages"][0]["data"]["sha256"],
    }


def test_the_hubs_own_reader_takes_the_card(history: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    mine = identity.weights_id(history / "checkpoints" / "last")
    publish(str(history), tmp_path / "out", results=[score(tmp_path / "scores", weights=mine)])
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert data.model_name == "out" and data.base_model == "Qwen/Qwen2.5-Coder-0.5B"
    assert [(one.metric_type, one.metric_value) for one in data.eval_results] == [("pass@1", 12.345), ("pass@2", 20.0)]


def test_without_files_the_card_has_no_number_of_theirs(model: Path, tmp_path: Path) -> None:
    facts = publish(str(model), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    metadata, tokens = parts(card)
    assert not {"license", "base_model", "model-index", "datasets"} & set(metadata)
    assert card.count("Not measured") == 2 and "Not recorded: the checkpoint lay in no run folder" in card
    assert (
        len(tables(tokens)) == 1 and "pass@" not in card and facts["scores"] == facts["arness"] == facts["stages"] == []
    )


def test_an_exported_folder_can_be_exported_again_with_its_history(history: Path, tmp_path: Path) -> None:
    first = publish(str(history), tmp_path / "first", "bfloat16")
    mine = identity.weights_id(tmp_path / "first")
    second = publish(str(tmp_path / "first"), tmp_path / "second", results=[score(tmp_path / "s", weights=mine)])
    assert (
        second["stages"] == first["stages"] and second["base_model"] == "Qwen/Qwen2.5-Coder-0.5B" and second["scores"]
    )
    for broken in ("{", "{}", '{"stages": [{}], "began_with": null}', '{"stages": 3, "began_with": null}'):
        (tmp_path / "first" / "dcoder_card.json").write_text(broken)
        assert "export the run again" in refused("export", tmp_path / "first", "--out", tmp_path / "third")
    (history / "config.yaml").write_text("stage: 9\n")
    assert "is no record of a run" in refused("export", history, "--out", tmp_path / "third")


@pytest.mark.parametrize("text", ["1e3", "no", "0o17", "2026-11-28", "~", "", "a: b", "x\n---\ny", "\ud800", HOSTILE])
def test_texts_stay_texts_in_yaml(text: str) -> None:
    block = markup.front_matter({"name": text, "list": [{"of": text}]})
    assert block.count("\n---\n") == 1
    value = yaml.safe_load(block.removeprefix("---\n").removesuffix("---\n"))
    assert value == {"name": markup.clean(text), "list": [{"of": markup.clean(text)}]}
    if text in ("1e3", "no", "0o17", "2026-11-28", "~"):
        assert f'"{text}"' in block  # YAML 1.2, the hub's, reads more as numbers than Python does


@pytest.mark.slow
def test_a_trained_scored_and_measured_run_is_exported(tmp_path: Path) -> None:
    """All real files: two stages, `eval` and `arness` over both models, then the export of one."""
    tokenizer = make_tokenizer()
    make_model(tmp_path / "start", tokenizer=tokenizer, context=256, **SHAPE)
    make_shards(tmp_path / "code", tokenizer), make_shards(tmp_path / "chats", tokenizer, kind="sft")
    (tmp_path / "p.jsonl").write_text('{"prompt": "def add(a, b):"}\n')
    small = [
        part for one in ("steps=4", "global_batch=4", "micro_batch=4", "checkpoint_every=2") for part in ("--set", one)
    ]
    place: dict[str, Any] = {"cwd": tmp_path}
    train = ("--preset", "cpu-tiny", "--device", "cpu", *small)
    dcoder(
        "train-stage",
        "1",
        "--model",
        "start",
        "--data",
        "code",
        "--out",
        "runs/adapt",
        *train,
        "--set",
        "anneal_steps=1",
        **place,
    )
    told = dcoder("train-stage", "3", "--model", "runs/adapt", "--data", "chats", "--out", "runs/sft", *train, **place)
    assert re.search(r"loss \d\.\d{4} \(mean of the last tenth of the steps\), held-out", told.stdout), told.stdout
    both = ("--model", "runs/adapt", "--model", "runs/sft", "--device", "cpu")
    dcoder("eval", "micro", *both, "--limit", "2", "--max-new-tokens", "8", "--out", "scores", **place)
    dcoder("arness", *both, "--prompts", "p.jsonl", "--max-new-tokens", "8", "--out", "order", **place)
    made = dcoder("export", tmp_path / "runs" / "sft", "--out", tmp_path / "out", "--results", tmp_path / "scores",
                  "--arness", tmp_path / "order" / "arness.json", "--json")  # fmt: skip
    facts = json.loads(made.stdout)
    assert [one["stage"] for one in facts["stages"]] == ["adapt", "sft"] and [
        one["steps"] for one in facts["stages"]
    ] == [4, 4]
    assert {one["task"] for one in facts["scores"]} == {"micro", "micro-kinds"} and len(facts["arness"]) == 1
    assert (
        facts["arness"][0]["settings"]["prompts"] == ["p.jsonl"]
        and facts["arness"][0]["departures"]["max_new_tokens"]["here"] == 8
    )
    assert facts["scores"][0]["departures"]["max_new_tokens"] == {"protocol": 40, "here": 8}
    assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "runs" / "sft"))
    dcoder("train-stage", "3", "--out", "runs/sft", "--resume", "--set", "steps=6", **place)
    told = refused("export", tmp_path / "runs" / "sft", "--out", tmp_path / "later", "--results", tmp_path / "scores")
    assert "other weights than" in told, "the run has gone on since"

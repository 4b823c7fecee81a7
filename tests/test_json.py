"""`--json`: every command has it, prints what docs/formats.md says and nothing else, and valid JSON whatever the numbers are."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import documented
import pytest
from helpers import make_model, make_prompts, make_shards, make_tokenizer, refused, said
from test_options import ALL, flag

from dcoder_cli.base import console

# A real call of each command, in order: later ones read what earlier ones wrote. `{S}`, `{G}`: settings of small trainings.
CALLS = """
presets list
presets show cpu-tiny --section launch
presets show paper
presets fit --preset cpu-tiny
presets slurm 8x80gb --stage sft
doctor
inspect m
inspect odd
convert ar --out converted
tokenize pretrain src --tokenizer m --seq-len 32 --out pretrain
tokenize sft chats.jsonl --tokenizer m --seq-len 64 --out sft
tokenize rl rl.jsonl --tokenizer m --out rl
train-stage 1 {S} --data d --out run
grpo {G} --out rl-run
grpo --measure-variance --draws 2 {G} --reward own_reward:length --out variance
generate --model m --max-new-tokens 4 --trajectories t.jsonl a b
generate --model m --max-new-tokens 4 --infill a<FILL>b
chat --model m --set max_new_tokens=4
arness --model m --prompts prompts.jsonl --max-new-tokens 6 --sensitivity --n 2
eval micro --model run/checkpoints/last --limit 1 --max-new-tokens 4 --out one
eval micro --model m --model odd --limit 1 --max-new-tokens 4 --speed 1,2 --out several
eval judge one/micro/samples.jsonl --task micro --out judged
export run --out exported
plot run
bench judge --programs 2 --repeats 1
generate --model m --max-new-tokens 4 --dry-run a
convert ar --out converted-2 --dry-run
tokenize pretrain src --tokenizer m --seq-len 32 --out pretrain-2 --dry-run
train-stage 1 {S} --data d --out run-2 --dry-run
grpo {G} --out rl-run-2 --dry-run
arness --model m --prompts prompts.jsonl --max-new-tokens 6 --dry-run
eval micro --model m --limit 1 --max-new-tokens 4 --dry-run --out three
reproduce --out claims --dry-run
quickstart --out quick --dry-run
"""
# Keys that no call above has, and why.
ELSEWHERE = {
    "quickstart": "twelve minutes; test_quickstart.py holds what it prints against the text",
    "quickstart --model": "test_given.py likewise",
    "reproduce": "minutes; test_claims.py likewise",
    "doctor": "a GPU is not everywhere: `gpu[]`",
}
RARE = {("preset",)}  # of a training's dry run without --preset: it needs a model of a preset's size


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Any]]]:
    """Call -> the objects that it prints, each held against the text already (by `said`)."""
    place = tmp_path_factory.mktemp("json")
    tokenizer = make_tokenizer(300)
    make_model(place / "m", context=512, tokenizer=tokenizer)
    make_model(place / "ar", ar=True, context=512, tokenizer=tokenizer)
    make_model(place / "odd", context=512, tokenizer=tokenizer)
    config = json.loads((place / "odd" / "config.json").read_text())
    (place / "odd" / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    make_shards(place / "d", tokenizer)
    asked = [
        {"task_id": str(one), "style": "instruct", "messages": [{"role": "user", "content": "Write add(a, b)."}],
         "tests": {"shown": [], "hidden": ["assert add(1, 2) == 3"]}, "entry_point": "add", "source": "x"}
        for one in range(3)
    ]  # fmt: skip
    make_prompts(place / "p", asked, asked[:1])
    (place / "src").mkdir()
    for name, text in {
        "src/a.py": "def f(a):\n    return a + 1\n" * 40, "src/b.py": "class A:\n    x = 1\n" * 40,
        "chats.jsonl": '{"prompt": "Add a and b.", "completion": "return a + b"}\n' * 2,
        "rl.jsonl": '{"question": "Write add(a, b).", "test_cases": ["assert add(1, 2) == 3"]}\n',
        "prompts.jsonl": '{"prompt": "def f"}\n{"prompt": "class A"}\n',
        "own_reward.py": "def length(prompt, text):\n    return float(len(text))\n",
    }.items():  # fmt: skip
        (place / name).write_text(text)
    small = "--preset cpu-tiny --model m --device cpu"
    sizes = {
        "{S}": f"{small} --set steps=2 --set global_batch=4 --set micro_batch=2 --set precision=fp32 --set anneal_steps=0",
        "{G}": f"{small} --data p --set steps=1 --set group_size=2 --set prompts_per_step=2 --set rollout.max_new_tokens=8",
    }
    found: dict[str, list[Any]] = {}
    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        for line in CALLS.strip().splitlines():
            patch.setattr("sys.stdin", io.StringIO("hello\n"))
            whole = line
            for name, text in sizes.items():
                whole = whole.replace(name, text)
            found[line] = [json.loads(one) for one in said(*shlex.split(whole), "--json").splitlines()]
        yield found


def test_every_key_of_the_text_is_printed_by_some_call(printed: dict[str, list[Any]]) -> None:
    """And what is printed is in the text, with its type: `said` has looked."""
    seen: dict[str, set[documented.Keys]] = {}
    for line, values in printed.items():
        command = documented.command_of(line.split())
        for value in values:
            seen.setdefault(command, set()).update(documented.keys_of(documented.commands()[command], value))
    for name in ("tokenize pretrain", "tokenize sft"):  # they share a table
        seen["tokenize rl"] |= seen[name]
    for name, other in (("tokenize pretrain", "tokenize rl"), ("tokenize sft", "tokenize rl"), ("convert", "inspect"),
                        ("chat", "generate")):  # fmt: skip
        seen[name] |= seen[other]
    unseen = {
        name: [
            ".".join(keys)
            for keys in entries
            if keys not in seen.get(name, ()) and keys[-1] != "*" and keys not in RARE
        ]
        for name, entries in documented.commands().items()
        if name not in ELSEWHERE
    }
    assert not any(unseen.values()), {name: keys for name, keys in unseen.items() if keys}


def test_every_command_has_it_and_a_place_in_the_text() -> None:
    known = documented.commands()
    for name, (command, _) in ALL.items():
        has = any(flag(one) == "--json" for one in command.params)
        assert has is (name != "serve"), name  # serve is an API
        if has:
            assert documented.command_of(name.split()) in known, name
            assert any(one == name or one == name.split()[0] for one in known), name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"new": 1}, "new is not in the text"),
        ({"script": None}, "script is null, not text"),
        ({"script": True}, "script is true, not text"),
        (None, "script is missing"),
    ],
)
def test_a_change_of_what_is_printed_shows(change: dict[str, Any] | None, told: str) -> None:
    value = {"schema_version": 1, **({"script": "", **change} if change else {})}
    assert documented.check("presets slurm", value) == [told]
    assert documented.check("presets slurm", {"schema_version": 1, "script": "x"}) == []


def test_what_is_nested_is_held_against_the_text_too(printed: dict[str, list[Any]]) -> None:
    value = json.loads(json.dumps(printed["presets fit --preset cpu-tiny"][0]))
    value["sections"]["stage1"]["parts"]["weights"] = "many"
    del value["sections"]["grpo"]["fits"]
    wrong = documented.check("presets fit", value)
    assert 'sections.*.parts.weights is "many", not integer' in wrong and "sections.*.fits is missing" in wrong


def test_numbers_that_json_has_not_and_letters_that_utf8_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdout", stream)
    console.emit_json(
        {"a": [float("nan"), {"b": float("inf")}, (float("-inf"), 1.5)], "name": "\udcff\u00e9", 3: "key"}
    )
    line = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert json.loads(line, parse_constant=documented._no_number) == {
        "schema_version": 1, "a": [None, {"b": None}, [None, 1.5]], "name": "\udcff\u00e9", "3": "key",
    }  # fmt: skip
    assert line.startswith('{"schema_version": 1, ') and line.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        "presets show nothing",
        "inspect nowhere/x/y",
        "plot nowhere",
        "generate --model nowhere/x/y a",
        "tokenize rl x --out y",
    ],
)
def test_an_error_leaves_stdout_empty(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(*line.split(), "--json")
    assert not list(tmp_path.iterdir())

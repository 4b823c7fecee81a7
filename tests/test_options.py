"""Every option of every command: a call in which it has an effect, or one in which it is refused; and the shared ones are the same.

`EFFECTS` holds for each command a call, and for each option what to add to it. The command's engine is replaced by one that
notes what it is asked: with the option it must be asked something else (or print something else). `REFUSED` holds calls in
which an option would do nothing; each entry of the commands' tables must be met by one. That a setting of the sampler which
is passed on has an effect, and one which is refused has none, is tested by decoding, at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import pkgutil
import re
import shlex
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from helpers import make_model, refused

from dcoder_cli.base import options
from dcoder_cli.base.errors import UserError
from dcoder_cli.main import COMMANDS


def commands() -> Iterator[tuple[str, Any, Any]]:
    """Every command's name ("eval micro" ...), click command and module."""
    for name, entry in COMMANDS.items():
        module = importlib.import_module(f"dcoder_cli.commands.{entry.module}")
        command: Any = typer.main.get_command(module.app)
        inner = getattr(command, "commands", None)
        for sub, one in inner.items() if inner else [("", command)]:
            yield f"{name} {sub}".strip(), one, module


def flag(parameter: Any) -> str:
    """The name an option is known by: its long form."""
    return max(parameter.opts, key=len) if parameter.param_type_name == "option" else str(parameter.name)


ALL = {name: (command, module) for name, command, module in commands()}
TASKS = [name for name in ALL if name.startswith("eval ") and name != "eval judge"]

SAMPLING = {
    "--max-new-tokens": "32", "--steps": "4", "--rule": "margin", "--temperature": "0.7", "--top-p": "0.5", "--top-k": "7",
    "--alg-temperature": "0.1", "--block-length": "8", "--compat": "llada", "--cfg-scale": "1.5", "--stop-penalty": "2",
    "--min-new-tokens": "3", "--tie-break": "left", "--logits-mib": "64", "--seed": "3 --temperature 0.9", "--mode": "fast",
    "--cache": "none --mode fast", "--commit": "factor --mode fast", "--threshold": "0.5 --mode fast",
    "--factor": "0.5 --mode fast", "--entropy-bound": "0.2 --mode fast", "--cache-refresh": "2 --mode fast",
    "--no-early-stop": "--mode fast",
}  # fmt: skip
LOADING = {"--device": "cpu", "--dtype": "bfloat16", "--attention": "eager", "--cuda-graphs": ""}
_EVALUATION = {
    "--model": "{ar}", "--out": "{tmp}/other", "--n": "2", "--limit": "2", "--subset": "span", "--data": "{text}",
    "--protocol": "dream", "--instruct": "", **SAMPLING, "--temperatures": "0.2,0.4", "--speed": "1,2", "--set": "top_k=3",
    "--batch-size": "3", **LOADING, "--workers": "2", "--nproc": "1", "--unsafe-exec": "", "--preset": "paper",
}  # fmt: skip
_TRAIN = {"--nproc": "1", 
    "--model": "other", "--data": "other", "--out": "{tmp}/other", "--preset": "paper", "--config": "{yaml}",
    "--set": "seed=3", "--device": "cpu", "--track": "tensorboard", "--run-name": "a --track tensorboard", "--json": "",
}  # fmt: skip
_TOKENIZE = {
    "--out": "{tmp}/other", "--tokenizer": "other", "--seed": "3", "--heldout": "0.5", "--extensions": ".py",
    "--exclude": "a*", "--no-exact-duplicates": "", "--decontaminate": "humaneval",
    "--decontaminate-ngram": "5 --decontaminate humaneval", "--benchmarks": "x --decontaminate humaneval", "--force": "",
}  # fmt: skip
_MEASURED = {
    "--model": "{model}", "--shape": "0.5b", "--batch": "16", "--repeats": "2", "--device": "cpu", "--dtype": "bfloat16",
    "--seed": "3",
}  # fmt: skip
# Command -> a call, and for each option what is added to it. An empty text: the option alone.
EFFECTS: dict[str, tuple[str, dict[str, str]]] = {
    "quickstart": (
        "",
        {"--out": "{tmp}/other", "--seed": "3", "--step-scale": "0.5", "--force": "", "--unsafe-exec": "", "--model": "{ar}"},
    ),
    "quickstart (a model)": (
        "--model {ar}",
        {
            "--out": "{tmp}/other", "--seed": "3", "--force": "", "--unsafe-exec": "", "--minutes": "5", "--corpus": "{folder}",
            "--device": "cpu", "--resume": "",
        },
    ),
    "tokenize pretrain": (
        "{folder} {prompts} --out {tmp}/o --tokenizer t",
        {
            **_TOKENIZE, "--workers": "2", "--ray": "local", "--shard": "1/2", "--seq-len": "64", "--column": "code", "--template": "{{a}}",
            "--train-tokenizer": "300", "--tokenizer-digits": "2 --train-tokenizer 300", "--near-duplicates": "0.5",
            "--code-filters": "all", "--max-line-length": "9", "--mean-line-length": "9", "--min-alphanumeric": "0.1",
            "--drop-unparsable": "", "--licence": "strip", "--eos-token": "x", "--no-bos": "",
        },
    ),
    "tokenize sft": (
        "{folder} --out {tmp}/o --tokenizer t",
        {
            **_TOKENIZE, "--workers": "2", "--ray": "local", "--shard": "1/2", "--seq-len": "64", "--pad-token": "x", "--system": "Brief",
            "--near-duplicates": "0.5",
        },
    ),
    "tokenize rl": (
        "{folder} --out {tmp}/o --tokenizer t",
        {
            **_TOKENIZE, "--seed": "3 --heldout 0.5", "--max-prompt-tokens": "9", "--hard": "all", "--hard-mean": "0.5", "--hard-spread": "0.5",
            "--no-complete": "", "--baseline": "constant", "--system": "Brief",
        },
    ),
    "convert": (
        "--init tiny --out {tmp}/o --train-tokenizer {text}",
        {
            "--out": "{tmp}/other", "--init": "qwen2.5-coder-0.5b", "--ar": "", "--train-tokenizer": "{folder}",
            "--vocab-size": "400", "--mask-id": "3", "--seed": "3", "--dtype": "bfloat16",
        },
    ),
    "train-stage": ("1 --model {model} --data d --out {tmp}/o --preset cpu-tiny", {**_TRAIN, "--resume": ""}),
    "grpo": (
        "--model {model} --data d --out {tmp}/o --preset cpu-tiny",
        {**_TRAIN, "--estimator": "d1", "--reward": "format=1", "--measure-variance": "",
         "--draws": "3 --measure-variance", "--unsafe-exec": ""},
    ),
    "generate": (
        "--model {model} hello",
        {
            **SAMPLING, "--model": "{ar}", "--prompts": "", "--chat": "", "--system": "Brief --chat", "--preset": "paper",
            "--infill": "", "--infill-lengths": "8,16 --infill", "--infill-by": "final --infill-lengths 8,16 --infill",
            "--n": "2 --temperature 0.9", "--batch-size": "3", **LOADING, "--nproc": "1",
        },
    ),
    "chat": (
        "--model {model}",
        {"--model": "{ar}", "--system": "Brief", "--load": "{chat}", "--preset": "paper", "--set": "top_k=3",
         "--no-watch": "", **LOADING, "--json": ""},
    ),
    "arness": (
        "--model {model} --prompts {prompts} --max-new-tokens 16 --json",
        {
            **{**SAMPLING, "--max-new-tokens": "32"}, "--task": "micro", "--limit": "2 --task micro", "--unsafe-exec": "--task micro --limit 2",
            "--temperatures": "0.4,0.2", "--sensitivity": "", "--n": "2", "--batch-size": "3",
            "--device": "cpu", "--dtype": "bfloat16", "--nproc": "1",
        },
    ),
    "eval humaneval-infilling": (
        "--model {model}",
        {
            **{key: value for key, value in _EVALUATION.items() if key != "--max-new-tokens"},
            "--instruct": "--protocol dream", "--infill-lengths": "8",
        },
    ),
    "eval bigcodebench": ("--model {model}", {**_EVALUATION, "--python": "py"}),
    **{
        name: ("--model {model}", _EVALUATION)
        for name in TASKS
        if name not in ("eval humaneval-infilling", "eval bigcodebench", "eval gsm8k", "eval livecodebench")
    },
    "eval livecodebench": ("--model {model}", {**_EVALUATION, "--since": "2024-08-01", "--until": "2025-01-31"}),
    "eval gsm8k": (
        "--model {model}", {key: value for key, value in _EVALUATION.items() if key not in ("--workers", "--unsafe-exec")}
    ),
    "eval judge": (
        "s.jsonl --task bigcodebench --out {tmp}/o",
        {"--task": "mbpp", "--out": "{tmp}/other", "--subset": "x", "--data": "x", "--workers": "2", "--extract": "", "--column": "text", "--python": "py",
         "--unsafe-exec": ""},
    ),
    "reproduce": (
        "--out {tmp}/o",
        {
            "--out": "{tmp}/other", "--claim": "adaptation", "--model": "sft=x", "--pretrain": "x --model sft=x",
            "--rl": "x --model sft=x", "--task": "humaneval --model sft=x", "--data": "x", "--limit": "3",
            "--max-new-tokens": "8", "--top-p": "0.5", "--seeds": "2", "--jobs": "2", "--step-scale": "0.5",
            "--unsafe-exec": "",
        },
    ),
    "convert (a model)": ("{ar} --out {tmp}/o", {"--rows-multiple": "1"}),
    "convert (without a tokenizer)": ("--init tiny --ar --out {tmp}/o", {"--tokenizer": "t"}),
    "convert (into a folder that is there)": ("--init tiny --ar --out {ar}", {"--force": ""}),
    "arness (files)": (
        "--trajectories {traj} --json",
        {"--trajectories": "{traj}", "--label": "x", "--local-k": "2", "--global-k": "2", "--convention": "paper",
         "--ties": "left-to-right", "--tokenizer": "t --out {tmp}/pictures", "--out": "{tmp}/other"},
    ),
    "export": (
        "{model} --out {tmp}/o",
        {"--out": "{tmp}/other", "--dtype": "bfloat16", "--license": "mit", "--results": "r", "--arness": "a", "--force": ""},
    ),
    "bench generate": (
        "",
        {**_MEASURED, "--new-tokens": "64", "--prompt-tokens": "8", "--mode": "fast", "--steps": "8", "--rule": "margin",
         "--temperature": "0.7", "--top-p": "0.5", "--threshold": "0.5"},
    ),
    "bench train": ("", {**_MEASURED, "--row-tokens": "64"}),
    "bench grpo": ("", {**_MEASURED, "--group": "2", "--new-tokens": "32", "--prompt-tokens": "8"}),
    "bench tokenize": ("", {"--tokenizer": "t", "--megabytes": "1", "--workers": "2", "--repeats": "2"}),
    "bench judge": ("", {"--programs": "8", "--workers": "2", "--repeats": "2", "--seed": "3"}),
    "presets list": ("", {"--json": ""}),
    "presets slurm": (
        "8x80gb --stage sft",
        {"--stage": "adapt", "--model": "m", "--data": "d", "--out": "o", "--time": "1", "--partition": "p", "--account": "a",
         "--json": ""},
    ),
    "presets show": ("cpu-tiny", {"--section": "grpo", "--json": ""}),
    "presets fit": (
        "--preset cpu-tiny",
        {"--preset": "gpu-24gb", "--model": "{model}", "--gpus": "2", "--gpu-memory": "1", "--stage": "2", "--tokens": "70",
         "--set": "micro_batch=8 --stage 2", "--json": ""},
    ),
}  # fmt: skip

# Other options, each with the test that knows its effect.
TESTED_ELSEWHERE = {
    "quickstart --json": "test_options.py", "tokenize pretrain --json": "test_tokenize_command.py",
    "tokenize sft --json": "test_tokenize_command.py", "tokenize rl --json": "test_tokenize_command.py",
    "tokenize sft --from-code": "test_code_pairs.py", "tokenize sft --gaps": "test_code_pairs.py",
    "tokenize rl --from-code": "test_code_doctests.py", "tokenize rl --unsafe-exec": "test_code_doctests.py",
    "convert --json": "test_options.py",
    "inspect --json": "test_models.py", "generate --trajectories": "test_options.py", "generate --watch": "test_watch.py",
    "generate --json": "test_options.py", "generate --delay": "test_replay.py",
    "generate --replay": "test_replay.py", "generate --whole": "test_replay.py", "doctor --json": "test_options.py", "eval judge --json": "test_eval.py",
    "reproduce --json": "test_claims.py", "grpo --resume": "test_grpo_resume.py",
    **{f"{name} --json": "test_eval.py" for name in TASKS},
    "arness --model": "test_arness_command.py",
    **{f"bench {one} --json": "test_bench.py" for one in ("generate", "train", "grpo", "tokenize", "judge")},
    **{f"serve --{one}": "test_serve.py" for one in (
        "host", "port", "name", "slots", "queue", "timeout", "max-tokens", "device", "dtype", "attention")},
    **{f"{one} --cuda-graphs": "test_graphs.py" for one in ("serve", "bench generate")},
    "arness --prompts": "test_arness_command.py",
    "arness --data": "test_arness_command.py", "arness --json": "test_arness_command.py",
    "arness --until": "test_arness_command.py", "arness --end-id": "test_arness.py",
    **{f"{name} --dry-run": "test_dry_run.py" for name in ALL if name.split(" ")[0] in (
        "quickstart", "tokenize", "convert", "train-stage", "grpo", "generate", "arness", "eval", "reproduce")
       and name != "eval judge"},
    "export --json": "test_export.py", "plot --json": "test_plot.py", "plot --out": "test_plot.py", "plot --metric": "test_plot.py",
}  # fmt: skip
# These two carry no option in a test's text: the calls below are the tests.
_ONE_OF = {
    "--since",
    "--until",
    "--subset",
    "--data",
    "--python",
    "--infill-lengths",
    "--max-new-tokens",
    "--workers",
    "--unsafe-exec",
}

REFUSED = {
    "bench generate": [
        "--mode exact --threshold 0.5", "--shape tiny --model {model}", "--top-p 0.5 --rule random",
    ],
    "chat": ["--load {chat} --preset paper", "--watch --json", "--no-watch --json"],
    "convert": [
        "m --tokenizer t", "m --train-tokenizer {text}", "m --ar", "m --seed 3", "m --vocab-size 400",
        "--init tiny --ar --mask-id 3", "--init tiny --rows-multiple 8",
    ],
    "quickstart": [
        "--minutes 5", "--corpus {folder}", "--resume", "--device cpu", "--model {ar} --step-scale 2",
        "--model {ar} --resume --force",
    ],
    "grpo": [
        "--draws 3", "--measure-variance --resume", "--measure-variance --estimator d1",
        "--measure-variance --track tensorboard", "--measure-variance --run-name a", "--measure-variance --nproc 2",
        "--measure-variance --dry-run",
        "--model {model} --data d --preset cpu-tiny --reward math=1 --unsafe-exec",
        *(f"--model {{model}} --data d --preset {line}" for line in (
            "cpu-tiny --set epochs=2", "paper --set optimizer.floor=0.2 --set optimizer.schedule=constant",
            "paper --set optimizer.warmup_steps=3 --set optimizer.warmup_ratio=0.1",
            "paper --estimator d1 --set pairs=2", "paper --estimator full-mask --set t_range=[0.3,0.4]",
            "paper --set prompt_mask=0.2", "cpu-tiny --set reference_sync=3", "paper --set kl_coef=0 --set reference_alpha=0.5",
            "cpu-tiny --set clip=0.1", "paper --reward math=1 --set format=lenient",
        )),
    ],
    "train-stage": [
        f"{stage} --model {{model}} --data d --preset cpu-tiny {line}" for stage, line in (
            (1, "--set epochs=2"), (2, "--set optimizer.warmup_steps=3"),
            (3, "--set optimizer.floor=0 --set optimizer.schedule=constant"), (0, "--set anneal_steps=3"),
            (2, "--set anneal_steps=3"), (3, "--set anneal_steps=3"), (1, "--set conditional_phase_in=1"),
            (2, "--set conditional_phase_in=1"), (3, "--set isolate_documents=true"), (0, "--set weighting=cart"),
            (0, "--set normalizer=masked"), (0, "--set t_min=0.1"), (0, "--set stratified_t=true"), (0, "--set cart_p=0.2"), (2, "--set cart_p=0.2"),
        )
    ],
    "generate": [
        "--model {model} --watch --nproc 2 hello",
        "--infill-by final --infill", "--infill --infill-lengths 8 --max-new-tokens 9", "--infill --chat",
        "--raw --system Brief", "--infill --system Brief",
        *(f"--model {{model}} --prompts {{prompts}} {one}" for one in ("--chat", "--raw", "--infill", "--system Brief")),
        "--model {model} --prompts {spoken} --system Brief", "--model {model} --prompts {spoken} --chat",
    ],
    "arness": [
        *(f"--trajectories {{traj}} {name} {value.split(' --')[0]}".replace("--no-early-stop --mode fast", "--no-early-stop")
          for name, value in SAMPLING.items()),
        *(f"--trajectories {{traj}} {text}" for text in ("--temperatures 0.3", "--n 2", "--batch-size 2", "--device cpu",
          "--dtype float32", "--sensitivity", "--limit 3", "--data {text}", "--unsafe-exec", "--end-id 3", "--tokenizer t", "--dry-run", "--nproc 2")),
        "--model {model} --task gsm8k --unsafe-exec", "--model {model} --prompts {prompts} --sensitivity --tie-break left",
    ],
    "eval micro": ["--infill-lengths 8", "--python py", "--since 2024-08-01", "--until 2025-01-31"],
    "eval humaneval-infilling": ["--max-new-tokens 8", "--set max_new_tokens=8"],
    "eval gsm8k": ["--workers 2", "--unsafe-exec"],
    "eval judge": [
        "s --task micro --out o --python py", "s --task gsm8k --out o --workers 2", "s --task gsm8k --out o --unsafe-exec",
    ],
    "reproduce": [
        "--pretrain x", "--rl x", *(f"--model sft=x {one} 2" for one in ("--seeds", "--jobs", "--step-scale")),
        *(f"--claim adaptation {one}" for one in ("--task micro", "--data x", "--limit 3", "--max-new-tokens 8", "--top-p 0.5",
          "--unsafe-exec")),
        "--claim adaptation --model adapted=x --rl x", "--claim grpo --model sft=x --pretrain x",
    ],
    "tokenize pretrain": [
        *(f"{{text}} --tokenizer t --out o {one}" for one in (
            "--exclude a", "--extensions .py", "--decontaminate-ngram 5", "--benchmarks x", "--tokenizer-digits 2",
            "--column code", "--template {{a}}", "--drop-unparsable", "--max-line-length 9", "--mean-line-length 9",
            "--min-alphanumeric 0.5", "--ray local --workers 2", "--ray local --shard 1/2",
        )),
        "{folder} --tokenizer t --out o --code-filters none --max-line-length 9",
        "{folder} --tokenizer t --out o --column code", "{folder} --tokenizer t --out o --template {{a}}",
    ],
    "tokenize sft": [
        f"{{text}} --tokenizer t --out o {one}"
        for one in ("--exclude a", "--extensions .py", "--decontaminate-ngram 5", "--benchmarks x", "--gaps 0.3", "--ray local --workers 2", "--ray local --shard 1/2")
    ],
    "tokenize rl": [
        f"{{text}} --tokenizer t --out o {one}"
        for one in ("--seed 3", "--exclude a", "--extensions .py", "--decontaminate-ngram 5", "--benchmarks x", "--hard all --hard-mean 0.5",
                    "--hard all --hard-spread 0.5", "--from-code --hard all", "--from-code --hard-mean 0.5", "--from-code --hard-spread 0.5", "--unsafe-exec")
    ],
}  # fmt: skip
# What a setting of the sampler needs (decoding/unused.py), in each of the commands that take it.
_SETTINGS = [
    *(f"--model {{ar}} {name} {SAMPLING[name]}"
      for name in ("--steps", "--rule", "--alg-temperature", "--block-length", "--compat", "--cfg-scale", "--tie-break", "--logits-mib")),
    "--model {model} --temperature 0 --seed 3", "--model {model} --temperature 0 --rule random --top-p 0.5",
    "--model {model} --temperature 0 --rule left-to-right --top-k 5", "--model {model} --rule random --tie-break left",
]  # fmt: skip
REFUSED["generate"] += ["--model {model} --delay 0.5 hello"]
REFUSED["generate"] += [f"{line} hello" for line in _SETTINGS]
REFUSED["arness"] += [f"--prompts {{prompts}} {line}" for line in _SETTINGS]
REFUSED["eval micro"] += [line for line in _SETTINGS if "{ar}" in line]  # the others once the model is loaded
REFUSED["chat"] += ["--model {ar} --set steps=4", "--model {model} --set seed=3"]


class Asked(Exception):
    """The engine was reached."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files that calls name."""
    root = tmp_path_factory.mktemp("options")
    (root / "folder").mkdir()
    for name, text in {
        "folder/a.py": "x = 1\n", "text.txt": "some text\n", "prompts.jsonl": '{"prompt": [5, 6, 7]}\n',
        "prompts2.jsonl": '{"prompt": [8, 9]}\n',
        "spoken.jsonl": '{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}\n', "stage.yaml": "seed: 5\n",
        "traj.jsonl": '{"reveal_step": [1, 0, 2, 3]}\n{"reveal_step": [0, 1, 3, 2]}\n',
        "chat.json": '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "settings": {}}',
    }.items():  # fmt: skip
        (root / name).write_text(text)
    make_model(root / "model", context=512)
    make_model(root / "ar", ar=True, context=512)
    names = {"folder": "folder", "text": "text.txt", "prompts": "prompts.jsonl", "prompts2": "prompts2.jsonl", "spoken": "spoken.jsonl",
             "yaml": "stage.yaml", "traj": "traj.jsonl", "chat": "chat.json", "model": "model", "ar": "ar"}  # fmt: skip
    return {name: str(root / file) for name, file in names.items()} | {"tmp": str(root / "tmp")}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name != "written"}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if type(value).__name__ == "Session":
        return {key: _plain(one) for key, one in vars(value).items() if key != "model"}
    return re.sub(r"0x[0-9a-f]+", "", repr(value))


ROOT = Path(options.__file__).parents[1]
# Where each command's work begins: the call is noted, and goes no further.
ENGINES = (
    "experiments.quickstart.quickstart", "experiments.given.run", "data.pipeline.tokenize_pretrain", "data.pipeline.tokenize_sft",
    "data.rl.tokenize_rl", "model.conversion.initialise", "model.conversion.convert_checkpoint", "training.denoise.train",
    "training.grpo.train.train", "training.grpo.variance.measure", "decoding.sampler.decode",
    "terminal.conversation.converse", "benchmarks.sweep.run", "benchmarks.external.judge_file",
    *(f"timing.{one}.bench" for one in ("generate", "train", "grpo", "tokenize", "judge")),
    "experiments.reproduce.reproduce", "benchmarks.publish.publish", "benchmarks.judging.Judging", "benchmarks.decoding_order.Judging", "model.tokenizer.load_tokenizer",
)  # fmt: skip


@functools.cache
def load_users() -> None:
    """Import what takes an engine by name: a module that is first read while one is replaced would keep the replacement."""
    for package in ("benchmarks", "decoding", "experiments", "terminal", "training"):
        for module in pkgutil.walk_packages([str(ROOT / package)], f"dcoder_cli.{package}."):
            with contextlib.suppress(ImportError):  # an extra that is not installed
                importlib.import_module(module.name)


def ask(monkeypatch: pytest.MonkeyPatch, line: str, stdin: str = "", may_fail: bool = False) -> list[Any]:
    """What a call asks of its engine, and prints."""
    from dcoder_cli.benchmarks import decoding_order
    from dcoder_cli.model import loading

    notes: list[Any] = []

    def noted(name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            notes.append([name, _plain(arguments), _plain(named)])
            raise Asked

        return call

    load_users()
    for engine in ENGINES:
        module, _, name = engine.rpartition(".")
        monkeypatch.setattr(importlib.import_module(f"dcoder_cli.{module}"), name, noted(name))
    really = loading.load

    def load(
        name: str, device: Any = None, dtype: Any = None, attention: Any = "sdpa", cuda_graphs: bool = False
    ) -> Any:
        notes.append(["load", name, device, dtype, attention, cuda_graphs])
        return really(name, "cpu", "float32")

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(decoding_order, "load", load)
    monkeypatch.setattr(sys, "argv", ["dcoder", *shlex.split(line)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    out, err = io.StringIO(), io.StringIO()
    from dcoder_cli.main import main

    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(Asked):
        try:
            main()
        except SystemExit as left:
            assert left.code in (0, None) or may_fail, err.getvalue()
    return [*notes, out.getvalue()]


def test_every_option_of_every_command_has_an_entry() -> None:
    """A new option without a call in which it has an effect, or in which it is refused, fails here."""
    missing, unknown = [], []
    for name, (command, _) in ALL.items():
        known = {one for key, (_, found) in EFFECTS.items() if key.partition(" (")[0] == name for one in found}
        mine = {flag(one) for one in command.params if one.param_type_name == "option"}
        spelled = {text for one in command.params for text in (*one.opts, *one.secondary_opts)}
        for one in command.params:
            if one.param_type_name != "option":
                continue
            names = {*one.opts, *one.secondary_opts}
            asked = names & known or f"{name} {flag(one)}" in TESTED_ELSEWHERE
            if (
                not asked
                and not any(names & set(line.split()) for line in REFUSED.get(name, []))
                and not (name in TASKS and flag(one) in _ONE_OF)
            ):
                missing.append(f"{name} {flag(one)}")
        unknown += [f"{name} {one}" for one in known if one not in spelled]
        unknown += [one for one in TESTED_ELSEWHERE if one.rpartition(" ")[0] == name and one.split()[-1] not in mine]
    assert not missing, missing
    assert not unknown, unknown


@pytest.mark.parametrize("entry", TESTED_ELSEWHERE, ids=str)
def test_what_is_tested_elsewhere_stands_there(entry: str) -> None:
    assert f'"{entry.split()[-1]}"' in (Path(__file__).parent / TESTED_ELSEWHERE[entry]).read_text(), entry


# The benchmarks share one function: three of them stand for all, and a fourth has dates.
_RUN = [
    (name, option)
    for name, (_, known) in EFFECTS.items()
    if name not in TASKS
    or name in ("eval humaneval-infilling", "eval bigcodebench", "eval micro", "eval livecodebench")
    for option in known
    if name != "eval livecodebench" or option in ("--since", "--until")
    if option != "--nproc"  # it changes where the same is asked: tests/test_nproc.py
]


@pytest.mark.parametrize(("name", "option"), _RUN, ids=[f"{name} {option}" for name, option in _RUN])
def test_an_option_changes_what_is_asked_for(
    name: str, option: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, known = EFFECTS[name]
    name = name.partition(" (")[0]
    added = f"{option} {known[option]}".strip()
    # An option that needs another is compared with the call that has that other.
    others = known[option] if known[option].startswith("--") else ""
    if not others and " --" in known[option]:
        others = f"--{known[option].partition(' --')[2]}"
    stdin = ""
    if name == "generate" and option == "--prompts":
        base, added, others = f"--model {places['model']}", f"--prompts {places['text']}", "hello"
    elif name == "generate":
        base = base.replace("hello", '"a <FILL> b"') if "--infill" in f"{added}" else base
    elif "--resume" in (option,) or (name, option) == ("tokenize pretrain", "--train-tokenizer"):
        return _special(name, option, places, monkeypatch)
    elif (name, option) == ("tokenize pretrain", "--tokenizer-digits"):
        base = base.replace("--tokenizer t", "")
    before = ask(monkeypatch, f"{name} {base} {others}".format(**places), stdin, may_fail=option == "--force")
    after = ask(monkeypatch, f"{name} {base} {added}".format(**places), stdin)
    assert before != after, (before, after)


def _special(name: str, option: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    if option == "--train-tokenizer":
        base = f"tokenize pretrain {places['folder']} --out o"
        assert ask(monkeypatch, f"{base} --tokenizer t") != ask(monkeypatch, f"{base} --train-tokenizer 300")
        return
    run = Path(places["tmp"]) / "resumed"
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("stage: 1\nmodel: of-the-run\ndata: d\nconfig: {seed: 9}\n")
    (asked, _) = ask(monkeypatch, f"train-stage 1 --out {run} --resume")
    assert "of-the-run" in str(asked)


def test_json_and_trajectories_are_written(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dcoder_cli.benchmarks import environment
    from dcoder_cli.experiments import quickstart
    from dcoder_cli.main import main

    def printed(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["dcoder", *arguments])
        with contextlib.suppress(SystemExit):
            main()
        return json.loads(capsys.readouterr().out)

    file = tmp_path / "trajectories.jsonl"
    line = ("--model", places["model"], "--max-new-tokens", "4", "--trajectories", str(file), "--json", "hello")
    told = printed("generate", *line)
    assert len(told["tokens"]) == 4 and json.loads(file.read_text())["tokens"] == told["tokens"]
    monkeypatch.setattr(quickstart, "quickstart", lambda *_, **__: SimpleNamespace(to_json=lambda: {"made": 1}))
    assert printed("quickstart", "--json") == {"schema_version": 1, "made": 1}
    monkeypatch.setattr(environment, "describe", lambda: {"dcoder": "1"})
    assert printed("doctor", "--json") == {"schema_version": 1, "dcoder": "1"}
    made = printed(
        "convert", "--init", "tiny", "--ar", "--tokenizer", places["model"], "--out", str(tmp_path / "made"), "--json"
    )
    assert made["system"] and (tmp_path / "made" / "config.json").is_file()


def _tables(module: Any, name: str) -> list[options.Needs]:
    table: Any = getattr(module, "NEEDS", ())
    if isinstance(table, dict):
        return list(table[name.split()[-1]])
    return list(module._RUNS_CODE if name == "eval judge" else table)


_LINES = [(name, line) for name, lines in REFUSED.items() for line in lines]


@pytest.mark.parametrize(("name", "line"), _LINES, ids=[f"{name} {line}" for name, line in _LINES])
def test_an_option_without_an_effect_is_refused_in_one_line(name: str, line: str, places: dict[str, str]) -> None:
    told = refused(*shlex.split(f"{name} {line}".format(**places)))
    assert " has no effect: " in told, told
    first = told.removeprefix("error: ").split()[0]
    assert first in line.replace("{", "").split(), told


def test_every_need_of_every_command_is_met_by_a_refused_call(places: dict[str, str]) -> None:
    from dcoder_cli.decoding import unused
    from dcoder_cli.training import unused as of_training

    said: dict[str, str] = {}
    for name, line in _LINES:
        said[f"{name}: {refused(*shlex.split(f'{name} {line}'.format(**places)))}"] = line
    for name, (command, module) in ALL.items():
        if name in TASKS and name != "eval micro":
            continue
        flags = {one.name: [*one.opts, *one.secondary_opts] for one in command.params}
        for needs in _tables(module, name):
            for one in needs.names:
                assert one in flags, f"{name} has no option {one!r}"
                own = [name, *(TASKS if name == "eval micro" else [])]
                assert any(
                    text.startswith(f"{task}: error: {spelling} ") or text.startswith(f"{task}: error: --set {one}=")
                    for text in said if needs.why in text for task in own for spelling in flags[one]
                ), f"no call in which {name} refuses {one}: {needs.why}"  # fmt: skip
    for needs in (*of_training.STAGES, *of_training.GRPO):
        for one in needs.names:
            assert any(f"--set {one}=" in text and needs.why in text for text in said), (one, needs.why)
    for needs in unused.NEEDS:
        for one in needs.names:
            assert any(f"--{one.replace('_', '-')} " in text and needs.why in text for text in said), (one, needs.why)


# ---- the shared ones are the same


def test_an_option_has_one_help_text_in_all_commands() -> None:
    """But where the same word means two things; each reason stands beside it."""
    own = {
        "--out": "a folder, or plot's picture",
        "--data": "shards, or a benchmark's file",
        "--task": "one to judge, one to check claims on, several to measure",
        "--prompts": "prompts to continue, or to measure on",
        "--trajectories": "written by generate, read by arness",
        "--watch": "on by default in a chat",
        "--dtype": "what a model is loaded as, or an export cast to",
        "--model": "one, several, or ROLE=PATH",
        "--stage": "several to count, or the one of a job",
        "--workers": "samples judged at a time, or processes that tokenize",
        "--mode": "the one to decode in, or those to measure",
        "--column": "the text of a row, or the answers of a sample",
        "--train-tokenizer": "a size, or the files",
        "--until": "the end of what is measured, or a last date",
        "--near-duplicates": "documents, or samples", "--heldout": "documents, samples, questions", "--seq-len": "DiffuCoder's, by stage",
    }  # fmt: skip
    texts: dict[str, dict[str, str]] = {}
    for name, (command, _) in ALL.items():
        for one in command.params:
            if one.param_type_name == "option" and one.help:
                texts.setdefault(flag(one), {})[name] = one.help
    several = {name: found for name, found in texts.items() if len(set(found.values())) > 1 and name not in own}
    assert not several, several


def test_the_samplers_options_are_decodings_settings() -> None:
    from dcoder_cli.decoding.requests import Settings

    hints = typing.get_type_hints(Settings)
    assert list(options.SAMPLING) == [one.name for one in dataclasses.fields(Settings)]
    for name, option in options.SAMPLING.items():
        kind, info = typing.get_args(option)
        assert set(typing.get_args(kind)) == {*(typing.get_args(hints[name] | None))}, name
        assert name.replace("_", "-") in [info.default, *info.param_decls][0]


@pytest.mark.parametrize("name", ["generate", "arness", *TASKS])
def test_generate_arness_and_eval_take_all_of_them(name: str) -> None:
    found = {one.name: one for one in ALL[name][0].params}
    for setting in options.SAMPLING:
        assert flag(found[setting]).startswith(f"--{setting.replace('_', '-')}") and found[setting].default is None


# ---- what decoding says of it


def _settings(**chosen: Any) -> Any:
    from dcoder_cli.decoding.requests import Settings

    return Settings(**{"max_new_tokens": 12, **chosen})


@pytest.fixture(scope="module")
def both(places: dict[str, str]) -> dict[bool, Any]:
    from dcoder_cli.model.loading import load

    return {True: load(places["model"]), False: load(places["ar"])}


OTHER: dict[str, Any] = {
    "steps": 4, "rule": "random", "alg_temperature": 5.0, "block_length": 4, "compat": "llada", "cfg_scale": 3.0,
    "stop_penalty": 50.0, "min_new_tokens": 12, "tie_break": "right", "seed": 7, "temperature": 1.3, "top_p": 0.02, "top_k": 2,
    "max_new_tokens": 8,
}  # fmt: skip
BASES: list[dict[str, Any]] = [
    {}, {"temperature": 0.9}, {"rule": "random"}, {"rule": "left-to-right"}, {"rule": "left-to-right", "temperature": 0.9},
    {"rule": "confidence", "compat": "llada", "tie_break": "topk"}, {"alg_temperature": 3.0},
]  # fmt: skip


@pytest.mark.parametrize("diffusion", [True, False], ids=["diffusion", "ar"])
@pytest.mark.parametrize("base", BASES, ids=str)
def test_a_setting_that_is_refused_changes_nothing(
    base: dict[str, Any], diffusion: bool, both: dict[bool, Any]
) -> None:
    """And of the others each changes something in one of the bases (the next test)."""
    for name, value in OTHER.items():
        if not _is_refused(name, base, value, diffusion):
            continue
        assert _decoded(both[diffusion], base) == _decoded(both[diffusion], {**base, name: value}), name


# Random weights end no answer and tie nothing: test_sampler.py and test_ties.py have the rest.
@pytest.mark.parametrize(
    "name", [name for name in OTHER if name not in ("stop_penalty", "min_new_tokens", "tie_break")]
)
@pytest.mark.parametrize("diffusion", [True, False], ids=["diffusion", "ar"])
def test_a_setting_that_is_not_refused_changes_something(name: str, diffusion: bool, both: dict[bool, Any]) -> None:
    taken = [base for base in BASES if not _is_refused(name, base, OTHER[name], diffusion)]
    if not taken:
        assert not diffusion
        return
    changed = [
        _decoded(both[diffusion], base) != _decoded(both[diffusion], {**base, name: OTHER[name]}) for base in taken
    ]
    assert any(changed), taken


def _is_refused(name: str, base: dict[str, Any], value: Any, diffusion: bool) -> bool:
    from dcoder_cli.decoding import unused

    try:
        settings = _settings(**{**base, name: value})
    except UserError:
        return False
    try:
        unused.refuse({name: f"--{name}"}, dataclasses.asdict(settings), lambda: diffusion)
    except UserError:
        return True
    return False


def _decoded(model: Any, settings: dict[str, Any]) -> Any:
    from dataclasses import asdict

    from dcoder_cli.decoding.sampler import generate

    try:
        (found,) = generate(model, [[5, 6, 7]], **asdict(_settings(**settings)))
    except UserError:
        return None
    return found.tokens, found.reveal_step


def test_departures_from_a_protocol_are_named(places: dict[str, str]) -> None:
    from dcoder_cli.benchmarks import protocols, suites, sweep
    from dcoder_cli.model.loading import load

    model = load(places["model"])
    suite = suites.only(suites.load("micro"), suites.load("micro").items[:1])
    protocol = protocols.Protocol("diffucoder", False)

    def departures(**chosen: Any) -> Any:
        run = sweep.Options(settings=chosen, temperatures=(0.2, 0.4))
        setups = sweep._setups(model, protocol, suite, run, print)
        return [setup.departures for setup in setups.values()]

    assert departures() == [{}, {"temperature": {"protocol": 0.2, "here": 0.4}}]
    assert departures(top_p=0.5)[0] == {"top_p": {"protocol": 0.95, "here": 0.5}}
    assert departures(top_p=0.95) == departures()


def test_a_gap_is_filled_alike_by_chat_and_by_plain_text(
    places: dict[str, str], own_benchmark_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where the protocol's sampler differs: Dream's instruct models are colder."""
    monkeypatch.setenv("DCODER_BENCHMARKS", str(own_benchmark_files))
    line = f"--model {places['model']} --limit 1 --infill-lengths 4 --out {places['tmp']}/gaps"
    for way in ("--instruct", "--base"):
        told = refused("eval", "humaneval-infilling", *line.split(), way)
        assert told.startswith(f"error: {way} has no effect: humaneval-infilling (single) shows the code around a gap")
    from dcoder_cli.benchmarks import protocols, suites, sweep
    from dcoder_cli.model.loading import load

    suite, run = suites.load("humaneval-infilling", limit=1), sweep.Options(written={"instruct": "--instruct"})
    (setup,) = sweep._setups(load(places["model"]), protocols.Protocol("dream", True), suite, run, print).values()
    assert setup.chosen["temperature"] == 0.1

"""The whole method at desk size: from this machine's Python sources to a diffusion model that writes functions.

One process, no network, every stage through the same functions that the other commands call, with the `cpu-tiny`
preset. The corpus is the standard library of the running Python and our generated micro tasks as commented code; the
instruction data are the micro tasks as chats. No test task's function is in any of them.
"""

from __future__ import annotations

import json
import shutil
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.base import presets
from dcoder_cli.base.config import build
from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.base.files import require_space, write_json, write_jsonl
from dcoder_cli.data import micro

if TYPE_CHECKING:
    from dcoder_cli.analysis.measure import Series

# All ours, tuned with the cpu-tiny preset on 2 cores.
TRAIN_TASKS = 12_000
RL_TASKS = 2_000  # prompts of stage 4, drawn anew: same kinds, other constants and names
SCORED_TASKS = 105  # of the micro benchmark's 210, families in turn
# pass@10 is sampled at stage 4's temperature (DiffuCoder fig. 6), pass@1 at the preset's 0.2. A thousand samples: fast mode.
MANY, MANY_AT = 10, 1.0
VOCABULARY = 1536
DIGITS = 2  # a number up to 99 is one token: a tiny model copies it as one
ROW, CHAT_ROW = 64, 80  # tokens of a packed row, and of an instruction row: 19 in 20 micro tasks fit
STDLIB_SHARE = 0.05  # of the standard library's files, by content hash: what the stages can read in their minutes
EXCLUDED = (
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "turtledemo",
    "pydoc_data",
    "__pycache__",
)

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """One line of the table at the end: what a step did, with numbers before and after where it has them."""

    name: str
    what: str
    result: str
    seconds: float
    where: str


@dataclass(frozen=True)
class Sample:
    """A held-out task, the model's answer and the judge's word."""

    question: str
    text: str
    status: str


@dataclass(frozen=True)
class Outcome:
    """What quickstart made."""

    steps: list[Step]
    samples: list[Sample]
    scores: dict[str, float]
    seconds: float
    model: Path

    def to_json(self) -> dict[str, Any]:
        """Everything, for --json and quickstart.json."""
        return {
            "steps": [vars(step) for step in self.steps],
            "samples": [vars(sample) for sample in self.samples],
            "scores": self.scores,
            "seconds": round(self.seconds, 1),
            "model": str(self.model),
        }


def quickstart(out: Path, seed: int, effort: float, announce: Announce, force: bool = False) -> Outcome:
    """Run everything into `out`.

    Args:
        out: a new folder.
        seed: of weights, order, noise and tasks.
        effort: factor on the training steps; 1 is what the preset says.
        announce: told each step's name as it begins.
        force: replace `out` if it exists.

    Raises:
        UserError: `out` exists, or there is no space.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not force:
            raise UserError(f"--out {str(out)!r} exists already; choose another folder or add --force")
        shutil.rmtree(out)
    if effort <= 0:
        raise UserError(f"--effort {effort} must be above 0")
    require_space(out, 500 * 2**20, "quickstart")
    out.mkdir(parents=True, exist_ok=True)
    return _Desk(out, seed, effort, announce).run()


class _Desk:
    """The steps in order; each writes under `out` and adds its line to the table."""

    def __init__(self, out: Path, seed: int, effort: float, announce: Announce) -> None:
        self.out, self.seed, self.effort, self.announce = out, seed, effort, announce
        self.preset = presets.load("cpu-tiny")
        self.steps: list[Step] = []
        self.scores: dict[str, float] = {}
        self.series: list[Series] = []

    def run(self) -> Outcome:
        began = time.perf_counter()
        self._tasks()
        tokenizer = self._tokenizer()
        self._tokenize_code(tokenizer)
        start = self._new_model(tokenizer)
        ar = self._stage(0, start, "pretrain", "learns code from left to right")
        converted = self._convert(ar)
        self._tokenize_chats(converted)
        adapted = self._stage(
            1, converted, "pretrain", "attention opens from causal to full, masks instead of next tokens"
        )
        mid = self._stage(2, adapted, "pretrain", "goes on at full attention")
        tuned = self._stage(3, mid, "sft", "answers questions; pads teach it to end")
        self._score(tuned, "stage 3")
        trained = self._grpo(tuned)
        samples = self._score(trained, "stage 4")
        outcome = Outcome(self.steps, samples, self.scores, time.perf_counter() - began, trained)
        write_json(self.out / "quickstart.json", outcome.to_json())
        from dcoder_cli.benchmarks.quickstart_report import write_report

        write_report(self.out, outcome.steps, self.scores, self.series)
        return outcome

    # ---- data

    def _tasks(self) -> None:
        with self._step("micro tasks") as done:
            tasks = micro.generate("train", TRAIN_TASKS, self.seed)
            folder = self.out / "tasks"
            folder.mkdir()
            micro.write_sft(folder / "sft.jsonl", tasks)
            micro.write_rl(folder / "rl.jsonl", micro.generate("train", RL_TASKS, self.seed + 1))
            write_jsonl(folder / "code.jsonl", ({"text": as_code(task)} for task in tasks))
            done(
                "generated programming tasks in words",
                f"{len(tasks):,} to learn from, {RL_TASKS:,} to try, {len(micro.benchmark())} held out",
                folder,
            )

    def _tokenizer(self) -> Path:
        from dcoder_cli.base.files import atomic_folder
        from dcoder_cli.model.tokenizer import train_tokenizer

        with self._step("tokenizer") as done:
            texts = [file.read_text(encoding="utf-8", errors="replace") for file in library_files()[::10]]
            rows = (self.out / "tasks" / "sft.jsonl").read_text(encoding="utf-8").splitlines()
            texts += [message["content"] for row in rows for message in json.loads(row)["messages"]]
            trained = train_tokenizer(texts, VOCABULARY, digits=DIGITS)
            with atomic_folder(self.out / "tokenizer") as folder:
                trained.save_pretrained(folder)
            done(
                "byte-level BPE on a tenth of the library and the tasks",
                f"{len(trained)} tokens",
                self.out / "tokenizer",
            )
        return self.out / "tokenizer"

    def _tokenize_code(self, tokenizer: Path) -> None:
        from dcoder_cli.data.pipeline import PretrainSettings, tokenize_pretrain

        library, code = sysconfig.get_paths()["stdlib"], str(self.out / "tasks" / "code.jsonl")
        common = PretrainSettings(
            sources=(f"{library}@{STDLIB_SHARE}", code),
            out=str(self.out / "data" / "pretrain"),
            tokenizer=str(tokenizer),
            seq_len=ROW,
            seed=self.seed,
            heldout=0.02,
            exclude=EXCLUDED,
            extensions=("py", "jsonl"),
            quiet=True,
        )
        with self._step("tokenize") as done:
            manifest = tokenize_pretrain(common)
            dropped = sum(part["documents"] for part in manifest["dropped"].values())
            train = manifest["splits"]["train"]
            what = f"{train['tokens'] / 1e6:.1f}M tokens in {train['rows']:,} rows, {dropped} documents dropped"
            done("Python's own library and the tasks as commented code", what, Path(common.out))

    def _tokenize_chats(self, model: Path) -> None:
        from dcoder_cli.data.pipeline import SftSettings, tokenize_sft

        with self._step("tokenize") as done:
            out = self.out / "data" / "sft"
            source = str(self.out / "tasks" / "sft.jsonl")
            manifest = tokenize_sft(
                SftSettings((source,), str(out), str(model), seq_len=CHAT_ROW, seed=self.seed, heldout=0.02, quiet=True)
            )
            done("questions and answers as chats", f"{manifest['splits']['train']['rows']:,} rows of {CHAT_ROW}", out)

    # ---- models

    def _new_model(self, tokenizer: Path) -> Path:
        from dcoder_cli.model.conversion import initialise

        with self._step("new model") as done:
            out = self.out / "models" / "random"
            result = initialise("tiny", out, str(tokenizer), [], 0, True, None, self.seed, None)
            done(
                "random weights, Qwen2 architecture",
                f"{result['parameters'] / 1e6:.2f}M parameters, {result['layers']} layers",
                out,
            )
        return out

    def _convert(self, ar: Path) -> Path:
        from dcoder_cli.model.conversion import convert_checkpoint

        with self._step("convert") as done:
            out = self.out / "models" / "converted"
            result = convert_checkpoint(str(ar), out)
            done(
                "AR -> diffusion: mask, pad and BOS tokens, full attention, shift",
                f"mask id {result['ids']['mask']}",
                out,
            )
        return out

    def _stage(self, number: int, model: Path, data: str, what: str) -> Path:
        from dcoder_cli.training.config import STAGE_NAMES, StageConfig
        from dcoder_cli.training.denoise import train

        config = build(StageConfig, self.preset[f"stage{number}"], {"seed": self.seed})
        assert config.steps is not None
        config = replace(
            config,
            steps=max(2, round(config.steps * self.effort)),
            anneal_steps=round(config.anneal_steps * self.effort),
            evaluate_every=0,
            checkpoint_every=0,
        )
        name = STAGE_NAMES[number]
        with self._step(f"stage {number} ({name})") as done:
            out = self.out / "runs" / name
            first: list[float] = []
            result = train(
                number,
                str(model),
                str(self.out / "data" / data),
                str(out),
                config,
                on_step=lambda _s, _t, loss: first.append(loss),
            )
            if result.stopped == "asked":
                raise WorkFailed(f"stopped in stage {number}; start again with --force")
            held = f", held-out {result.heldout['loss']:.2f}" if result.heldout else ""
            done(
                what,
                f"{result.tokens / 1e6:.1f}M tokens, loss {sum(first[:5]) / len(first[:5]):.2f} -> {result.loss:.2f}{held}",
                result.checkpoint,
            )
        return result.checkpoint

    def _grpo(self, model: Path) -> Path:
        from dcoder_cli.data.rl import RlSettings, tokenize_rl
        from dcoder_cli.training.coupled_grpo import train
        from dcoder_cli.training.grpo_config import GrpoConfig

        config = build(GrpoConfig, self.preset["grpo"], {"seed": self.seed})
        assert config.steps is not None
        config = replace(config, steps=max(2, round(config.steps * self.effort)), checkpoint_every=0)
        with self._step("stage 4 (grpo)") as done:
            data, out = self.out / "data" / "rl", self.out / "runs" / "grpo"
            tokenize_rl(
                RlSettings((str(self.out / "tasks" / "rl.jsonl"),), str(data), str(model), seed=self.seed, quiet=True)
            )
            passed: list[float] = []
            result = train(
                str(model),
                str(data),
                str(out),
                config,
                on_step=lambda _s, _t, metrics: passed.append(metrics["passed"]),
            )
            if result.stopped == "asked":
                raise WorkFailed("stopped in stage 4; start again with --force")
            first, last = (sum(part) / len(part) for part in (passed[:10], passed[-10:]))
            samples = result.steps * config.prompts_per_step * config.group_size
            done(
                "coupled-GRPO: samples, runs the tests, learns from what passed",
                f"{samples:,} samples judged, of them passed {first:.0%} -> {last:.0%}",
                result.checkpoint,
            )
        return result.checkpoint

    def _score(self, model_folder: Path, label: str) -> list[Sample]:
        from dcoder_cli.analysis.measure import Measure, Series
        from dcoder_cli.benchmarks.micro_score import score
        from dcoder_cli.diffusion import trajectory
        from dcoder_cli.model.backbone import load

        name = label.replace(" ", "-")
        with self._step(f"score, {label}") as done:
            model = load(model_folder)
            tasks = micro.benchmark()[:SCORED_TASKS]
            result = score(model, tasks, self.preset["generate"], self.seed)
            hot = {"max_new_tokens": self.preset["generate"]["max_new_tokens"], "rule": self.preset["generate"]["rule"]}
            many = score(model, tasks, {**hot, "temperature": MANY_AT, "mode": "fast"}, self.seed, MANY, batch_size=128)
            one, ones, tens = result.pass_at(1), many.pass_at(1), many.pass_at(MANY)
            self.scores |= {
                f"{label} pass@1": one.mean,
                f"{label} pass@1 at temperature {MANY_AT:g}": ones.mean,
                f"{label} pass@{MANY} at temperature {MANY_AT:g}": tens.mean,
            }
            write_jsonl(self.out / f"samples-{name}.jsonl", result.rows)
            done(
                f"{SCORED_TASKS} held-out tasks, judged in a sandbox (tier {result.tier})",
                f"pass@1 {one.mean:.0%}; at temperature {MANY_AT:g} pass@1 {ones.mean:.0%}, pass@{MANY} {tens.mean:.0%}",
                self.out / f"samples-{name}.jsonl",
            )
        with self._step(f"AR-ness, {label}") as done:
            path = self.out / f"trajectories-{name}.jsonl"
            trajectory.write(path, result.trajectories)
            numbers = Measure()(result.trajectories)
            local, everywhere = numbers["local"]["mean"][0], numbers["global"]["mean"][0]
            self.scores |= {f"{label} local@1": local, f"{label} global@1": everywhere}
            share = (one.mean, one.low, one.high)
            temperature = self.preset["generate"]["temperature"]
            self.series.append(
                Series(
                    label, result.trajectories, numbers, label, temperature, model.tokenizer, passes={"pass@1": share}
                )
            )
            done(
                "how left-to-right those answers were decoded",
                f"local@1 {local:.2f}, global@1 {everywhere:.2f}",
                path,
            )
        order = sorted(result.rows, key=lambda row: (row["status"] != "passed", -row["level"]))
        shown = [*order[:3], *[row for row in order[3:] if row["status"] != "passed"][:1]]
        return [Sample(row["question"], row["text"], row["status"]) for row in shown]

    def _step(self, name: str) -> _Timer:
        self.announce(name)
        return _Timer(self, name)


class _Timer:
    """Times a step and adds its line to the table when it says what it did."""

    def __init__(self, desk: _Desk, name: str) -> None:
        self.desk, self.name, self.began = desk, name, time.perf_counter()

    def __enter__(self) -> Callable[[str, str, Path], None]:
        return self._done

    def __exit__(self, *_: object) -> None:
        return None

    def _done(self, what: str, result: str, where: Path) -> None:
        self.desk.steps.append(Step(self.name, what, result, round(time.perf_counter() - self.began, 1), str(where)))


def library_files() -> list[Path]:
    """The standard library's source files that are code to learn from: no tests, no tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(file for file in root.rglob("*.py") if not set(file.relative_to(root).parts) & set(EXCLUDED))


def as_code(task: micro.MicroTask) -> str:
    """A task as it might stand in a source file: the question as a comment above the function."""
    return "# " + task.question.replace("\n", "\n# ") + "\n" + task.solution

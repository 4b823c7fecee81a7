"""The small pipeline: data and models at the size of the `cpu-tiny` preset, each a step with a line in a table.

Every step calls the function that the command of its name calls. The corpus is the standard library of the running
Python and our generated micro tasks as commented code; the instruction data are the micro tasks as chats. No function of
a held-out task is in any of them, and no combination of operations or wording of `micro-kinds`.
"""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dcoder_cli.base import presets
from dcoder_cli.base.config import build
from dcoder_cli.base.errors import StoppedByUser
from dcoder_cli.base.files import write_jsonl
from dcoder_cli.base.jsonl import objects
from dcoder_cli.data import micro

# All ours, tuned with the cpu-tiny preset on 2 cores.
TRAIN_TASKS = 12_000
RL_TASKS = 2_000  # prompts of stage 4, drawn anew: same kinds, other constants and names
VOCABULARY = 1536
DIGITS = 2  # a number up to 99 is one token: a tiny model copies it as one
ROW, CHAT_ROW = 64, 80  # tokens of a packed row, and of an instruction row: 19 in 20 micro tasks fit
STDLIB_SHARE = 0.05  # of the standard library's files, by content hash: what the stages can read in their minutes
LONGEST, LOOKS = 1500, 100  # most steps to an equal loss (900 were needed at seed 0), and steps between looks at it
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


class Pipeline:
    """The steps; each writes under `out` and adds its line to `steps`.

    Args:
        out: folder of everything that is made.
        seed: of weights, order, noise and tasks.
        step_scale: factor on the training steps; 1 is what the preset says.
        announce: told each step's name as it begins.
        shared: another pipeline's folder, whose tasks, tokenizer and shards are used; None makes them in `out`.
        quiet: no progress bars, for one of several pipelines at work.
        again: what to do after a stop, for its message.
        unsafe: agree to run model-written code without a sandbox where none holds.
    """

    def __init__(
        self,
        out: Path,
        seed: int,
        step_scale: float,
        announce: Announce,
        shared: Path | None = None,
        quiet: bool = False,
        again: str = "start again with --force",
        unsafe: bool = False,
    ) -> None:
        self.out, self.seed, self.step_scale, self.announce, self.quiet = out, seed, step_scale, announce, quiet
        self.source, self.again, self.unsafe = shared or out, again, unsafe
        self.preset = presets.load("cpu-tiny")
        self.steps: list[Step] = []

    def step(self, name: str) -> _Timer:
        """A context that gives `done(what, result, where)`, which adds the line."""
        self.announce(name)
        return _Timer(self, name)

    # ---- data

    def tasks(self) -> None:
        """Micro tasks as rows for every stage."""
        with self.step("micro tasks") as done:
            tasks = micro.generate("train", TRAIN_TASKS, self.seed)
            folder = self.source / "tasks"
            folder.mkdir()
            micro.write_sft(folder / "sft.jsonl", tasks)
            micro.write_rl(folder / "rl.jsonl", micro.generate("train", RL_TASKS, self.seed + 1))
            write_jsonl(folder / "code.jsonl", ({"text": as_code(task)} for task in tasks))
            held_out = " + ".join(f"{len(micro.benchmark(name))} ({name})" for name in micro.BENCHMARKS)
            done(
                "generated programming tasks in words",
                f"{len(tasks):,} to learn from, {RL_TASKS:,} to try, {held_out} held out",
                folder,
            )

    def tokenizer(self) -> Path:
        """A tokenizer of the library and the tasks; its folder."""
        from dcoder_cli.base.files import atomic_folder
        from dcoder_cli.model.tokenizer import train_tokenizer

        with self.step("tokenizer") as done:
            texts = [file.read_text(encoding="utf-8", errors="replace") for file in library_files()[::10]]
            rows = objects(self.source / "tasks" / "sft.jsonl")
            texts += [message["content"] for _, row in rows for message in row["messages"]]
            trained = train_tokenizer(texts, VOCABULARY, digits=DIGITS)
            with atomic_folder(self.source / "tokenizer") as folder:
                trained.save_pretrained(folder)
            done(
                "byte-level BPE on a tenth of the library and the tasks",
                f"{len(trained)} tokens",
                self.source / "tokenizer",
            )
        return self.source / "tokenizer"

    def tokenize_code(self, tokenizer: Path) -> None:
        """The corpus as packed shards."""
        from dcoder_cli.data.pipeline import PretrainSettings, tokenize_pretrain

        library, code = sysconfig.get_paths()["stdlib"], str(self.source / "tasks" / "code.jsonl")
        common = PretrainSettings(
            sources=(f"{library}@{STDLIB_SHARE}", code),
            out=str(self.source / "data" / "pretrain"),
            tokenizer=str(tokenizer),
            seq_len=ROW,
            seed=self.seed,
            heldout=0.02,
            exclude=EXCLUDED,
            extensions=("py", "jsonl"),
            quiet=True,
        )
        with self.step("tokenize") as done:
            manifest = tokenize_pretrain(common)
            dropped = sum(part["documents"] for part in manifest["dropped"].values())
            train = manifest["splits"]["train"]
            what = f"{train['tokens'] / 1e6:.1f}M tokens in {train['rows']:,} rows, {dropped} documents dropped"
            done("Python's own library and the tasks as commented code", what, Path(common.out))

    def tokenize_chats(self, model: Path) -> None:
        """The tasks as rows of questions and answers."""
        from dcoder_cli.data.pipeline import SftSettings, tokenize_sft

        with self.step("tokenize") as done:
            out = self.source / "data" / "sft"
            source = str(self.source / "tasks" / "sft.jsonl")
            manifest = tokenize_sft(
                SftSettings((source,), str(out), str(model), seq_len=CHAT_ROW, seed=self.seed, heldout=0.02, quiet=True)
            )
            done("questions and answers as chats", f"{manifest['splits']['train']['rows']:,} rows of {CHAT_ROW}", out)

    # ---- models

    def new_model(self, tokenizer: Path) -> Path:
        """Random weights in Qwen2's architecture; the checkpoint."""
        from dcoder_cli.model.conversion import initialise

        with self.step("new model") as done:
            out = self.out / "models" / "random"
            result = initialise("tiny", out, str(tokenizer), [], 0, True, None, self.seed, None)
            done(
                "random weights, Qwen2 architecture",
                f"{result['parameters'] / 1e6:.2f}M parameters, {result['layers']} layers",
                out,
            )
        return out

    def convert(self, ar: Path, name: str = "converted") -> Path:
        """An AR checkpoint as a diffusion checkpoint, in `models/NAME`."""
        from dcoder_cli.model.conversion import convert_checkpoint
        from dcoder_cli.model.convert import Additions

        with self.step("convert") as done:
            out = self.out / "models" / name
            # A row more or less of so small a vocabulary moves every number of docs/results.md, measured with these.
            result = convert_checkpoint(str(ar), out, Additions(rows_multiple=1))
            done(
                "AR -> diffusion: mask, pad and BOS tokens, full attention, shift",
                f"mask id {result['ids']['mask']}",
                out,
            )
        return out

    def stage(
        self, number: int, model: Path, data: str, what: str, name: str | None = None, until: float | None = None
    ) -> Path:
        """Train a stage into `runs/NAME`; returns its checkpoint.

        Args:
            until: train to this held-out loss instead of the preset's steps, but no more than LONGEST steps.
        """
        from dcoder_cli.training.config import STAGE_NAMES, StageConfig
        from dcoder_cli.training.denoise import train
        from dcoder_cli.training.evaluation import told

        config = build(StageConfig, self.preset[f"stage{number}"], {"seed": self.seed})
        assert config.steps is not None
        config = replace(
            config,
            steps=max(2, round((config.steps if until is None else LONGEST) * self.step_scale)),
            anneal_steps=round(config.anneal_steps * self.step_scale),
            evaluate_every=0 if until is None else max(1, round(LOOKS * self.step_scale)),
            stop_at_loss=until,
            checkpoint_every=0,
        )
        name = name or STAGE_NAMES[number]
        with self.step(f"stage {number} ({name})") as done:
            out = self.out / "runs" / name
            first: list[float] = []
            result = train(
                number,
                str(model),
                str(self.source / "data" / data),
                str(out),
                config,
                quiet=self.quiet,
                on_step=lambda _s, _t, loss: first.append(loss),
            )
            if result.stopped == "asked":
                raise StoppedByUser(f"stopped in stage {number}; {self.again}")
            held = f", {told(result.heldout)}" if result.heldout else ""
            done(
                what,
                f"{result.tokens / 1e6:.1f}M tokens, loss {sum(first[:5]) / len(first[:5]):.2f} -> {result.loss:.2f}{held}",
                result.checkpoint,
            )
        return result.checkpoint

    def tokenize_prompts(self, model: Path) -> None:
        """Stage 4's prompts with their tests."""
        from dcoder_cli.data.rl import RlSettings, tokenize_rl

        with self.step("tokenize") as done:
            out, source = self.source / "data" / "rl", self.source / "tasks" / "rl.jsonl"
            manifest = tokenize_rl(RlSettings((str(source),), str(out), str(model), seed=self.seed, quiet=True))
            done("questions with hidden tests", f"{manifest['splits']['train']['rows']:,} prompts", out)

    def grpo(self, model: Path, estimator: str = "coupled") -> Path:
        from dcoder_cli.training.grpo.config import GrpoConfig
        from dcoder_cli.training.grpo.train import train

        config = build(GrpoConfig, self.preset["grpo"], {"seed": self.seed, "estimator": estimator})
        assert config.steps is not None
        config = replace(config, steps=max(2, round(config.steps * self.step_scale)), checkpoint_every=0)
        name = "grpo" if estimator == "coupled" else f"grpo-{estimator}"
        with self.step(f"stage 4 ({name})") as done:
            data, out = self.source / "data" / "rl", self.out / "runs" / name
            passed: list[float] = []
            result = train(
                str(model),
                str(data),
                str(out),
                config,
                quiet=self.quiet,
                on_step=lambda _s, _t, metrics: passed.append(metrics["passed"]),
                unsafe=self.unsafe,
            )
            if result.stopped == "asked":
                raise StoppedByUser(f"stopped in stage 4; {self.again}")
            first, last = (sum(part) / len(part) for part in (passed[:10], passed[-10:]))
            samples = result.steps * config.prompts_per_step * config.group_size
            done(
                f"GRPO ({estimator}): samples, runs the tests, learns from what passed",
                f"{samples:,} samples judged, of them passed {first:.0%} -> {last:.0%}",
                result.checkpoint,
            )
        return result.checkpoint


class _Timer:
    """Times a step and adds its line to the table when it says what it did."""

    def __init__(self, pipeline: Pipeline, name: str) -> None:
        self.pipeline, self.name, self.began = pipeline, name, time.perf_counter()

    def __enter__(self) -> Callable[[str, str, Path], None]:
        return self._done

    def __exit__(self, *_: object) -> None:
        return None

    def _done(self, what: str, result: str, where: Path) -> None:
        self.pipeline.steps.append(
            Step(self.name, what, result, round(time.perf_counter() - self.began, 1), str(where))
        )


def library_files() -> list[Path]:
    """The standard library's source files that are code to learn from: no tests, no tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(file for file in root.rglob("*.py") if not set(file.relative_to(root).parts) & set(EXCLUDED))


def as_code(task: micro.MicroTask) -> str:
    """A task as it might stand in a source file: the question as a comment above the function."""
    return "# " + task.question.replace("\n", "\n# ") + "\n" + task.solution

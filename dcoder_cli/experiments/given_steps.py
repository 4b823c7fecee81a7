"""The steps of `quickstart --model`, each under a name in the journal: what the command of its name does, as much as fits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.base.errors import StoppedByUser, UserError
from dcoder_cli.base.files import human_bytes
from dcoder_cli.experiments.budget import ANSWER, PROMPT, TEMPERATURES, Amounts, Rates
from dcoder_cli.experiments.given_memory import fitted, precision
from dcoder_cli.experiments.given_settings import (
    FRAGMENT_SHARE,
    HELDOUT,
    LABELS,
    LEARNING_RATE,
    LEFT_OUT,
    MICRO_SHARE,
    SPARE,
    SPARE_TOKENS,
    STAGES,
    GivenSettings,
    corpus_of,
)
from dcoder_cli.experiments.journal import Announce, Journal

if TYPE_CHECKING:
    from dcoder_cli.model.backbone import Model


class GivenModel:
    """All that is done to one model. Every path lies in `settings.out`."""

    def __init__(self, settings: GivenSettings, journal: Journal, announce: Announce, quiet: bool) -> None:
        self.settings, self.journal, self.announce, self.quiet = settings, journal, announce, quiet
        self.out, self.seed = settings.out, settings.seed

    def all(self) -> None:
        """Every step in order."""
        ar = Path(self.journal.step("read the model", self._read)["where"])
        start = Path(self.journal.step("convert", lambda: self._convert(ar))["where"])
        rates = self._rates(start)
        self.journal.step("tokenize the corpus", lambda: self._corpus(start, rates))
        amounts = self._amounts(rates)
        self.journal.step("tokenize requests and gaps", lambda: self._chats(start, amounts))
        self.journal.step("tokenize prompts", lambda: self._prompts(start))
        self._score("ar", ar, amounts)
        self._score("converted", start, amounts)
        model = start
        for stage in STAGES:
            trained = self.journal.step(f"train {LABELS[stage]}", lambda s=stage, m=model: self._train(s, m, amounts))  # type: ignore[misc]
            model = Path(trained["where"])
            self._score(stage, model, amounts)
        self.journal.step("decoding order", lambda: self._orders(model, amounts))

    # ---- models and the plan

    def _read(self) -> dict[str, Any]:
        from dcoder_cli.model import gguf

        file = gguf.find(self.settings.model)
        if file is None:
            return {"what": "an AR checkpoint", "result": self.settings.model, "where": self.settings.model}
        out = self.out / "models" / "ar"
        gguf.load(file).save(out)
        return {
            "what": f"{file.name}, dequantised to float32",
            "result": human_bytes(file.stat().st_size),
            "where": str(out),
        }

    def _convert(self, ar: Path) -> dict[str, Any]:
        from dcoder_cli.model.conversion import convert_checkpoint

        out = self.out / "models" / "start"
        made = convert_checkpoint(str(ar), out, dtype="float32")
        return {
            "what": "AR -> diffusion: mask, pad and BOS tokens, full attention, shift",
            "result": f"{made['parameters'] / 1e6:.0f}M parameters, mask id {made['ids']['mask']}",
            "where": str(out),
        }

    def _rates(self, start: Path) -> Rates:
        from dcoder_cli.experiments import budget

        def measured() -> dict[str, Any]:
            rates = budget.measure(start, self.settings.device, self.seed)
            budget.allot(self._left(), rates, self.settings.minutes)  # too few minutes are told now
            return {
                "what": "steps of training and answers, timed",
                "result": f"{rates.train:,.0f} tokens/s of training, {rates.sample:.2f} s a decoded answer",
                "where": str(start), "rates": vars(rates),
            }  # fmt: skip

        return Rates(**self.journal.step("measure", measured)["rates"])

    def _amounts(self, rates: Rates) -> Amounts:
        from dcoder_cli.experiments import budget

        def shared_out() -> dict[str, Any]:
            amounts = budget.allot(self._left(), rates, self.settings.minutes)
            steps = ", ".join(f"{count} of {LABELS[name]}" for name, count in amounts.steps.items())
            return {
                "what": f"{amounts.seconds / 60:.0f} minutes shared out: rows of {amounts.row} tokens, {amounts.rows} a step",
                "result": f"steps: {steps}; {amounts.tasks} tasks and lines a score", "amounts": amounts.to_json(),
            }  # fmt: skip

        found = self.journal.step("plan", shared_out)
        self.announce(f"{found['what']}; {found['result']}")
        return Amounts(**found["amounts"])

    def _left(self) -> float:
        return max(0.0, 60 * self.settings.minutes - self.journal.seconds)

    # ---- data

    def _corpus(self, start: Path, rates: Rates) -> dict[str, Any]:
        from dcoder_cli.data.pipeline import PretrainSettings, tokenize_pretrain
        from dcoder_cli.experiments import budget

        sources, own = corpus_of(self.settings), bool(self.settings.corpus)
        if not own:  # some of what may be a gigabyte
            needed = budget.allot(self._left(), rates, self.settings.minutes).needed_tokens
            size = sum(file.stat().st_size for source in sources for file in Path(source).rglob("*.py"))
            wanted = max(2 * needed, min(SPARE * needed, SPARE_TOKENS))
            share = min(1.0, wanted * 3.5 / max(size, 1))  # 3.5 bytes a token of code
            sources = tuple(f"{source}@{share:.4f}" for source in sources)
        out = self.out / "data" / "corpus"
        manifest = tokenize_pretrain(
            PretrainSettings(
                sources, str(out), str(start), seq_len=rates.row, seed=self.seed, heldout=HELDOUT[own],
                extensions=() if own else ("py",), exclude=() if own else LEFT_OUT,
                overwrite=True, quiet=True,
            )
        )  # fmt: skip
        train, held = manifest["splits"]["train"], manifest["splits"].get("heldout")
        if held is None:
            raise UserError("the corpus is too small to hold a document out; give more with --corpus")
        dropped = sum(part["documents"] for part in manifest["dropped"].values())
        return {
            "what": "source code as packed rows",
            "result": f"{train['tokens'] / 1e6:.2f}M tokens, {held['rows']} rows held out, {dropped:,} documents dropped",
            "where": str(out),
        }

    def _chats(self, start: Path, amounts: Amounts) -> dict[str, Any]:
        from dcoder_cli.data import micro
        from dcoder_cli.data.pipeline import SftSettings, tokenize_sft
        from dcoder_cli.experiments.given_data import Documents

        folder = self.out / "tasks"
        folder.mkdir(parents=True, exist_ok=True)
        # Twice what is read: some are too long, or dropped as near duplicates.
        rows = max(128, amounts.steps["sft"] * amounts.rows * 2)
        documents = Documents(self.out / "data" / "corpus", start, self.seed)
        counts = {
            "fragments": documents.write_fragments(folder, round(rows * FRAGMENT_SHARE), amounts.chat_row),
            "pairs": documents.write_pairs(folder, round(rows * (1 - MICRO_SHARE - FRAGMENT_SHARE)), amounts.chat_row),
        }
        tasks = micro.generate("train", rows - sum(counts.values()), self.seed)
        micro.write_sft(folder / "sft.jsonl", tasks)
        micro.write_rl(folder / "rl.jsonl", micro.generate("train", 1000, self.seed + 1))
        out = self.out / "data" / "chats"
        sources = [folder / "sft.jsonl", *(folder / f"{name}.jsonl" for name, count in counts.items() if count)]
        manifest = tokenize_sft(
            SftSettings(
                tuple(map(str, sources)), str(out), str(start), seq_len=amounts.chat_row, seed=self.seed, heldout=0.02,
                overwrite=True, quiet=True,
            )
        )  # fmt: skip
        return {
            "what": f"{len(tasks):,} micro tasks, {counts['pairs']:,} requests and gaps from functions, "
            f"{counts['fragments']:,} fragments of code",
            "result": f"{manifest['splits']['train']['rows']:,} rows of {amounts.chat_row}", "where": str(out),
        }  # fmt: skip

    def _prompts(self, start: Path) -> dict[str, Any]:
        from dcoder_cli.data.rl import RlSettings, tokenize_rl

        out = self.out / "data" / "prompts"
        manifest = tokenize_rl(
            RlSettings(
                (str(self.out / "tasks" / "rl.jsonl"),),
                str(out),
                str(start),
                seed=self.seed,
                overwrite=True,
                quiet=True,
            )
        )
        return {
            "what": "questions with hidden tests", "result": f"{manifest['splits']['train']['rows']:,} prompts",
            "where": str(out),
        }  # fmt: skip

    # ---- training

    def _train(self, stage: str, model: Path, amounts: Amounts) -> dict[str, Any]:
        out = self.out / "runs" / stage
        resume = (out / "checkpoints" / "last").exists()
        if out.exists() and not resume:
            shutil.rmtree(out)  # stopped before its first checkpoint
        work: Callable[..., dict[str, Any]] = self._grpo if stage == "grpo" else self._denoise
        return work(stage, model, out, amounts, resume)

    def _denoise(self, stage: str, model: Path, out: Path, amounts: Amounts, resume: bool) -> dict[str, Any]:
        from dcoder_cli.training.config import OptimizerConfig, StageConfig
        from dcoder_cli.training.denoise import train
        from dcoder_cli.training.memory.shape import read_config

        steps, rows = amounts.steps[stage], amounts.rows
        config = StageConfig(
            seed=self.seed, steps=steps, global_batch=rows, micro_batch=min(rows, amounts.micro), precision=precision(self.settings.device),
            t_min=0.02, stratified_t=True, anneal_steps=steps // 10 if stage == "adapt" else 0,
            conditional_phase_in=0.0, evaluate_every=0, evaluate_rows=0, checkpoint_every=max(1, steps // 4), keep_checkpoints=1,
            optimizer=OptimizerConfig(learning_rate=LEARNING_RATE[stage], warmup_ratio=0.05),
        )  # fmt: skip
        number = STAGES.index(stage) + 1
        data, row = ("chats", amounts.chat_row) if stage == "sft" else ("corpus", amounts.row)
        config, other = fitted(f"stage{number}", read_config(str(model)), config, row, self.settings.device)
        result = train(
            number, str(model), str(self.out / "data" / data), str(out), config, resume=resume,
            device=self.settings.device, quiet=self.quiet,
        )  # fmt: skip
        if result.stopped == "asked":
            raise StoppedByUser(f"stopped in {LABELS[stage]}; the same command with --resume goes on")
        return {
            "what": f"{steps} steps of {rows} rows{_memory(other)}", "result": f"{result.tokens / 1e6:.2f}M tokens, loss {result.loss:.2f}",
            "where": str(result.checkpoint),
        }  # fmt: skip

    def _grpo(self, stage: str, model: Path, out: Path, amounts: Amounts, resume: bool) -> dict[str, Any]:
        from dcoder_cli.training.config import OptimizerConfig
        from dcoder_cli.training.grpo.config import GrpoConfig, RolloutConfig
        from dcoder_cli.training.grpo.train import train
        from dcoder_cli.training.memory.shape import read_config

        steps, passed = amounts.steps[stage], list[float]()
        config = GrpoConfig(
            seed=self.seed, steps=steps, prompts_per_step=amounts.prompts, group_size=amounts.group,
            micro_batch=amounts.prompts * amounts.group, inner_iterations=1, kl_coef=0.0, reference_sync=0,
            train_embeddings=False, precision=precision(self.settings.device), checkpoint_every=max(1, steps // 4), keep_checkpoints=1,
            evaluate_prompts=0,
            rollout=RolloutConfig(max_new_tokens=ANSWER, temperature=1.0, mode="fast", batch_size=32),
            optimizer=OptimizerConfig(learning_rate=LEARNING_RATE[stage], betas=(0.9, 0.99), warmup_steps=min(5, steps // 4)),
        )  # fmt: skip
        config, other = fitted("grpo", read_config(str(model)), config, PROMPT, self.settings.device)
        result = train(
            str(model), str(self.out / "data" / "prompts"), str(out), config, resume=resume, device=self.settings.device,
            quiet=self.quiet, unsafe=self.settings.unsafe, on_step=lambda _s, _t, found: passed.append(found["passed"]),
        )  # fmt: skip
        if result.stopped == "asked":
            raise StoppedByUser(f"stopped in {LABELS[stage]}; the same command with --resume goes on")
        third = max(1, len(passed) // 3)
        ends = [sum(part) / len(part) for part in (passed[:third], passed[-third:])] if passed else [0.0, 0.0]
        return {
            "what": f"{steps} steps of {amounts.prompts} prompts x {amounts.group} samples, coupled-GRPO{_memory(other)}",
            "result": f"of the samples passed {ends[0]:.0%} -> {ends[1]:.0%}", "where": str(result.checkpoint),
        }  # fmt: skip

    # ---- measures

    def _load(self, folder: Path) -> Model:
        from dcoder_cli.model.loading import load

        return load(folder, self.settings.device, "float32")

    def _score(self, name: str, folder: Path, amounts: Amounts) -> None:
        self.journal.step(f"score {LABELS[name]}", lambda: self._scored(name, folder, amounts))

    def _scored(self, name: str, folder: Path, amounts: Amounts) -> dict[str, Any]:
        from dcoder_cli.decoding import trajectory
        from dcoder_cli.experiments import given_measures as measures

        model, data = self._load(folder), self.out / "data" / "corpus"
        found: dict[str, Any] = {"where": str(folder)}
        solved, answered = measures.solved(model, amounts.tasks, self.seed, self.settings.unsafe)
        trajectory.write(self.out / f"answers-{name}.jsonl", answered.trajectories)
        found["micro"] = solved
        told = [f"pass@1 {solved['share']:.0%} of {solved['tasks']}"]
        asked = measures.holes(measures.documents(data, model.tokenizer), 4 * amounts.tasks, self.seed)
        found["infill"] = measures.filled(model, asked, amounts.tasks, amounts.row, self.seed)
        if found["infill"]["holes"]:
            told.append(f"{found['infill']['share']:.0%} of {found['infill']['holes']} lines filled exactly")
            if "tokens" in found["infill"]:
                told[-1] += f" ({found['infill']['tokens']['share']:.0%} of their tokens)"
        if model.is_diffusion:
            found["heldout"] = measures.lost(model, data, amounts.heldout)
            told.append(f"held-out loss {found['heldout']['loss']:.2f}")
        return {"what": "held-out tasks, lines and loss", "result": ", ".join(told), **found}

    def _orders(self, folder: Path, amounts: Amounts) -> dict[str, Any]:
        from dcoder_cli.analysis.measure import tied_text
        from dcoder_cli.decoding import trajectory
        from dcoder_cli.experiments import given_measures as measures

        found = measures.orders(self._load(folder), amounts.orders, TEMPERATURES, self.seed)
        told = []
        for one in found:
            trajectory.write(self.out / f"orders-{one.label}.jsonl", one.trajectories)
            local, everywhere = one.numbers["local"]["mean"][0], one.numbers["global"]["mean"][0]
            told.append(f"{one.label}: {local:.2f} and {everywhere:.2f} ({tied_text(one.numbers)} of steps tied)")
        return {
            "what": "local and global AR-ness@1 of stage 4 by temperature", "result": "; ".join(told),
            "where": str(folder), "orders": [one.to_json() for one in found],
        }  # fmt: skip


def _memory(changes: str) -> str:
    return f"; for the memory here {changes}" if changes else ""

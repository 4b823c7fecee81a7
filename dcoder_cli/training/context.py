"""One training run: accelerator, folder, state, stop signals, tracker, log and checkpoints. The loops of all stages share it.

It holds no loop and calls none: `denoise.train` and `grpo.train.train` read from top to bottom and call it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcoder_cli.base import console
from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.base.files import require_space
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.model import checkpoint, kernels
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.special_ids import warn_of_mask
from dcoder_cli.training import damage, optimizers, saving, setup, sharded, tracking
from dcoder_cli.training import record as records
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.stopping import Stop, stoppable
from dcoder_cli.training.totals import seen, totals
from dcoder_cli.training.tracking import Tracking


@dataclass(frozen=True)
class Update:
    """What moved the weights: the loss of the whole step, the norm of its gradients before clipping, the learning rate."""

    loss: float
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True)
class DryRun:
    """A run that is checked and goes no further: how many processes it will have, and whether they share the weights."""

    processes: int = 1
    sharded: bool = False


@dataclass
class Context:
    """A run of one stage. A loop calls `open`, `load_model`, `prepare` and `begin` in this order, then the rest.

    Attributes:
        stage, name: 0-4, and what the stage is called.
        config: of the stage.
        folder: the run's.
        accelerator: Accelerate's; `accelerate launch` and torchrun decide about processes and devices.
        resume, start: whether it goes on, and after which step: that of the last checkpoint, or 0.
        record: for config.yaml, of `record.make`; `begin` writes it.
        track: where the run is tracked, or None.
        preset: the preset that `config` began with, or None.
        sharded: whether weights are spread over the processes; see sharded.py.
        dry: set where nothing will be trained: the model's weights then stay on the meta device.
        model: set by `load_model`, float32 on the CPU until `prepare` moves it.
        weights_from: set by `load_model`: the checkpoint that it is.
        module, optimizer: set by `prepare`: what the loop calls, as Accelerate wraps it.
        state: what a checkpoint carries for the loop; plain numbers, lists and dicts.
    """

    stage: int
    name: str
    config: StageConfig | GrpoConfig
    folder: RunFolder
    accelerator: Any
    resume: bool
    start: int
    record: dict[str, Any]
    track: Tracking | None
    preset: records.Preset | None
    sharded: bool
    dry: DryRun | None = None
    model: Model = field(init=False)
    module: Any = field(init=False)
    optimizer: Any = field(init=False)
    state: dict[str, Any] = field(init=False)
    weights_from: Path = field(init=False)
    _stop: Stop = field(init=False, default_factory=Stop)
    _stops: float | None = field(init=False, default=None)  # processes asked to stop, as the last update saw it

    @classmethod
    def open(
        cls,
        stage: int,
        name: str,
        model: str,
        data: str,
        out: str,
        config: StageConfig | GrpoConfig,
        resume: bool,
        device: str | None,
        track: Tracking | None,
        preset: records.Preset | None,
        dry: DryRun | None = None,
    ) -> Context:
        """Check the run folder and start Accelerate; nothing is written.

        Raises:
            UserError: the folder is not one to begin in, or to resume as now asked; the precision or the tracker is not to
                be had.
        """
        folder = RunFolder.check(out, resume, hold=dry is None)
        record = records.make(stage, model, data, config, **tracking.to_record(track))
        if resume:
            records.check_resumed(folder.config(), record, begun=folder.last() > 0)
        start = folder.last() if resume else 0
        spread = sharded.asked()
        accelerator = setup.make_accelerator(config.precision, device, track.tracker if track else None, folder.path)
        spread = spread and accelerator.num_processes > 1 if dry is None else dry.sharded and dry.processes > 1
        if spread and isinstance(config, StageConfig) and config.compile:
            raise UserError("compile does not run under FSDP; use --set compile=false")
        return cls(stage, name, config, folder, accelerator, resume, start, record, track, preset, spread, dry)

    def load_model(self, name: str) -> Model:
        """The model to train: `name`, or the run's last checkpoint. Raises UserError, see `setup.load_model`."""
        with damage.resuming(self.folder, self.start):
            self.model = setup.load_model(
                self.accelerator, self.folder, self.resume, name, self.config, self.stage, self.sharded, self.dry is not None
            )  # fmt: skip
        self.weights_from = self.last_checkpoint() if self.start else checkpoint.find(name)
        if self.accelerator.is_main_process:
            warn_of_mask(self.model.findings)
        if self.dry is not None:
            setup.set_attention(self.model, self.config.attention, self.accelerator.device)
        return self.model

    def checkpoint_bytes(self, copies: int = 0) -> int:
        """What one checkpoint will take on disk; `copies`: references in it."""
        if self.dry is not None and self.config.lora is not None:  # no adapter has been put into the model
            return saving.planned_bytes(self.model, self.config.lora, self.config.precision)
        return saving.checkpoint_bytes(self.model, copies)

    def check_space(self, copies: int = 0) -> None:
        """Raises UserError now if the checkpoints to come will not fit: those kept, the best, and one being written.

        A dry run is not stopped by it: it tells what is needed and what is free.
        """
        if self.dry is not None:
            return
        kept = self.config.keep_checkpoints + 2
        require_space(self.folder.path, self.checkpoint_bytes(copies) * kept, f"{kept} checkpoints")

    def prepare(self, module: nn.Module, state: Mapping[str, Any]) -> None:
        """Bring the model to its device under Accelerate, with an optimiser for what trains in it.

        Args:
            module: holds the model; the loop calls it.
            state: what a run begins with; on resuming, the checkpoint's stands in its place, with its optimiser and RNG.

        Raises:
            UserError: the attention cannot run here, or the checkpoint is damaged.
        """
        device = self.accelerator.device
        setup.set_attention(self.model, self.config.attention, device)
        if not self.sharded:
            self.model.to(device)
        if self.config.kernels == "liger":
            kernels.use_liger(self.model)
        if self.config.activation_checkpointing:
            setup.recompute_activations(self.model.network)
        if self.sharded:
            sharded.shard(module, self.model, self.config.precision, device)
            if self.model.adapter is None:
                with damage.resuming(self.folder, self.start):
                    sharded.receive(module, self.model, self.weights_from)
            self.module, self.optimizer = module, optimizers.make_optimizer(module, self.config.optimizer)
        else:
            optimizer = optimizers.make_optimizer(module, self.config.optimizer)
            self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.state = dict(state)
        if self.start:
            with damage.resuming(self.folder, self.start):
                self.state = saving.load_training_state(self.last_checkpoint(), self.module, self.optimizer)

    def collecting(self, last: bool) -> AbstractContextManager[Any]:
        """Around the backward pass of a micro-batch: gradients meet at the step's last one.

        Sharded ones meet at each: a process has no room for the whole gradients.
        """
        if last or self.sharded:
            return nullcontext()
        found: AbstractContextManager[Any] = self.accelerator.no_sync(self.module)
        return found

    def last_checkpoint(self) -> Path:
        """The checkpoint that a resumed run goes on from."""
        return self.folder.checkpoint(self.start)

    def begin(self, tidy: Callable[[], None] = lambda: None) -> None:
        """All checks have passed on all processes: make the folder, drop the log after `start`, write down what runs.

        Args:
            tidy: called on the first process once the folder is there and before config.yaml is replaced.
        """
        self.accelerator.wait_for_everyone()
        name = None if self.preset is None else self.preset.name
        if self.preset is not None and self.preset.note is not None:
            console.note(self.preset.note)
        if self.is_first:
            self.folder.make()
            if self.resume:
                self.folder.cut_after(self.start)
            tidy()
            self.folder.write_config(self.record, records.device_name(self.accelerator), name)
        self.accelerator.wait_for_everyone()
        if self.track is not None:
            tracking.begin(self.accelerator, self.track, self.start, self.record)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def processes(self) -> int:
        """How many there are, or will be."""
        return self.dry.processes if self.dry is not None else int(self.accelerator.num_processes)

    def sum(self, value: float) -> float:
        """A number summed over all processes."""
        return totals(self.accelerator, {"value": value})["value"]

    def largest(self, value: int) -> int:
        """A count's largest over all processes."""
        return int(self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).max())

    def divisor(self, share: float) -> float | Tensor:
        """This process's share of a loss's denominator, summed over all processes and at least 1.

        Of several processes it is a float32 number on the device, and the host does not wait for it.
        """
        if self.processes == 1:
            return max(share, 1.0)
        number = torch.full((), share, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(number, reduction="sum").clamp(min=1.0).float()  # type: ignore[no-any-return]

    @contextmanager
    def running(self, total_steps: int, quiet: bool) -> Iterator[console.Bar]:
        """While the loop runs: a progress bar, stop signals heard, and the tracker closed at the end."""
        label = f"stage {self.stage} ({self.name})"
        try:
            with stoppable() as self._stop, console.bar(label, total_steps, self.start, quiet, at_once=True) as bar:
                yield bar
        finally:
            if self.track is not None:
                self.accelerator.end_training()
            self.folder.release()

    def stop_asked(self) -> bool:
        """Whether any process was asked to stop (before the last update, of several processes); all processes must call it."""
        if self.processes == 1:
            return self._stop.asked
        heard, self._stops = self._stops, None
        return (self.sum(float(self._stop.asked)) if heard is None else heard) > 0

    def update(self, step: int, total_steps: int, loss: float | Tensor) -> Update:
        """Judge the loss and the gradients at hand over all processes, then move the weights by them.

        Args:
            step: from 0; it decides the learning rate.
            loss: this process's part, a number on the device or here; the parts are summed.

        Raises:
            WorkFailed: one of them is NaN or infinite on any process. Raised on all, before any weight has moved.
        """
        settings = self.config.optimizer
        rate = optimizers.learning_rate(settings, step, total_steps)
        optimizers.set_learning_rate(self.optimizer, rate)
        most = settings.max_grad_norm or float("inf")
        if self.sharded:
            clipped = sharded.clip_grad_norm(self.module, most)
        else:
            clipped = self.accelerator.clip_grad_norm_(self.module.parameters(), most)
        own, everyone = self._look(loss, clipped)
        loss_sum, norm_sum, self._stops = everyone["loss"], everyone["norm"], everyone["stops"]
        if not (math.isfinite(loss_sum) and math.isfinite(norm_sum)):
            what, value = ("gradient norm", norm_sum) if math.isfinite(loss_sum) else ("loss", loss_sum)
            last = self.folder.last()
            kept = f"checkpoint step-{last} is good" if last else "there is no checkpoint yet, so it starts over"
            raise WorkFailed(
                f"the {what} became {value} at step {step + 1}; the weights were not updated with it and {kept}; "
                f"lower optimizer.learning_rate ({settings.learning_rate:g}) and go on with --resume"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Update(loss_sum, own["norm"], rate)

    def _look(self, loss: float | Tensor, norm: Any) -> tuple[dict[str, float], dict[str, float]]:
        """Loss, gradient norm and requests to stop, as this process has them and summed over all processes."""
        if hasattr(norm, "full_tensor"):  # of sharded gradients
            norm = norm.full_tensor()
        value = torch.tensor(loss, dtype=torch.float64) if isinstance(loss, float) else loss
        return seen(
            self.accelerator,
            {"loss": value, "norm": norm, "stops": torch.full_like(norm, float(self._stop.asked))},
            norm.device,
        )

    def log(self, step: int, metrics: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
        """A step's line in metrics.jsonl, the same for the same run, and in timings.jsonl; and for the tracker."""
        if self.is_first:
            self.folder.append("metrics", {"step": step, **metrics})
            self.folder.append("timings", {"step": step, **timings})
        if self.track is not None:
            self.accelerator.log({**metrics, "tokens_per_second": timings["tokens_per_second"]}, step=step)

    def log_heldout(self, step: int, heldout: Mapping[str, Any]) -> None:
        """An evaluation's line in metrics.jsonl; its numbers for the tracker."""
        if self.is_first:
            self.folder.append("metrics", {"step": step, "heldout": heldout})
        if self.track is not None:
            self.accelerator.log(tracking.numbers({"heldout": heldout}), step=step)

    def save(self, step: int, best: bool = False, extra: Mapping[str, Any] | None = None) -> None:
        """Write the checkpoint of a step, call it the best where it is, and remove those that are no longer kept.

        `extra`: more files of its `training/`, each a value for torch.save.
        """
        saving.save_checkpoint(
            self.accelerator, self.folder, step, self.module, self.model, self.optimizer, self.state, self.name, extra
        )
        if self.is_first:
            if best:
                self.folder.link("best", step)
            self.folder.prune(self.config.keep_checkpoints)

"""Evaluations recorded once a shape and played back: CUDA graphs.

An evaluation of few rows keeps a GPU waiting for the host, which launches some 35 kernels a layer one by one; a graph of
them is launched at once (PyTorch's torch.cuda.CUDAGraph). It repeats what was recorded at the same addresses, so shapes
are filled up: rows to a power of two, columns to 64s, windows to 32s. Rows added are the last one again, which computes
and keeps the same numbers twice; columns added are pads, closed to attention. All columns are evaluated, read or not.

Off unless asked for (`--cuda-graphs`, `load(cuda_graphs=True)`): tokens may differ from those of evaluations as written by
rounding, as they do between batches on a GPU.

Shapes: R rows, L columns, W columns of a window, D hidden size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from dcoder_cli.base.errors import WorkFailed, one_line
from dcoder_cli.decoding.caches import CachePool
from dcoder_cli.decoding.evaluation import AsWritten, Together
from dcoder_cli.model import key_values
from dcoder_cli.model.backbone import Model

COLUMNS, WINDOW = 64, 32  # what columns and windows are filled up to (ours)
MOST = 64  # recordings held, the latest used (ours)
_WARM_UPS = (
    3  # runs before recording, in which kernels are chosen and libraries take memory (PyTorch's notes on graphs)
)

Function = Callable[..., Tensor]
# Given a function and tensors that stay where they are, a call that does the same again with what they hold then.
Record = Callable[[Function, Sequence[Tensor]], Callable[[], Tensor]]


def evaluator(model: Model, slots: int) -> AsWritten:
    """How an engine of so many slots evaluates a model. Recordings stay with the model for its next engine: one at a time decodes."""
    if not model.cuda_graphs:
        return AsWritten(model, CachePool(slots))
    if slots not in model.recordings:
        model.recordings[slots] = Replayed(model, CachePool(slots), CudaGraphs(model.device))
    found: AsWritten = model.recordings[slots]
    return found


class CudaGraphs:
    """Records on a GPU. All graphs share one pool of memory: one is played at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self.device):
                aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                aside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(aside):
                    for _ in range(_WARM_UPS):
                        function(*inputs)
                torch.cuda.current_stream().wait_stream(aside)
                with torch.cuda.graph(graph, pool=self._pool):
                    made = function(*inputs)
        except RuntimeError as error:
            raise WorkFailed(f"recording a CUDA graph failed ({one_line(error)}); run without --cuda-graphs") from None

        def play() -> Tensor:
            graph.replay()
            return made

        return play


class Replayed(AsWritten):
    """Evaluates by playing what was recorded for its shape, which is recorded when it first comes up."""

    def __init__(self, model: Model, caches: CachePool, record: Record) -> None:
        super().__init__(model, caches)
        self.record = record
        self._held: OrderedDict[tuple[object, ...], tuple[list[Tensor], Callable[[], Tensor]]] = OrderedDict()

    def __call__(self, asked: Together) -> Tensor:
        """As `AsWritten`, of all columns."""
        rows, width = asked.ids_RL.shape
        columns = _columns(width, self.model.max_length)
        if asked.kind != "whole" and self.caches.room < columns:
            # What is recorded has the tables' addresses in it, and they are about to be others.
            for key in [key for key in self._held if key[0] != "whole"]:
                del self._held[key]
            ids_RL, attention_RL = self._filled(asked.ids_RL, asked.attention_RL, rows, columns)
            return super().__call__(replace(asked, ids_RL=ids_RL, attention_RL=attention_RL))
        if asked.kind == "whole":
            return self.whole(asked.ids_RL, asked.attention_RL)
        together = _rows(rows, self.caches.slots)
        ids_RL, attention_RL = self._filled(asked.ids_RL, asked.attention_RL, together, columns)
        slots = [*asked.slots, *[asked.slots[-1]] * (together - rows)]
        given = [ids_RL, torch.tensor(slots, device=self.model.device)]
        if asked.kind == "fill":
            hidden_RLD = self._played("fill", given, attention_RL)
            return hidden_RLD[:rows, :width]
        starts = [start - self.model.lead for start in asked.first]
        longest = max(end - start for start, end in zip(starts, asked.end, strict=True))
        window_RW = key_values.indices(starts, asked.end, -(-longest // WINDOW) * WINDOW, self.model.device)
        given.append(torch.cat([window_RW, window_RW[-1:].expand(together - rows, -1)]))
        return self._played("window", given, attention_RL)[:rows]

    def whole(self, ids_RL: Tensor, attention_RL: Tensor | None) -> Tensor:
        """As `AsWritten.whole`."""
        rows, width = ids_RL.shape
        filled = self._filled(
            ids_RL, attention_RL, _rows(rows, self.caches.slots), _columns(width, self.model.max_length)
        )
        return self._played("whole", [filled[0]], filled[1])[:rows, :width]

    def _filled(
        self, ids_RL: Tensor, attention_RL: Tensor | None, rows: int, columns: int
    ) -> tuple[Tensor, Tensor | None]:
        """Rows and columns filled up, and which columns are tokens; None where all are."""
        more = columns - ids_RL.shape[1]
        if more and attention_RL is None:
            attention_RL = torch.ones_like(ids_RL)
        tables = [None if table is None else pad(table, (0, more)) for table in (ids_RL, attention_RL)]
        ids, attention = (
            None if table is None else torch.cat([table, table[-1:].expand(rows - len(table), -1)]) for table in tables
        )
        assert ids is not None
        return ids, attention

    def _played(self, kind: str, given: list[Tensor], attention_RL: Tensor | None) -> Tensor:
        """Play the recording of these shapes with these numbers; make it where there is none."""
        if attention_RL is not None:
            given = [*given, attention_RL]
        key = (kind, attention_RL is not None, *(tuple(one.shape) for one in given))
        if key not in self._held:
            held = [one.clone() for one in given]
            self._held[key] = held, self.record(getattr(self, f"_{kind}"), held)
            if len(self._held) > MOST:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        held, play = self._held[key]
        for there, one in zip(held, given, strict=True):
            there.copy_(one)
        return play().clone()  # the next of the same shape writes where this one lies

    # What is recorded: nothing in it may look at a number on the host.

    def _whole(self, ids_RL: Tensor, attention_RL: Tensor | None = None) -> Tensor:
        return self.model.hidden(ids_RL, attention_RL)

    def _fill(self, ids_RL: Tensor, slots_R: Tensor, attention_RL: Tensor | None = None) -> Tensor:
        return self.model.hidden_window(ids_RL, attention_RL, self.caches.aim(slots_R, ids_RL.shape[1], False))

    def _window(self, ids_RL: Tensor, slots_R: Tensor, window_RW: Tensor, attention_RL: Tensor | None = None) -> Tensor:
        cache = self.caches.aim(slots_R, ids_RL.shape[1], True)
        hidden_RWD = self.model.hidden_columns(ids_RL, attention_RL, cache, window_RW)
        return hidden_RWD[:, :-1] if self.model.shift else hidden_RWD


def _rows(rows: int, slots: int) -> int:
    """The next power of two, no more than there are slots."""
    return min(1 << (rows - 1).bit_length(), slots)


def _columns(width: int, context: int) -> int:
    """Filled up, no further than the model was made for."""
    return max(width, min(-(-width // COLUMNS) * COLUMNS, context))

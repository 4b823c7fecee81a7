"""The engine that every decoding of a diffusion model stands on: a pool of slots, and rows that come and go at any step.

Each row follows its own settings, random numbers and steps, so its tokens are those it has alone, whatever shares the pool
with it: exact mode is the plain sampler's, fast mode goes through blocks of its own. What rows share is the work: one
evaluation of the network for rows of like length, one judgement for rows with like settings, both without a loop over rows.
The host reads from the device once a step where a row's course depends on what was committed (fast mode, and the public
samplers, which may draw the mask itself), or somebody looks on; else when a row is done.

Fast mode, approximate and never compared token for token with exact: blocks from left to right, several commits a step,
cached keys and values, and an early stop: a row is finished once a stop token and everything before it are committed.
What lies behind it was not decoded, and what was, is dropped: the answer of a row ends with its first stop token, as that
of an AR model does, so every token of a trajectory has the step that committed it. A row's steps are its own evaluations.

Shapes: R rows of one evaluation or judgement, L columns, P places, N candidates, K committed, D hidden size, V vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.decoding import graphs, selection
from dcoder_cli.decoding.canvas import Canvas
from dcoder_cli.decoding.evaluation import Together
from dcoder_cli.decoding.heads import CandidateHead
from dcoder_cli.decoding.proposal import Candidates, Proposal, needs_order, propose
from dcoder_cli.decoding.reach import Reach, reach
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.decoding.rows import Decoded, Slot, Ticket, evaluations
from dcoder_cli.diffusion import unmasking
from dcoder_cli.model.backbone import Model


class Engine:
    """Decodes rows of a diffusion model, up to `slots` at a time.

    `add` rows and take them from `run`, or call `step` and go on adding.

    Args:
        together: rows enter when all slots are empty only, as batches of the public samplers do, whose topk sees the pads
            of a batch.
    """

    def __init__(self, model: Model, slots: int, together: bool = False) -> None:
        self.model, self.slots, self.together = model, slots, together
        self._canvas = Canvas(model, slots)
        self._evaluation = graphs.evaluator(model, slots)
        self._head = CandidateHead(model)
        self._waiting: deque[Ticket] = deque()
        self._rows: dict[int, Slot] = {}  # by slot
        self._stops = torch.tensor(sorted(model.ids.stops), device=model.device)

    def add(self, ticket: Ticket) -> None:
        """Let a row wait for a slot."""
        self._waiting.append(ticket)

    def drop(self, ticket: Ticket) -> bool:
        """Take a row out, waiting or half decoded; whether it was there."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            return True
        for slot, row in self._rows.items():
            if row.ticket is ticket:
                del self._rows[slot]
                return True
        return False

    @property
    def waiting(self) -> int:
        """Rows without a slot."""
        return len(self._waiting)

    @property
    def decoding(self) -> int:
        """Rows in slots."""
        return len(self._rows)

    def run(self) -> Iterator[Decoded]:
        """Decode all rows; each as it is done."""
        while self._waiting or self._rows:
            yield from self.step()

    @torch.no_grad()
    def step(self) -> list[Decoded]:
        """One step of every row; those that are done by it leave their slots."""
        self._admit()
        rows = list(self._rows.values())
        for together, kind in evaluations(rows):
            self._evaluate(together, kind, len(rows))
        for row in rows:
            row.prepare()
        done = [row for row in rows if row.over]
        for row in done:
            del self._rows[row.slot]
        return [self._decoded(row) for row in done]

    def _admit(self) -> None:
        if self.together and self._rows:
            return
        free = [slot for slot in range(self.slots) if slot not in self._rows]
        entering = [(slot, self._waiting.popleft()) for slot in free[: len(self._waiting)]]
        longest = max((ticket.request.length for _, ticket in entering), default=0)
        now = time.perf_counter()
        for slot, ticket in entering:
            row = Slot.of(ticket, slot, longest if self.together else ticket.request.length, now)
            self._canvas.put(slot, ticket.request)
            row.prepare()
            self._rows[slot] = row

    def _decoded(self, row: Slot) -> Decoded:
        columns = self._canvas.read(row.slot, row.first, row.kept)
        batch = round(row.forwards / row.share, 3) if row.share else 1.0
        return Decoded(row.ticket, columns, row.forwards, batch, time.perf_counter() - row.began)

    def _evaluate(self, rows: list[Slot], kind: str, sharing: int) -> None:
        """Evaluate rows together, then judge and commit those with like settings together."""
        slots = [row.slot for row in rows]
        ids_RL, attention_RL = self._canvas.rows(slots)
        starts = [row.window()[0] for row in rows] if kind == "window" else [0] * len(rows)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for place, row in enumerate(rows):
            row.forwards += 1
            row.share += 1 / sharing
            row.age = 1 if kind == "fill" else row.age + 1
            alike.setdefault((*row.judged, row.count is None), []).append(place)
        groups = [
            reach(self._canvas, [rows[place] for place in places], places, [starts[place] for place in places])
            for places in alike.values()
        ]
        ends = [row.window()[1] for row in rows] if kind == "window" else []
        row_N, seen_N = torch.cat([group.at_N for group in groups]), torch.cat([group.seen_N for group in groups])
        if kind != "window" and self.model.shift:
            seen_N = (seen_N - 1).clamp(min=0)  # a window begins one column earlier; rows have no pads on their left
        hidden_RWD = self._evaluation(Together(kind, slots, ids_RL, attention_RL, starts, ends, row_N, seen_N))
        for group in groups:
            blind_RLD = None
            if group.rows[0].ticket.settings.cfg_scale:
                attention = attention_RL if attention_RL is None else attention_RL[group.at]
                blind_RLD = self._blind(group.rows, ids_RL[group.at], attention)
                for row in group.rows:
                    row.forwards += 1
                    row.share += 1 / sharing
            self._judge(group, hidden_RWD[group.at_N, group.seen_N], blind_RLD)

    def _blind(self, rows: list[Slot], ids_RL: Tensor, attention_RL: Tensor | None) -> Tensor:
        """Hidden states without the prompt: it is masked, what was committed stays (LLaDA's guidance)."""
        column_L = torch.arange(ids_RL.shape[1], device=ids_RL.device)
        first_R1, size_R1 = self._numbers([[row.first, row.ticket.request.new_tokens] for row in rows])[..., None]
        new_RL = (column_L >= first_R1) & (column_L < first_R1 + size_R1)
        return self._evaluation.whole(torch.where(new_RL, ids_RL, self._canvas.mask), attention_RL)

    def _numbers(self, of_rows: Sequence[Sequence[int]]) -> Tensor:
        """Numbers of rows as one tensor on the device, [numbers, R]."""
        return torch.tensor(of_rows, device=self.model.device).T

    def _judge(self, group: Reach, hidden_ND: Tensor, blind_RLD: Tensor | None) -> None:
        """A token and a score for every candidate of rows with like settings; commit the surest."""
        rows, table, place_N, column_N, slot_R = group.rows, group.table, group.place_N, group.column_N, group.slot_R
        settings = rows[0].ticket.settings
        # 1. Logits of the masks of each row's block; a token and a score for each.
        candidates = self._candidates(rows, settings, table, place_N)
        blind_ND = None if blind_RLD is None else blind_RLD[table.row_N, column_N]
        counts = None if rows[0].count is None else [int(row.count or 0) for row in rows]
        looked = any(row.ticket.observer for row in rows)
        # What is committed is known to the host only where it need not wait for it: elsewhere all are measured.
        whole = looked or settings.commit == "entropy-bound" or self.model.device.type != "cpu"
        proposal = propose(
            self.model, settings, unmasking.canonical(settings.rule), self._head.at(settings, hidden_ND, blind_ND),
            candidates, counts is None or looked, whole,
        )  # fmt: skip
        self._show(rows, table, place_N, proposal)
        # 2. The surest are committed.
        chosen, rank_N = selection.choose(settings, proposal, candidates, table, counts)
        self._note_ties(group, chosen)
        row_K, at_K = chosen.row_K, chosen.at_K
        confidence_K, entropy_K = proposal.own_at(at_K, chosen.taken_K)
        self._canvas.write(
            slot_R[row_K], column_N[at_K], place_N[at_K], proposal.tokens_N[at_K], group.step_R[row_K],
            confidence_K, entropy_K, chosen.tied_N[at_K], chosen.taken_K,
        )  # fmt: skip
        self._tell(rows, chosen, rank_N, place_N, proposal.tokens_N)
        self._follow(group, counts)
        for row in rows:
            row.step += 1

    def _candidates(self, rows: list[Slot], settings: Settings, table: selection.Ragged, place_N: Tensor) -> Candidates:
        def drawn(name: str, wanted: bool) -> Tensor | None:
            if not wanted:
                return None
            longest = max(row.ticket.request.new_tokens for row in rows)
            numbers_RP = torch.zeros(len(rows), longest)
            for numbers_P, row in zip(numbers_RP, rows, strict=True):
                numbers_P[: row.ticket.request.new_tokens] = getattr(row.draws, name)
            return numbers_RP.to(place_N.device)[table.row_N, place_N]

        lengths = [row.left for row in rows]
        columns = widths = None
        if settings.tie_break == "topk":
            starts = [row.pads + row.first for row in rows]
            columns = [part + start for part, start in zip(torch.split(place_N, lengths), starts, strict=True)]
            widths = [row.pads + row.length for row in rows]
        return Candidates(
            lengths, place_N, drawn("tokens", settings.temperature > 0),
            drawn("order", needs_order(unmasking.canonical(settings.rule), settings)),
            drawn("ties", settings.tie_break == "random"), columns, widths,
        )  # fmt: skip

    def _note_ties(self, group: Reach, chosen: selection.Chosen) -> None:
        """Note since when each candidate stands in a tie, and from which step on those that are committed could have been."""
        canvas, place_N = self._canvas, group.place_N
        slot_N, step_N = group.slot_R[group.table.row_N], group.step_R[group.table.row_N]
        since_N = canvas.since_SP[slot_N, place_N]
        since_N = torch.where((since_N < 0) & chosen.tied_N, step_N, since_N)
        from_N = torch.where(since_N >= 0, since_N, step_N)
        at_K = chosen.at_K
        slot_K, place_K, from_K = slot_N[at_K], place_N[at_K], from_N[at_K]
        if chosen.taken_K is not None:
            from_K = torch.where(chosen.taken_K, from_K, canvas.tied_from_SP[slot_K, place_K])
        canvas.tied_from_SP[slot_K, place_K] = from_K
        canvas.since_SP[group.slot_R] = -1
        canvas.since_SP[slot_N, place_N] = torch.where(chosen.tied_N, since_N, -1)

    def _show(self, rows: list[Slot], table: selection.Ragged, place_N: Tensor, proposal: Proposal) -> None:
        """Tell observers every candidate, with the model's confidence and entropy."""
        if not any(row.ticket.observer for row in rows):
            return
        own = proposal.own
        assert own is not None and own.best_N is not None and own.entropy_N is not None
        places, best, entropy = place_N.tolist(), own.best_N.tolist(), own.entropy_N.tolist()
        start = 0
        for row in rows:
            here = slice(start, start + row.left)
            start = here.stop
            if row.ticket.observer is not None:
                row.ticket.observer(row.step, row.ticket.request.index, places[here], best[here], entropy[here])

    def _tell(
        self, rows: list[Slot], chosen: selection.Chosen, rank_N: Tensor, place_N: Tensor, tokens_N: Tensor
    ) -> None:
        """Tell those who look on what each row has just committed, the surest first."""
        if not any(row.ticket.on_commit for row in rows):
            return
        row_K, at_K = chosen.in_order(rank_N)
        told: dict[int, tuple[list[int], list[int]]] = {place: ([], []) for place in range(len(rows))}
        for place, position, token in torch.stack([row_K, place_N[at_K], tokens_N[at_K]]).T.tolist():
            told[place][0].append(position)
            told[place][1].append(token)
        for row, (positions, tokens) in zip(rows, told.values(), strict=True):
            if row.ticket.on_commit is not None:
                row.ticket.on_commit(row.step, row.ticket.request.index, positions, tokens)

    def _follow(self, group: Reach, counts: list[int] | None) -> None:
        """Learn how many masks are left in each row's block, and whether its answer is complete."""
        rows = group.rows
        settings = rows[0].ticket.settings
        early = [row for row in rows if row.ticket.settings.early_stop]
        if counts is not None and settings.compat is None:  # a mask is never drawn: the host knows
            for row, count in zip(rows, counts, strict=True):
                row.left -= count
            if not early:
                return
        masked_RP = self._canvas.masked_SP[group.slot_R]
        found = [(masked_RP & group.inside_RP).sum(dim=-1)]
        if early and len(self._stops):
            found.append(self._answers(group.slot_R, group.first_R, masked_RP))
        told = torch.stack(found).tolist()
        for place, row in enumerate(rows):
            row.left = told[0][place]
            if len(told) > 1 and row.ticket.settings.early_stop and told[1][place] <= row.ticket.request.new_tokens:
                row.kept, row.over = told[1][place], True

    def _answers(self, slot_R: Tensor, first_R: Tensor, masked_RP: Tensor) -> Tensor:
        """Of each row the new tokens up to its first stop token, where all before it are committed; P + 1 where not. [R]."""
        places = masked_RP.shape[1]
        place_P = torch.arange(places, device=masked_RP.device)
        column_RP = (first_R[:, None] + place_P).clamp(max=self._canvas.ids_SL.shape[1] - 1)
        tokens_RP = self._canvas.ids_SL[slot_R].gather(-1, column_RP)
        whole_RP = masked_RP.long().cumsum(dim=-1) == 0  # it and everything before it are committed
        ends_RP = (tokens_RP[..., None] == self._stops).any(dim=-1) & whole_RP
        return torch.where(ends_RP, place_P + 1, places + 1).amin(dim=-1)

"""How often a training step makes the host wait for the device: once, to judge loss and gradients before the update.

There is no GPU in the default tests. Tensors on the meta device have a shape and no numbers: whatever looks at a number of
theirs, or needs one to know a shape, raises. So a step that runs on it looks at nothing.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_model, make_shards, make_tokenizer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dcoder_cli import load
from dcoder_cli.base.config import build
from dcoder_cli.base.errors import WorkFailed
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.data.batches import RowOrder, RowRules
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.model.attention import use
from dcoder_cli.model.backbone import Model
from dcoder_cli.training import setup
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.context import Context
from dcoder_cli.training.denoise import train
from dcoder_cli.training.feed import Feed
from dcoder_cli.training.objective import TokenLoss, sent, token_losses

SMALL = {
    "precision": "fp32", "global_batch": 4, "micro_batch": 2, "steps": 4, "evaluate_every": 0, "checkpoint_every": 0,
    "anneal_steps": 10, "truncate_share": 0.5, "prefetch": 2, "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("waiting")
    tokenizer = make_tokenizer()
    make_model(folder / "model", tokenizer=tokenizer)
    make_shards(folder / "pretrain", tokenizer)
    return folder


def feed(place: Path, stage: int, device: torch.device, **changes: Any) -> Feed:
    config = build(StageConfig, SMALL, changes)
    shards = ShardSet.open(place / "pretrain")
    rules = RowRules(0, 1, True, truncate_share=config.truncate_share)
    mask_id = None if stage == 0 else 3
    return Feed(shards, rules, config, stage, mask_id, RowOrder(len(shards), 0), range(4), device)


def one_step(module: TokenLoss, source: Feed, step: int = 0) -> Tensor:
    """What the loop does with the rows of a step, up to the numbers that it looks at."""
    rows = source.step(step)
    device = source.device
    pattern_LL = None if rows.pattern_LL is None else sent(rows.pattern_LL, device)
    loss_sum = torch.zeros((), device=device)
    for example in rows.examples:
        weighted, _ = token_losses(
            module, example, pattern_LL, source.stage == 0, source.config.isolate_documents, device
        )
        loss = weighted / rows.denominator
        loss.backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    return torch.stack([loss_sum, norm])


def on_meta(model: Model, attention: str) -> TokenLoss:
    model.implementation = attention
    use(model.network, attention)
    return TokenLoss(model.to("meta"))


def test_meta_tensors_raise_where_a_gpu_would_wait() -> None:
    mask_BL = torch.ones(2, 3, dtype=torch.bool, device="meta")
    for look in (lambda: float(mask_BL.sum()), lambda: bool(mask_BL.all()), lambda: mask_BL.cpu(), lambda: mask_BL.nonzero(), lambda: mask_BL[mask_BL], lambda: mask_BL.tolist()):  # fmt: skip
        with pytest.raises((RuntimeError, NotImplementedError)):
            look()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_forward_and_backward_look_at_no_number(place: Path, stage: int, attention: str, checkpointing: bool) -> None:
    """With cut rows, the annealed mask (stage 1), documents apart (stage 2) and the AR objective (stage 0)."""
    model = load(place / "model", device="cpu")
    if checkpointing:
        setup.recompute_activations(model.network)
    module = on_meta(model, attention)
    module.train()
    source = feed(place, stage, torch.device("meta"), isolate_documents=stage == 2)
    rows = source.step(0)
    assert any(example.batch.attention_mask_BL is not None for example in rows.examples)
    assert (rows.pattern_LL is not None) == (stage == 1)
    numbers = one_step(module, source)
    assert numbers.shape == (2,) and numbers.is_meta


class Looks(TorchDispatchMode):
    """Counts what would make the host wait, were the tensors on a GPU. It sees its own thread only."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        indexed = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero") or indexed:
            self.seen[name] += 1
        return function(*args, **(kwargs or {}))


def test_a_step_of_the_loop_looks_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are another thread's work here, and none is cut (a mask on the CPU is looked at; see above for others). What is counted is the difference between runs of 4 and 9 steps."""
    lists = 0
    real = Tensor.tolist

    def tolist(self: Tensor) -> Any:
        nonlocal lists
        lists += 1
        return real(self)

    monkeypatch.setattr(Tensor, "tolist", tolist)
    counts = []
    for steps in (4, 9):
        lists = 0
        config = build(
            StageConfig, SMALL, {"steps": steps, "evaluate_rows": 1, "anneal_steps": 4, "truncate_share": 0.0}
        )
        with Looks() as looks:
            train(
                1,
                str(place / "model"),
                str(place / "pretrain"),
                str(tmp_path / str(steps)),
                config,
                device="cpu",
                quiet=True,
            )
        counts.append((looks.seen, lists))
    assert counts[1][0] == counts[0][0], "no look but that of the update"
    assert counts[1][1] - counts[0][1] == 5, "one transfer a step"


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_gpus_host_waits_for_nothing_in_a_step(place: Path, attention: str, tmp_path: Path) -> None:
    """Heads of 16, which every kernel takes."""
    from dcoder_cli.model.attention import flash_attention_available

    if attention == "flash_attention_2" and not flash_attention_available():
        pytest.skip("needs the package flash-attn")
    device = torch.device("cuda", 0)
    make_model(tmp_path / "model", hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    model = load(tmp_path / "model", device=device, dtype="bfloat16", attention=attention)
    module = TokenLoss(model)
    module.train()
    source = feed(place, 2, device, attention=attention, isolate_documents=True)
    one_step(module, source)  # kernels are loaded, memory is had
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        numbers = one_step(module, source)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert torch.isfinite(numbers).all()


class Two:
    """An accelerator of two processes, of which the other one always brings the same numbers."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, other: list[float]) -> None:
        self.other, self.reductions = torch.tensor(other, dtype=torch.float64), 0

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum" and tensor.dtype == torch.float64
        self.reductions += 1
        return tensor + (self.other if tensor.numel() == 3 else 7.0)

    def clip_grad_norm_(self, parameters: Any, most: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, most)


def context(accelerator: Any, tmp_path: Path) -> Context:
    config = build(StageConfig, {"optimizer": {"max_grad_norm": 5.0}})
    made = Context(2, "mid", config, RunFolder(tmp_path), accelerator, False, 0, {}, None, None, False)
    made.module = torch.nn.Linear(2, 1, bias=False)
    made.optimizer = torch.optim.SGD(made.module.parameters(), lr=0.1)
    made.module.weight.grad = torch.tensor([[3.0, 4.0]])
    return made


def test_loss_norm_and_stops_of_all_processes_come_in_one_collective(tmp_path: Path) -> None:
    """The other process brings loss 2 and norm 5 and was asked to stop. This one's own norm is told, and nothing is summed twice."""
    two = Two([2.0, 5.0, 1.0])
    made = context(two, tmp_path)
    update = made.update(0, 10, torch.tensor(0.5))
    assert (update.loss, update.grad_norm, two.reductions) == (2.5, 5.0, 1)
    assert made.stop_asked() and two.reductions == 1
    made.stop_asked()
    assert two.reductions == 2, "without an update since, it asks"
    divisor = made.divisor(4.0)
    assert isinstance(divisor, Tensor) and divisor.dtype == torch.float32 and float(divisor) == 11.0
    quiet = context(Two([2.0, 5.0, 0.0]), tmp_path)
    quiet.update(0, 10, 0.1)
    assert not quiet.stop_asked()


@pytest.mark.parametrize(("other", "what"), [([float("nan"), 5.0, 0.0], "loss became nan"), ([2.0, float("inf"), 0.0], "gradient norm became inf")])  # fmt: skip
def test_what_is_not_finite_on_the_other_process_stops_this_one(other: list[float], what: str, tmp_path: Path) -> None:
    made = context(Two(other), tmp_path)
    before = made.module.weight.clone()
    with pytest.raises(WorkFailed, match=what):
        made.update(0, 10, torch.tensor(0.5))
    assert torch.equal(made.module.weight, before)


def test_one_process_gives_its_loss_as_it_is(tmp_path: Path) -> None:
    """A float keeps its 53 bits: stage 4 gives one."""
    alone = Two([])
    alone.num_processes = 1
    assert context(alone, tmp_path).update(0, 10, 0.1).loss == 0.1
    assert context(alone, tmp_path).divisor(0.5) == 1.0 and alone.reductions == 0

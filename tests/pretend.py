"""A device that is the CPU under another name, `pretend`: operations that mix its tensors with the CPU's raise, as on a GPU.

Numbers are computed by the CPU's kernels, so a whole run can be followed through it, tokens and losses included. What a
GPU allows is allowed: indices on the CPU, numbers without dimensions, copies between devices.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

aten = torch.ops.aten
NAME = "pretend"
# Operations that take tensors of two devices. For `index` and `index_put` the places of the arguments that must not differ.
_COPIES = {"copy_", "_to_copy"}
_INDEXED = {"index": [0], "index_put": [0, 2], "index_put_": [0, 2], "_index_put_impl_": [0, 2], "_unsafe_index": [0]}


@functools.cache
def device() -> torch.device:
    """The device, known to PyTorch from the first call on. Raises AttributeError where PyTorch cannot have one (before 2.9)."""
    from torch.utils import backend_registration

    class Backend(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

        def is_autocast_enabled(self) -> bool:
            return False

        def get_rng_state(self, *_: Any) -> Tensor:
            return torch.empty(0)

        def set_rng_state(self, *_: Any) -> None:
            pass

    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())  # type: ignore[no-untyped-call]
    return torch.device(NAME, 0)


class PretendTensor(Tensor):
    """Holds the numbers in `inner`, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=device(),
        )  # fmt: skip
        made.inner = inner
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = function.overloadpacket.__name__
    tensors = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    ours = [one for one in tensors if isinstance(one, PretendTensor)]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    here = bool(ours) if asked is None else asked.type == NAME
    if name not in _COPIES and ours:
        checked = tensors
        if name in _INDEXED:
            checked = [args[place] for place in _INDEXED[name]]
        for one in checked:
            if not isinstance(one, PretendTensor) and one.dim() > 0:
                raise RuntimeError(
                    f"{name}: expected all tensors on {device()}, found one of {tuple(one.shape)} on {one.device}"
                )
    source = kwargs.get("generator")
    if ours and source is not None and source.device.type != NAME:
        raise RuntimeError(f"{name}: expected a generator on {device()}, found one on {source.device}")
    if asked is not None and asked.type == NAME:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain_kwargs = pytree.tree_map_only(PretendTensor, lambda one: one.inner, (args, kwargs))
    found = function(*plain_args, **plain_kwargs)
    if name == "copy_":
        return args[0]
    if here:
        found = pytree.tree_map_only(Tensor, PretendTensor, found)
    if not ours or not here:
        return found
    return return_and_correct_aliasing(function, args, kwargs, found)


class _Factories(TorchDispatchMode):
    """What is made on the device, or sent to it: no tensor of it is among the arguments yet."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = (kwargs or {}).get("device")
        if asked is not None and torch.device(asked).type == NAME:
            return _run(function, args, kwargs)
        return function(*args, **(kwargs or {}))


class _NoOperation(TorchFunctionMode):
    """What PyTorch does on its way to an operation: numbers as a list, a list of indices sent to the device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.tolist and isinstance(args[0], PretendTensor):
            return args[0].detach().inner.tolist()
        if function in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], PretendTensor):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            places = tuple(torch.tensor(one) if isinstance(one, list) else one for one in places)
            args = (args[0], places, *args[2:])
        if (
            function in (torch.tensor, torch.as_tensor)
            and torch.device((kwargs or {}).get("device", "cpu")).type == NAME
        ):
            return function(*args, **{**kwargs, "device": "cpu"}).to(device())
        return function(*args, **(kwargs or {}))


@contextmanager
def pretending() -> Iterator[torch.device]:
    """Within it tensors can be made on the device, and modules moved to it."""
    chosen = device()
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter keeps being itself: tied ones stay tied
    try:
        with _Factories(), _NoOperation():
            yield chosen
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)

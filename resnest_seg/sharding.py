"""FSDP2: each process holds a part of every weight, gradient and optimiser state; files hold them whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

UNIT = 1_000_000
"""Parameters from which on a child module is gathered on its own, while its neighbours stay split."""


def shard(model: nn.Module, *, processes: int, device: str) -> None:
    """Split a model's parameters over all processes, in place; buffers stay whole on each.

    Children of at least `UNIT` parameters, at any depth, are gathered one at a time for the forward and backward pass.

    Args:
        model: The model, on its device, with the same values on every process.
        processes: How many there are.
        device: "cuda" or "cpu".
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (processes,))
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP2 takes no other
    for module in reversed(list(model.modules())[1:]):  # children before parents
        own = sum(p.numel() for p in module.parameters() if not hasattr(p, "full_tensor"))
        called = not isinstance(module, nn.ModuleList | nn.ModuleDict)  # or FSDP2 would never gather it
        if own >= UNIT and called:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with their split ones gathered: all processes must call this together."""
    return {key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in tensors.items()}


def part_like(value: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor that belongs to `parameter`; itself if that is whole or of other shape."""
    if not hasattr(parameter, "full_tensor") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


@contextlib.contextmanager
def gradients_stay(model: nn.Module) -> Iterator[None]:
    """Within this, the backward pass of a split model adds gradients up without sending them."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)

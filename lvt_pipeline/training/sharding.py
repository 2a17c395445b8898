"""Memory of a training: weights split over its ranks ("fsdp"), and activations computed twice instead of kept.

Under "fsdp" every rank keeps its part of every weight, of its gradient, its moving average and its optimizer state. A
repeated block (a layer of a transformer) is put together when it computes and taken apart again. Nothing outside a
training sees this: whole tensors are saved, as one process would save them, so a run may be resumed with another number
of ranks, or with whole copies ("ddp").

All functions take ordinary tensors as well and leave them as they are. Those that put tensors together must be called
by all ranks at the same time.

Activation checkpointing keeps the input of every repeated block (a layer of a transformer, a residual block) and
computes the rest again. These blocks have no randomness and no state of their own, so both times give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.training.distributed import Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The children, with parts of their own, of every list of modules of one type."""
    blocks: list[nn.Module] = []
    for parent in model.modules():
        if not isinstance(parent, nn.ModuleList | nn.Sequential):
            continue
        children = list(parent)
        if len({type(child) for child in children}) == 1 and len(list(children[0].children())) > 1:
            blocks += children
    return blocks


def checkpoint_activations(model: nn.Module) -> int:
    """Make the repeated blocks of a model compute their activations twice.

    Names of weights stay, and so does what the model computes. Do it after copying a model: a copy would share the
    original's blocks.

    Returns:
        the number of blocks.
    """
    blocks = repeated_blocks(model)
    for block in blocks:
        _wrap_block(block)
    return len(blocks)


def shard(model: nn.Module, ranks: Ranks) -> None:
    """Leave each rank its part of every parameter of a model that is the same in all ranks.

    Names of weights stay. From here on, `model(...)` puts weights together and its backward pass adds up the gradients
    of all ranks; methods other than the call find parts only. Every rank has to call it equally often.

    Args:
        model: on the CPU or the rank's device; its parts are on the device afterwards.

    Raises:
        ConfigError: this version of torch cannot do it.
    """
    import torch.distributed.fsdp
    from torch.distributed.device_mesh import init_device_mesh

    if not hasattr(getattr(torch.distributed.fsdp, "FSDPModule", None), "set_force_sum_reduction_for_comms"):
        raise ConfigError(
            f'training.parallel="fsdp" needs a newer torch than {torch.__version__}, which cannot shard and sum; '
            'upgrade torch, or use training.parallel="ddp"'
        )
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for part in (*repeated_blocks(model), model):
        fully_shard(part, mesh=mesh)
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)  # the sum: the loop divides by the weight of the whole batch
        part.set_force_sum_reduction_for_comms(True)  # the CPU's backend knows no other


def local_part(value: Tensor) -> Tensor:
    """The part of a tensor that this rank holds; it shares memory with it."""
    return value.to_local() if _is_sharded(value) else value


def whole_tensor(value: Tensor) -> Tensor:
    """A tensor put together from the parts of all ranks."""
    return value.full_tensor() if _is_sharded(value) else value


def whole_weights(model: nn.Module, is_kept: bool) -> dict[str, Tensor]:
    """The state dict of a model, parts put together and brought to the CPU.

    Args:
        is_kept: whether this rank wants it; the others help and get {}.
    """
    return _collect(model.state_dict(), is_kept)


def load_whole_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a model its weights, of which a sharded one takes its parts."""
    own = model.state_dict()
    model.load_state_dict({name: _as_held(value, own.get(name)) for name, value in weights.items()})


def whole_optimizer_state(optimizer: torch.optim.Optimizer, is_kept: bool) -> dict[str, Any]:
    """`optimizer.state_dict()` as one process would have it; see `whole_weights`."""
    state = optimizer.state_dict()
    return {**state, "state": {number: _collect(entry, is_kept) for number, entry in state["state"].items()}}


def load_whole_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimizer its state, of which one over sharded parameters takes its parts."""
    parameters = [value for group in optimizer.param_groups for value in group["params"]]

    def held(number: int, entry: Mapping[str, Any]) -> dict[str, Any]:
        # Counts of steps have no axes and stay whole.
        return {
            name: _as_held(value, parameters[number]) if isinstance(value, Tensor) and value.ndim else value
            for name, value in entry.items()
        }

    optimizer.load_state_dict(
        {**state, "state": {number: held(number, entry) for number, entry in state["state"].items()}}
    )


def _collect(tensors: Mapping[str, Any], is_kept: bool) -> dict[str, Any]:
    result = {}
    for name, value in tensors.items():
        # One after another: a device never holds more than one whole tensor in addition to its parts.
        whole = whole_tensor(value).cpu() if _is_sharded(value) else value
        if is_kept:
            result[name] = whole
    return result


def _is_sharded(value: Any) -> TypeGuard[DTensor]:
    from torch.distributed.tensor import DTensor  # takes half a second, which only a training should pay

    return isinstance(value, DTensor)


def _as_held(value: Tensor, like: Tensor | None) -> Tensor:
    """A whole tensor as `like` is held: this rank's part of it, or itself."""
    if not _is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    with torch.no_grad():
        # Every rank has read the same whole tensor, so nothing is sent.
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _wrap_block(block: nn.Module) -> None:
    forward = block.forward

    def twice(*arguments: Any) -> Any:
        if not any(isinstance(value, Tensor) and value.requires_grad for value in arguments):
            return forward(*arguments)
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False)

    block.forward = twice

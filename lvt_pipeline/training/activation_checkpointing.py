"""Less memory for activations: the repeated blocks of a model keep their input only and compute the rest again.

The blocks are those that hold most activations: layers of a transformer, residual blocks of an autoencoder. They have
no randomness and no state of their own, so computing them twice gives the same bits.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The children, with parts of their own, of every list of modules that are alike."""
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
        how many blocks there are.
    """
    blocks = repeated_blocks(model)
    for block in blocks:
        _wrap(block)
    return len(blocks)


def _wrap(block: nn.Module) -> None:
    forward = block.forward

    def twice(*arguments: Any) -> Any:
        if not any(isinstance(value, Tensor) and value.requires_grad for value in arguments):
            return forward(*arguments)
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False)

    block.forward = twice

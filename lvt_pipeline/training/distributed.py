"""The processes that `torchrun` started to train one model together."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lvt_pipeline.models.device import choose_device

Value = TypeVar("Value")

_MEETINGS = itertools.count()


@dataclass(frozen=True)
class Ranks:
    """The processes that train one model together, as seen from one of them."""

    rank: int
    size: int
    device: torch.device

    def sum_(self, values: Tensor) -> None:
        """Add up `values` over the ranks, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(values)

    def agree(self, flags: list[bool]) -> list[bool]:
        """Which flags are set in any of the ranks."""
        if self.size == 1:
            return flags
        values = torch.tensor(flags, dtype=torch.float32, device=self.device)
        torch.distributed.all_reduce(values)
        return [value > 0 for value in values.tolist()]

    @contextmanager
    def in_turn(self, opening: Callable[..., AbstractContextManager[Value]]) -> Iterator[Value]:
        """Enter a context in rank 0, with `is_writer`, and only then in the others."""
        if self.rank > 0:
            self.wait()
        with opening(is_writer=self.rank == 0) as opened:
            if self.rank == 0:
                self.wait()
            yield opened

    def share(self, value: Value) -> Value:
        """What rank 0 has, in every rank: any plain data."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            torch.distributed.barrier()


@contextmanager
def joined_ranks(device: str = "auto") -> Iterator[Ranks]:
    """Join the other processes that `torchrun` started, if it did.

    Raises:
        ConfigError: the device is not there.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(0, 1, choose_device(device))
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    torch.distributed.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        # A script may train several times: keys of an earlier meeting are not read again.
        store=PrefixStore(f"lvt/{next(_MEETINGS)}", store),
        rank=rank,
        world_size=size,
    )
    try:
        yield Ranks(rank, size, chosen)
    finally:
        torch.distributed.destroy_process_group()

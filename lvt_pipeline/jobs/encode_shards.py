"""The worker of `encode-dataset`: from frames to shards of codes.

Frames are read by threads, encoded here and written by another thread, with bounded queues between them. They pass
through the encoder in batches of one fixed size that take no notice of where clips and shards end: a frame's codes
depend on the frame and the tokenizer, and not on neighbouring frames. Codes that the store has already, of clips whose
arrays have changed, are copied.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.array import CodeArray
from lvt_pipeline.codes.checks import ShardWriter
from lvt_pipeline.codes.plan import ShardPlan
from lvt_pipeline.codes.schema import CodeClip, CodeSchema
from lvt_pipeline.errors import LVTError, MismatchError
from lvt_pipeline.frames.records import FrameClip, stored_rows
from lvt_pipeline.frames.shards import FrameReader
from lvt_pipeline.jobs.settings import EncodeSettings
from lvt_pipeline.progress import Bar
from lvt_pipeline.runs.read import in_precision, load_vqvae
from lvt_pipeline.storage import Place

if TYPE_CHECKING:
    from torch import Tensor

    from lvt_pipeline.models.vqvae.model import VQVAE

PIECE_BYTES = 2**24  # pixels read at a time
PIECES_AHEAD = 4  # pieces read before they are needed
READERS = 2


@dataclass(frozen=True)
class EncodePlan:
    """A shard to encode, with what is known about the clips of its parts.

    Attributes:
        copies: rows of the clips whose codes the store has already, by id; those are copied.
    """

    shard: ShardPlan
    clips: Mapping[str, FrameClip]
    copies: Mapping[str, CodeClip] = field(default_factory=dict)


@dataclass
class EncodeTally:
    """The counts of an encoding.

    Attributes:
        occurrences: int64 (n_c, K), how often each new code occurs, those of an interrupted run included.
        num_frames: frames encoded by this run.
        read, encode, write: busy seconds of each phase; they overlap.
        waited_for_read, waited_for_write: seconds in which the encoder had nothing to do.
    """

    occurrences: NDArray[np.int64]
    num_frames: int = 0
    read: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    waited_for_read: float = 0.0
    waited_for_write: float = 0.0

    @classmethod
    def empty(cls, schema: CodeSchema) -> EncodeTally:
        """Nothing encoded yet."""
        return cls(np.zeros((schema.num_codebooks, schema.codebook_size), np.int64))

    def count(self, codes: NDArray[Any]) -> None:
        """Add codes (N, h, w, n_c)."""
        for codebook, row in enumerate(self.occurrences):
            row += np.bincount(codes[..., codebook].ravel(), minlength=len(row))

    def add(self, other: EncodeTally) -> None:
        """Add the counts of another part of the work."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def phases(self) -> dict[str, float]:
        """Seconds by phase, rounded for people."""
        names = ("read", "encode", "write", "waited_for_read", "waited_for_write")
        return {name: round(getattr(self, name), 3) for name in names}

    def limited_by(self) -> str:
        """The phase that more speed would help most."""
        if not self.num_frames:
            return ""
        share = {"read": self.waited_for_read, "encode": self.encode, "write": self.waited_for_write}
        return max(share, key=lambda name: share[name])


@dataclass(frozen=True)
class EncodeReceipt:
    """A shard that is on disk: its SHA-256, and the work since the previous receipt."""

    index: int
    digest: str
    tally: EncodeTally


class Encoder(Protocol):
    """What the loop needs of a VQ-VAE."""

    def encode(self, frames: NDArray[np.uint8], batch_size: int) -> Tensor:
        """uint8 (N, H, W, 3) -> int64 (N, h, w, n_c) on the CPU."""


def start_encoder(
    frames: Place, vqvae: Path, writer: ShardWriter, settings: EncodeSettings, device: str
) -> ShardEncoder:
    """The worker in another process, for the tokenizer that the plan was made for.

    Raises:
        MismatchError: the run holds another tokenizer by now.
    """
    model = load_vqvae(vqvae, device=device)
    if tokenizer_of(model, settings.precision) != writer.schema.tokenizer:
        raise MismatchError(f"{vqvae} has changed since the encoding began; run the same command again")
    use_precision(model, settings.precision)
    return ShardEncoder(FrameReader(frames), model, writer, writer.create, settings.batch_size)


def tokenizer_of(model: VQVAE, precision: str | None) -> str:
    """Fingerprint of the tokenizer that a model in this precision is. Call it before `use_precision`."""
    from lvt_pipeline.models.vqvae.model import tokenizer_fingerprint

    return in_precision(tokenizer_fingerprint(model), precision)


def use_precision(model: VQVAE, precision: str | None) -> None:
    """Let a tokenizer's encoder run in this precision from now on. Call it once its fingerprint is known."""
    import torch

    if precision == "bfloat16":
        model.encoder.to(torch.bfloat16)


class ShardEncoder:
    """Encodes shards one after another.

    Args:
        store: where codes are copied from.
        write: puts the codes of a shard, (num_frames, h, w, n_c), and its rows of each side array on disk and returns
            the SHA-256 of the file of the codes.
        batch_size: frames per pass.
    """

    def __init__(
        self,
        frames: FrameReader,
        encoder: Encoder,
        store: ShardWriter,
        write: Callable[[int, NDArray[Any], Mapping[str, NDArray[Any]]], str],
        batch_size: int,
    ) -> None:
        self._frames, self._encoder, self._schema = frames, encoder, store.schema
        self._write_shard, self._batch_size = write, batch_size
        self._published = CodeArray(store.path, store.schema, sizes={})
        self._tally = EncodeTally.empty(store.schema)

    def __call__(
        self, plans: Sequence[EncodePlan], bar: Bar, should_stop: Callable[[], object]
    ) -> Iterator[EncodeReceipt]:
        """Encode these shards, or as many as there are whole ones before a stop."""
        with ThreadPoolExecutor(READERS, "read") as readers, ThreadPoolExecutor(1, "write") as writers:
            codes = self._encoded(_rebatched(self._read_ahead(plans, readers), self._batch_size), bar)
            writing: Future[EncodeReceipt] | None = None
            for plan, shard_codes in self._by_shard(codes, plans, bar):
                # One shard is on its way to the disk while the next one is encoded: a killed run can lose no more.
                if writing is not None:
                    yield self._written(writing)
                writing = writers.submit(self._write, plan, shard_codes)
                if should_stop():
                    break
            if writing is not None:
                yield self._written(writing)

    def _read_ahead(self, plans: Sequence[EncodePlan], readers: ThreadPoolExecutor) -> Iterator[NDArray[np.uint8]]:
        """Frames of the shards in order, in pieces, a few of them read before they are asked for."""
        ahead: deque[Future[tuple[NDArray[np.uint8], float]]] = deque()
        for clip, start, stop in _pieces(plans):
            ahead.append(readers.submit(self._read, clip, start, stop))
            if len(ahead) > PIECES_AHEAD:
                yield self._received(ahead.popleft())
        while ahead:
            yield self._received(ahead.popleft())

    def _read(self, clip: FrameClip, start: int, stop: int) -> tuple[NDArray[np.uint8], float]:
        began = time.monotonic()
        return self._frames.read(clip, start, stop), time.monotonic() - began

    def _received(self, piece: Future[tuple[NDArray[np.uint8], float]]) -> NDArray[np.uint8]:
        began = time.monotonic()
        pixels, seconds = piece.result()
        self._tally.waited_for_read += time.monotonic() - began
        self._tally.read += seconds
        return pixels

    def _encoded(self, batches: Iterator[NDArray[np.uint8]], bar: Bar) -> Iterator[NDArray[np.int64]]:
        for batch in batches:
            began = time.monotonic()
            codes = encode_batch(self._encoder, batch, self._batch_size)
            self._tally.encode += time.monotonic() - began
            self._tally.num_frames += len(batch)
            bar.advance(len(batch))
            yield codes

    def _by_shard(
        self, batches: Iterator[NDArray[np.int64]], plans: Sequence[EncodePlan], bar: Bar
    ) -> Iterator[tuple[EncodePlan, NDArray[Any]]]:
        """Codes of one shard after another: copied, or cut from batches that know nothing of shards."""
        rest = np.empty((0, *self._schema.frame_shape), np.int64)
        for plan in plans:
            codes = np.empty((plan.shard.num_frames, *self._schema.frame_shape), self._schema.dtype)
            filled = 0
            for part in plan.shard.parts:
                end = filled + part.stop - part.start
                if part.clip_id in plan.copies:
                    codes[filled:end] = self._published.read(*plan.copies[part.clip_id].place(part.start, part.stop))
                    bar.advance(end - filled)
                    filled = end
                while filled < end:
                    if not len(rest):
                        rest = next(batches)
                    taken = rest[: end - filled]
                    codes[filled : filled + len(taken)] = taken
                    filled += len(taken)
                    rest = rest[len(taken) :]
            yield plan, codes

    def _write(self, plan: EncodePlan, codes: NDArray[Any]) -> EncodeReceipt:
        tally = EncodeTally.empty(self._schema)
        tally.count(codes)
        began = time.monotonic()
        digest = self._write_shard(plan.shard.index, codes, self._rows_of(plan))
        tally.write = time.monotonic() - began
        return EncodeReceipt(plan.shard.index, digest, tally)

    def _rows_of(self, plan: EncodePlan) -> dict[str, NDArray[Any]]:
        """The rows of a shard in every side array, by name."""
        rows: dict[str, list[NDArray[Any]]] = {array.name: [] for array in self._schema.arrays}
        for part in plan.shard.parts if rows else ():
            found = self._frames.arrays(plan.clips[part.clip_id])
            for array in self._schema.arrays:
                part_rows = array.empty_rows(part.stop - part.start)
                if array.name in found:
                    part_rows[:] = stored_rows(found[array.name])[part.start : part.stop]
                rows[array.name].append(part_rows)
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    def _written(self, writing: Future[EncodeReceipt]) -> EncodeReceipt:
        """Wait until the shard that is being written is on the disk."""
        began = time.monotonic()
        receipt = writing.result()
        self._tally.waited_for_write += time.monotonic() - began
        receipt.tally.add(self._tally)
        self._tally = EncodeTally.empty(self._schema)
        return receipt


def encode_batch(encoder: Encoder, batch: NDArray[np.uint8], batch_size: int) -> NDArray[np.int64]:
    """Codes int64 (N, h, w, n_c) of frames uint8 (N, H, W, 3).

    Raises:
        LVTError: there is not enough memory for a batch.
    """
    import torch

    from lvt_pipeline.models.threads import Threads, product_seconds

    try:
        with Threads(product_seconds(encoder, batch_size) if isinstance(encoder, torch.nn.Module) else 0.0):
            codes: NDArray[np.int64] = encoder.encode(batch, batch_size=batch_size).numpy()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LVTError(
            f"there is not enough memory to encode {batch_size} frames at a time; run the same command again with a "
            "smaller --batch-size. Finished work is kept"
        ) from error
    return codes


def _pieces(plans: Sequence[EncodePlan]) -> Iterator[tuple[FrameClip, int, int]]:
    for plan in plans:
        for part in plan.shard.parts:
            if part.clip_id in plan.copies:
                continue
            clip = plan.clips[part.clip_id]
            length = part.stop - part.start
            if clip.codec == "raw":  # a PNG strip is decoded whole, so it is asked for once
                length = max(1, PIECE_BYTES // (clip.height * clip.width * 3))
            for start in range(part.start, part.stop, length):
                yield clip, start, min(part.stop, start + length)


def _rebatched(pieces: Iterator[NDArray[np.uint8]], size: int) -> Iterator[NDArray[np.uint8]]:
    """The same frames in batches of exactly `size`; only the last may be smaller."""
    waiting: list[NDArray[np.uint8]] = []
    count = 0
    for piece in pieces:
        position = 0
        while count + len(piece) - position >= size:
            taken = size - count
            waiting.append(piece[position : position + taken])
            yield waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
            position += taken
            waiting, count = [], 0
        if position < len(piece):
            waiting.append(piece[position:])
            count += len(piece) - position
    if waiting:
        yield np.concatenate(waiting)

"""Whether the codes of a store are what its tokenizer makes of the frames: some clips encoded and decoded again.

`codes.verify` shows that the bytes are those that were written; this shows that they are the right codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.codes.layout import table_name
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.verify import Problem
from lvt_pipeline.errors import ArtefactError, ConfigError, MismatchError
from lvt_pipeline.evaluation.metrics import mean_squared_error, psnr
from lvt_pipeline.evaluation.pixels import Pixels
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.encode_shards import use_precision
from lvt_pipeline.models.vqvae.model import tokenizer_fingerprint
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.runs.compatibility import require_own_tokenizer
from lvt_pipeline.runs.read import load_vqvae, precision_of
from lvt_pipeline.storage import Place

BATCH_SIZE = 64  # of stores whose record has none
# Another kind of device, or another number type, may round a distance between two code vectors the other way. Swapped
# or shifted clips differ in most codes.
TOLERATED_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class ClipCheck:
    """A clip that was encoded and decoded again.

    Attributes:
        same_codes: share of its codes that came out the same; 1.0 on the kind of device that encoded it.
        psnr: of the decoded codes against the frames, in dB, over the whole clip; None when nothing differs.
    """

    id: str
    frames: int
    same_codes: float
    psnr: float | None


@dataclass(frozen=True, kw_only=True)
class DecodeReport:
    """What encoding and decoding again found.

    Attributes:
        checked: in random order.
        skipped: chosen clips that have other frames now, or none, so that they cannot be checked.
        problems: clips whose codes are not those of their frames, and shards that cannot be read.
    """

    checked: tuple[ClipCheck, ...]
    skipped: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def same_codes(self) -> float | None:
        """Share of equal codes over all clips that were checked."""
        frames = sum(clip.frames for clip in self.checked)
        return sum(clip.same_codes * clip.frames for clip in self.checked) / frames if frames else None

    @property
    def psnr(self) -> float | None:
        """Mean over the clips, in dB."""
        values = [clip.psnr for clip in self.checked if clip.psnr is not None]
        return float(np.mean(values)) if values else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "same_codes": self.same_codes, "psnr": self.psnr}


def verify_codes(
    codes: Place,
    frames: Place,
    vqvae: Path,
    num_clips: int,
    *,
    seed: int = 0,
    generation: int | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> DecodeReport:
    """Encode random clips again and compare; decode their codes and compare with the frames.

    Args:
        num_clips: how many, at most all.
        seed: which; the same seed and store, the same clips.

    Raises:
        ConfigError: `num_clips` is below 1.
        MismatchError: the tokenizer is not the one that made the codes.
        StoreError: there is no store at `codes`.
    """
    if num_clips < 1:
        raise ConfigError(f"{num_clips} clips to decode; ask for at least 1")
    store, shards = open_codes(codes, generation), FrameShards(frames)
    model = load_vqvae(vqvae, device=device)
    require_own_tokenizer(store, vqvae, model)
    use_precision(model, precision_of(store.tokenizer, tokenizer_fingerprint(model)))
    pixels = Pixels(store, shards, model)
    found: dict[type, list[Any]] = {ClipCheck: [], str: [], Problem: []}
    with progress.bar("decode", min(num_clips, len(store.clips)), "clips") as bar:
        for clip in _random_clips(store.clips, num_clips, seed):
            bar.advance()
            for item in _check_clip(pixels, clip):
                found[type(item)].append(item)
    return DecodeReport(checked=tuple(found[ClipCheck]), skipped=tuple(found[str]), problems=tuple(found[Problem]))


def _check_clip(pixels: Pixels, clip: CodeClip) -> Iterator[ClipCheck | Problem | str]:
    """The result for one clip and its problem, if it has one; only its id when its frames are not there."""
    store = pixels.store
    try:
        frames = pixels.real(clip, clip.length)
    except MismatchError:
        yield clip.id
        return
    try:
        stored = store.read(clip)
    except ArtefactError as error:
        yield Problem(file=clip.id, message=f"cannot be read ({error})", clips=(clip.id,))
        return
    result = _checked(pixels, clip, frames, stored)
    yield result
    if result.same_codes < 1 - TOLERATED_SHARE:
        message = f"has a clip of whose codes {1 - result.same_codes:.1%} are not those of its frames"
        yield Problem(file=table_name(store.generation), message=message, clips=(clip.id,))


def _checked(
    pixels: Pixels, clip: CodeClip, frames: NDArray[np.uint8], codes: NDArray[np.unsignedinteger[Any]]
) -> ClipCheck:
    """Encode the frames of a clip again, and decode its codes."""
    # Codes are compared one by one, so frames must pass in batches of the size they were encoded in.
    batch_size = int(pixels.store.provenance.settings.get("batch_size", BATCH_SIZE))
    again = pixels.tokenizer.encode(frames, batch_size=batch_size).numpy()
    quality = psnr(mean_squared_error(frames, pixels.decoded(codes)))
    return ClipCheck(
        id=clip.id,
        frames=clip.length,
        same_codes=float((again == codes).mean()),
        psnr=quality if np.isfinite(quality) else None,
    )


def _random_clips(clips: Sequence[CodeClip], count: int, seed: int) -> list[CodeClip]:
    order = np.random.default_rng(seed).permutation(len(clips))[:count]
    return [clips[index] for index in order]

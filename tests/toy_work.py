"""A tiny work directory, made in a second without any training: frames, tokenizer, codes, prior.

Everything is random but deterministic, and belongs together: the codes are what the tokenizer makes of the frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from lvt_pipeline.codes.schema import CodeSchema, PlannedClip, SideArray, codes_fingerprint
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.frames.records import FrameSample
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.frames.writer import write_frames
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE, tokenizer_fingerprint
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.directory import save_model_run
from lvt_pipeline.video.clips import Note

FRAMES, SIZE, GRID, BOOKS, CODES = 6, 16, 4, 2, 12
SPLITS = {"train": 4, "val": 1, "test": 3}


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """What `config.toml` of a run needs to say about a tokenizer."""

    model: VQVAEConfig = field(
        default_factory=lambda: VQVAEConfig(
            num_codebooks=BOOKS,
            codebook_size=CODES,
            code_width=8,
            stem_width=4,
            residual_width=4,
            num_residual_blocks=1,
        )
    )


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """What `config.toml` of a run needs to say about a prior."""

    model: PriorConfig = field(
        default_factory=lambda: PriorConfig(
            frames=FRAMES,
            grid=(GRID, GRID),
            num_codebooks=BOOKS,
            codebook_size=CODES,
            subscale=(FRAMES, 1, 1),
            kernel=(3, 1, 1),
            width=12,
            head_width=6,
            num_heads=2,
            embedding_width=6,
            encoder_layers=1,
            decoder_layers=1,
        )
    )


def moving_square(seed: int, num_frames: int) -> np.ndarray:
    """A bright square that wanders over a dark picture, uint8 (T, SIZE, SIZE, 3)."""
    generator = np.random.default_rng(seed)
    frames = np.full((num_frames, SIZE, SIZE, 3), 30, np.uint8)
    colour, (x, y) = generator.integers(90, 255, 3), generator.integers(0, SIZE - 5, 2)
    for t in range(num_frames):
        at = (x + t) % (SIZE - 5)
        frames[t, y : y + 5, at : at + 5] = colour
    return frames


def make_frames(
    root: Path,
    lengths: dict[str, int] | None = None,
    splits: dict[str, int] = SPLITS,
    notes: dict[str, tuple[Note, ...]] | None = None,
) -> FrameShards:
    """Clips `train/0`, ..., `test/2`; `lengths` overrides how many frames some have."""
    names = [(split, f"{split}/{number}") for split, count in splits.items() for number in range(count)]
    samples = []
    for seed, (split, name) in enumerate(names):
        frames = moving_square(seed, (lengths or {}).get(name, FRAMES + 2))
        sample = FrameSample.from_array(name, frames, split=split, fps=5.0)
        samples.append(replace(sample, clip=replace(sample.clip, notes=(notes or {}).get(name))))
    write_frames(root, samples, stage="ingest", settings={}, inputs={"manifest": "0" * 64})
    return FrameShards(root)


def make_tokenizer(run: Path, seed: int = 0) -> VQVAE:
    """A VQ-VAE run that was never trained, with codebooks wide enough to use several codes."""
    torch.manual_seed(seed)
    settings = TokenizerSettings()
    model = VQVAE(settings.model)
    with torch.no_grad():
        for book in model.quantizer.codebooks:
            book.table.normal_()
            book.total.copy_(book.table)
            book.size.fill_(1.0)
    counts = {"tokenizer": tokenizer_fingerprint(model)}
    save_model_run(run, "vqvae-run", model, settings, stage="train-vqvae", version=1, counts=counts)
    return model.eval()


def make_codes(path: Path, frames: FrameShards, tokenizer: VQVAE, acting: bool = False) -> CodeStore:
    """Every clip as codes; with random actions, rows of two numbers, where `acting`."""
    fingerprint = tokenizer_fingerprint(tokenizer)
    schema = CodeSchema(
        codebook_size=CODES,
        num_codebooks=BOOKS,
        grid=(GRID, GRID),
        tokenizer=fingerprint,
        arrays=(SideArray(name="action", dtype=np.dtype(np.float32), dimension=2),) if acting else (),
    )
    planned = [
        PlannedClip(
            id=clip.id,
            split=clip.split,
            label=clip.label,
            length=clip.num_frames,
            fingerprint=codes_fingerprint(clip.fingerprint, fingerprint),
            fps=clip.fps,
            source="",
        )
        for clip in frames.clips
    ]
    with CodeStoreWriter.open(path, schema, planned) as writer:
        for shard in writer.pending_shards():
            parts = [tokenizer.encode(frames.read(part.clip_id, part.start, part.stop)) for part in shard.parts]
            rows = np.random.default_rng(shard.index).normal(size=(sum(map(len, parts)), 2)).astype(np.float32)
            writer.write_shard(shard.index, torch.cat(parts).numpy(), {"action": rows} if acting else None)
        writer.publish(
            Provenance(
                kind="codes",
                stage="encode-dataset",
                version=1,
                settings={},
                inputs={"frames": frames.fingerprint, "tokenizer": fingerprint},
                fingerprint="",
                counts={"clips": len(planned)},
            )
        )
    return open_codes(path)


def make_prior(run: Path, seed: int = 0, acting: bool = False) -> Prior:
    """A prior run that was never trained; one that takes the actions of `make_codes` where `acting`."""
    torch.manual_seed(seed)
    settings = PriorSettings()
    if acting:
        settings = PriorSettings(model=replace(settings.model, actions=("action",), action_widths=(2,)))
    model = Prior(settings.model)
    if model.encoder.actions is not None:
        torch.nn.init.normal_(model.encoder.actions.weight)
    save_model_run(run, "prior-run", model, settings, stage="train-prior", version=1, counts={})
    return model.eval()


@dataclass(frozen=True)
class ToyWork:
    """Paths of a tiny work directory."""

    root: Path

    @property
    def frames(self) -> Path:
        return self.root / "frames"

    @property
    def vqvae(self) -> Path:
        return self.root / "runs" / "vqvae"

    @property
    def codes(self) -> Path:
        return self.root / "data.zarr"

    @property
    def prior(self) -> Path:
        return self.root / "runs" / "prior"

    @property
    def samples(self) -> Path:
        return self.root / "samples.zarr"


def make_toy_work(root: Path, lengths: dict[str, int] | None = None, acting: bool = False) -> ToyWork:
    """Frames, tokenizer, codes and prior under `root`; with actions where `acting`."""
    work = ToyWork(root)
    frames = make_frames(work.frames, lengths)
    make_codes(work.codes, frames, make_tokenizer(work.vqvae), acting)
    make_prior(work.prior, acting=acting)
    return work

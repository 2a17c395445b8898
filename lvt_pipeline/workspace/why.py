"""Why the codes of a clip are stale: its chain from the source's bytes to the codes, compared link by link.

    clip                source content, time range          manifest
    frames of a clip    clip, geometry, decoder             frame shards
    codes of a clip     frames, tokenizer                   code store

A fingerprint only says that something differs. A store also keeps, clip by clip, what the frames were made of, so the
link that changed has a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lvt_pipeline.codes.schema import CodeClip, clip_fingerprints, codes_of_frames
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.config import build
from lvt_pipeline.errors import ArtefactError, ConfigError
from lvt_pipeline.frames.records import FrameClip
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.ingest.settings import IngestSettings, line_fingerprint
from lvt_pipeline.manifest.manifest import read_manifest
from lvt_pipeline.provenance import SHORT, changes, short
from lvt_pipeline.runs.read import precision_of, read_tokenizer
from lvt_pipeline.storage import Place, StoreURL
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.read import reader_version, readers_of
from lvt_pipeline.video.settings import GeometrySettings
from lvt_pipeline.workspace.layout import Layout
from lvt_pipeline.workspace.settings import find_work_dir


def explain_clip(
    store: Place,
    clip_id: str,
    *,
    frames: Place | None = None,
    vqvae: Path | None = None,
    manifest: Path | None = None,
    generation: int | None = None,
) -> list[str]:
    """What makes the codes of a clip stale, a line for each link of its chain that changed; [] when nothing does.

    Args:
        frames, vqvae, manifest: what it should be made of; those of the work directory when neither frames nor VQ-VAE
            are given.
        generation: of the store, the current one by default.

    Raises:
        ArtefactError: nothing was given, and `store` is not the code store of a work directory; or what was given does
            not exist.
        StoreError: neither the store nor the frames have that clip.
    """
    if frames is None and vqvae is None:
        if isinstance(store, StoreURL):
            raise ArtefactError(f"{store} is not in a work directory; give --frames and --vqvae")
        frames, vqvae, manifest = _chain_of(store)
    tokenizer = read_tokenizer(vqvae) if vqvae is not None else None
    codes = open_codes(store, generation)
    if frames is None:
        return [*_tokenizer(codes, tokenizer), *_lost(codes, codes.clip(clip_id))]
    shards = FrameShards(frames)
    wanted = {clip.id: clip for clip in shards.clips}.get(clip_id)
    if wanted is None:
        return _without_frames(codes, shards, clip_id)
    if clip_id not in codes:
        twin = _renamed(codes, wanted)
        return [f"it is in the store as {twin}" if twin else "it is in the frames but not in the store yet"]
    reasons = [*_tokenizer(codes, tokenizer), *_changed_row(codes, codes.clip(clip_id), wanted, shards)]
    return reasons if manifest is None else reasons + _changed_source(manifest, wanted, shards)


def _chain_of(store: Path) -> list[Path | None]:
    """Frames, VQ-VAE and manifest of the work directory of a store, as far as they are there: pixels may be deleted."""
    layout = Layout(find_work_dir(store))
    if store.absolute() != layout["codes"]:
        raise ArtefactError(
            f"{store} is not the code store of {layout.work_dir}; give {layout['codes']}, or --frames and --vqvae"
        )
    return [layout[role] if layout[role].exists() else None for role in ("frames", "vqvae", "manifest")]


def _changed_row(codes: CodeStore, row: CodeClip, wanted: FrameClip, shards: FrameShards) -> Iterator[str]:
    made_of = codes_of_frames(wanted, codes.tokenizer)
    if row.codes_fingerprint != made_of:
        yield from _changed_frames(codes, row, wanted, shards)
    elif row.fingerprint != clip_fingerprints(made_of, shards.array_facts(wanted), codes.schema)["fingerprint"]:
        yield "arrays: other values (its codes are copied)"
    for name in ("split", "label"):
        if getattr(row, name) != getattr(wanted, name):
            yield f"{name}: {getattr(row, name)} -> {getattr(wanted, name)} (its codes are kept)"
    yield from _lost(codes, row)


def _without_frames(codes: CodeStore, shards: FrameShards, clip_id: str) -> list[str]:
    failure = next((failure for failure in shards.failures if failure.id == clip_id), None)
    if failure is not None:
        return [f"it has no frames: {failure.reason} ({failure.message})"]
    codes.clip(clip_id)  # names the closest id when the store does not know it either
    return ["it is in the store but no longer in the frames"]


def _tokenizer(codes: CodeStore, tokenizer: str | None) -> Iterator[str]:
    if tokenizer is not None and precision_of(codes.tokenizer, tokenizer) is None:
        yield f"tokenizer: {short(codes.tokenizer)} -> {short(tokenizer)}"


def _lost(codes: CodeStore, row: CodeClip) -> Iterator[str]:
    size = codes.schema.shard_frames
    shards = range(row.offset // size, (row.offset + row.length - 1) // size + 1)
    for index, problem in codes.problems(shards).items():
        yield f"codes: shard {index}, which holds some of them, {problem}"


def _renamed(codes: CodeStore, wanted: FrameClip) -> str:
    fingerprint = codes_of_frames(wanted, codes.tokenizer)
    return next((clip.id for clip in codes.clips if clip.codes_fingerprint == fingerprint), "")


def _changed_frames(codes: CodeStore, row: CodeClip, wanted: FrameClip, frames: FrameShards) -> list[str]:
    """The links between the source and the frames that differ between a store and the frames of today."""
    made_of = _made_of(codes, row.id)
    reasons = []
    old_digest, old_decoder = made_of.get("source_digest", ""), made_of.get("decoder", "")
    if old_digest and not wanted.digest.startswith(old_digest):
        reasons.append(f"source content: {old_digest[:SHORT]} -> {short(wanted.digest)}")
    if old_decoder and old_decoder != wanted.decoder:
        reasons.append(f"decoder: {old_decoder} -> {wanted.decoder}")
    reasons += changes("geometry.", codes.schema.geometry, frames.record.settings.get("geometry", {}))
    if not old_digest:
        reasons.append("frames: changed; the store is too old to say whether in source content, time range or decoder")
    elif not reasons:
        # Content, decoder and geometry are all that enters besides.
        reasons.append("time range: another part of the source")
    if row.length != wanted.num_frames:
        reasons.append(f"length: {row.length} -> {wanted.num_frames} frames")
    return reasons


def _made_of(codes: CodeStore, clip_id: str) -> Mapping[str, str]:
    place = codes.table.columns["id"].index(clip_id)
    return {name: codes.table.columns[name][place] for name in ("source_digest", "decoder")}


def _changed_source(manifest: Path, frames: FrameClip, shards: FrameShards) -> list[str]:
    """What makes the frames themselves stale against a manifest."""
    line, made_of = (frames.part.of, frames.part.fingerprint) if frames.part else (frames.id, frames.fingerprint)
    clip = next((clip for clip in read_manifest(manifest) if clip.id == line), None)
    if clip is None:
        return ["its frames: it is no longer in the manifest"]
    try:
        settings = build(IngestSettings, shards.record.settings, where=str(shards.root))
    except ConfigError:
        return []  # frames of another maker, such as arrays
    geometry = settings.geometry
    if made_of in [line_fingerprint(clip, settings, reader) for reader in readers_of(clip, geometry)]:
        return []
    return [f"its frames, which lvt ingest would make again: {change}" for change in _changes(clip, frames, geometry)]


def _changes(clip: Clip, frames: FrameClip, geometry: GeometrySettings) -> list[str]:
    changes = []
    if clip.digest != frames.digest:
        changes.append(f"source content: {short(frames.digest)} -> {short(clip.digest)}")
    versions = [reader_version(reader) for reader in readers_of(clip, geometry)]
    if frames.decoder not in versions:
        changes.append(f"decoder: {frames.decoder} -> {' or '.join(versions)}")
    return changes or [f"time range: now {_range(clip)}"]


def _range(clip: Clip) -> str:
    end: Any = "the end" if clip.end is None else f"{clip.end:g} s"
    return f"from {clip.start or 0:g} s to {end}"

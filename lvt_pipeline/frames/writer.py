"""Frame shards are written here: samples into a tar, then the receipt. Equal samples give equal bytes."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lvt_pipeline.errors import ArtefactError, ShapeError
from lvt_pipeline.file_systems import is_lock_file
from lvt_pipeline.frames.codecs import SUFFIXES, write_npy
from lvt_pipeline.frames.receipts import read_receipt, staged_name
from lvt_pipeline.frames.records import (
    FAILURES_NAME,
    FORMAT_VERSION,
    ArrayFacts,
    ClipFailure,
    FrameClip,
    FrameSample,
    Receipt,
    content_fingerprint,
    frame_counts,
    receipt_name,
    shard_name,
)
from lvt_pipeline.frames.tar import TarWriter, tar_key
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.provenance import Provenance, write_record
from lvt_pipeline.storage import Place, atomic_writer, exclusive_lock, open_storage, write_bytes
from lvt_pipeline.video.clips import SPLITS
from lvt_pipeline.video.locations import Translation, kept_sources, opened_sources

CLIPS_PER_SHARD = 64
CLIP_FACTS = ("id", "split", "label", "fps", "digest", "fingerprint")
FRAME_FACTS = ("num_frames", "height", "width", "codec", "decoder")


def write_shard(
    shard: Path, samples: Sequence[FrameSample], failures: Sequence[ClipFailure] = (), *, root: Path | None = None
) -> Receipt:
    """Write one shard, then its receipt. Equal samples give equal bytes.

    A shard without samples has a receipt only, because readers of webdataset refuse an empty tar.

    Args:
        shard: path of the tar; the receipt is next to it.
        root: the folder that paths of sources are kept relative to; the shard's own folder by default.
    """
    tar = _write_tar(shard, shard.name, samples)
    if not samples:
        shard.unlink(missing_ok=True)
    content = _receipt(shard.name, tar, failures, root or shard.parent)
    write_bytes(shard.with_name(receipt_name(shard.name)), content)
    return Receipt(tar.clips, list(failures), tar.digest, tar.size)


def stage_shard(
    folder: Place, name: str, samples: Sequence[FrameSample], failures: Sequence[ClipFailure], *, root: Place
) -> Receipt:
    """Put a shard among those that wait to be published, unless another process has put it there.

    The receipt is created if absent, and names the tar by its content (`staged_name`): whoever comes second changes
    nothing, however late.

    Args:
        folder: where shards of one plan wait.
        name: the shard's name once it is published.

    Returns:
        the receipt that is there.
    """
    storage, attempt = open_storage(folder), f"{secrets.token_hex(8)}.tar"
    tar = _write_tar(folder / attempt, name, samples)
    staged = staged_name(name, tar.digest or "")
    if samples and isinstance(folder, Path):
        storage.move(attempt, staged)
    elif samples and not storage.create(staged, tar.data):
        storage.replace(staged, tar.data)
    if storage.create(receipt_name(name), _receipt(name, tar, failures, root)):
        return Receipt(tar.clips, list(failures), tar.digest, tar.size)
    first = read_receipt(folder / receipt_name(name), opened=opened_sources(root), is_staged=True)
    if first.digest != tar.digest:
        storage.delete([staged])
    return first


@dataclass
class _Tar:
    """A tar that was written: its clips, SHA-256 and size; without clips there is no tar. For a bucket, its bytes."""

    clips: list[FrameClip] = field(default_factory=list)
    digest: str | None = None
    size: int | None = None
    data: bytes = b""


def _write_tar(place: Place, name: str, samples: Sequence[FrameSample]) -> _Tar:
    if not samples:
        return _Tar()
    memory = io.BytesIO()
    with atomic_writer(place) if isinstance(place, Path) else nullcontext(memory) as stream:
        tar = TarWriter(stream)
        clips = [_write_sample(tar, sample, name) for sample in samples]
        tar.close()
    return _Tar(clips, tar.digest, tar.size, memory.getvalue())


def _receipt(name: str, tar: _Tar, failures: Sequence[ClipFailure], root: Place) -> bytes:
    kept = kept_sources(root)
    content = {
        "format": FORMAT_VERSION,
        "shard": name,
        "digest": tar.digest,
        "size": tar.size,
        "clips": [_kept(_without_shard(clip), kept) for clip in tar.clips],
        "failures": [_kept(asdict(failure), kept) for failure in failures],
    }
    return f"{json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()


def _write_sample(tar: TarWriter, sample: FrameSample, shard: str) -> FrameClip:
    clip, key = sample.clip, tar_key(sample.clip.id)
    facts = {name: getattr(clip, name) for name in (*CLIP_FACTS, *FRAME_FACTS)}
    tar.add(f"{key}.json", json.dumps(facts | _more_facts(sample), ensure_ascii=False).encode())
    offset = tar.add(f"{key}.{SUFFIXES[clip.codec]}", sample.payload)
    nbytes = len(sample.payload)
    for name, array in sample.arrays.items():
        if len(array) != clip.num_frames:
            raise ShapeError(f"clip {clip.id} has {clip.num_frames} frames and {len(array)} rows of {name}")
    arrays = {name: _write_array(tar, f"{key}.{name}.npy", array) for name, array in sample.arrays.items()}
    if clip.codec == "raw":  # skip the .npy header, so that frames are plain bytes at a known place
        pixels = clip.num_frames * clip.height * clip.width * 3
        offset, nbytes = offset + nbytes - pixels, pixels
    return replace(
        clip,
        key=key,
        offset=offset,
        nbytes=nbytes,
        shard=shard,
        arrays=arrays or None,
        array_facts={name: ArrayFacts.of(array) for name, array in sample.arrays.items()} or None,
    )


def _more_facts(sample: FrameSample) -> dict[str, Any]:
    """Facts about a clip that only the tar holds, or that both hold only if there are any."""
    facts: dict[str, Any] = {"geometry": dict(sample.geometry)}
    if sample.clip.part is not None:
        facts["part"] = asdict(sample.clip.part)
    if sample.clip.truncated:
        facts["truncated"] = sample.clip.truncated
    if sample.clip.notes:
        facts["notes"] = [asdict(note) for note in sample.clip.notes]
    return facts


def _write_array(tar: TarWriter, name: str, array: NDArray[Any]) -> list[int]:
    stream = io.BytesIO()
    write_npy(stream, array)
    return [tar.add(name, stream.getvalue()), stream.tell()]


def _without_shard(clip: FrameClip) -> dict[str, Any]:
    absent = {
        name for name in ("arrays", "part", "truncated", "notes", "array_facts", "pixels") if not getattr(clip, name)
    }
    return {key: value for key, value in asdict(clip).items() if key != "shard" and key not in absent}


def _kept(entry: dict[str, Any], kept: Translation) -> dict[str, Any]:
    return {**entry, "source": kept(entry["source"])}


def write_failures(root: Place, failures: Iterable[ClipFailure]) -> None:
    """Write `failures.jsonl`: one line per clip that gave no frames (id, source, reason, message, decoder)."""
    kept = kept_sources(root)
    lines = [
        json.dumps(
            {name: value for name, value in _kept(asdict(failure), kept).items() if name != "fingerprint"},
            ensure_ascii=False,
        )
        for failure in failures
    ]
    open_storage(root).replace(FAILURES_NAME, "".join(f"{line}\n" for line in lines).encode())


def output_sizes(root: Place, shards: Iterable[str]) -> dict[str, int]:
    """Size of every file that belongs to a folder of frames, by name: shards, receipts, failures."""
    names = {FAILURES_NAME}.union(*((shard, receipt_name(shard)) for shard in shards))
    return {entry.name: entry.size for entry in open_storage(root).list() if entry.name in names}


def write_frames(
    root: Path,
    samples: Iterable[FrameSample],
    *,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    clips_per_shard: int = CLIPS_PER_SHARD,
) -> Provenance:
    """Write a whole folder of frames from clips that are already in memory, such as a dataset kept as arrays.

    Args:
        root: a new or empty folder.
        stage: command that made the frames, with its `settings` and the fingerprints of its `inputs`.

    Raises:
        ArtefactError: the folder is not empty.
    """
    clock = Clock()
    by_split: dict[str, list[FrameSample]] = {split: [] for split in SPLITS}
    for sample in samples:
        by_split[sample.clip.split].append(sample)
    clips: list[FrameClip] = []
    shards: list[str] = []
    with exclusive_lock(root):
        if any(not is_lock_file(path.name) for path in root.iterdir()):
            raise ArtefactError(f"{root} is not empty; frames are written into a new folder")
        for split, members in by_split.items():
            for index, first in enumerate(range(0, len(members), clips_per_shard)):
                shards.append(shard_name(split, index))
                clips += write_shard(root / shards[-1], members[first : first + clips_per_shard]).clips
        write_failures(root, [])
        recorder = Job(stage=stage, version=FORMAT_VERSION, kind="frames").recorder(settings, inputs, clock)
        record = recorder.new_record(content_fingerprint(clips), output_sizes(root, shards), frame_counts(clips, []))
        write_record(root, record)
    return record

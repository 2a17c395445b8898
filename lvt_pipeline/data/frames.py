"""Frames on disk: webdataset shards of uint8 clips, with a receipt beside each shard.

The network of the paper sees square frames in the order they were shown; this is the one place they are kept. A shard
is a plain tar that `webdataset` reads: every clip is `<key>.json` (who it is and how it was made) and `<key>.npy` (raw
uint8, T x H x W x 3) or one picture of all frames (`data.frame_codecs`). The receipt says where in the tar the pixels
of each clip begin, so any frame is one seek away, and which clips failed. No receipt: the shard is not done.
The record `provenance.json` comes last. No record: the folder is not finished.

Nothing in a shard or receipt depends on the clock, the machine or the order in which workers finished.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import sys
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.data.frame_codecs import SUFFIXES, Codec, decode_frames, encode_frames, write_npy
from lvt_pipeline.data.sources import Translation, kept_sources, opened_sources
from lvt_pipeline.data.squares import Frames as Frames
from lvt_pipeline.errors import ArtefactError, ShapeError
from lvt_pipeline.memory import paused_collection
from lvt_pipeline.provenance import (
    RECORD_NAME,
    Provenance,
    canonical_rows,
    fingerprint,
    fingerprint_text,
    missing_outputs,
    read_record,
    write_record,
)
from lvt_pipeline.storage import atomic_writer, exclusive_lock, read_json, write_bytes, write_json

FORMAT_VERSION = 1  # raised when the bytes of a shard change for the same frames
SPLITS = ("train", "val", "test")
FAILURES_NAME = "failures.jsonl"
CLIPS_PER_SHARD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which part of a manifest line a clip is, where one line gives several clips (`data.cutting`).

    Attributes:
        of: id of the line.
        fingerprint: hash of what all clips of the line are made of.
        number: 0, 1, ...
        parts: how many clips the line gave.
        begins: seconds from the first frame of the source.
    """

    of: str
    fingerprint: str
    number: int
    parts: int
    begins: float


@dataclass(frozen=True, kw_only=True)
class FrameSample:
    """One clip ready to be written.

    Attributes:
        fingerprint: hash of what the frames are made of (clip content, geometry, decoder).
        source: the video's path; it goes to the receipt relative to the output, never into the tar.
        digest: SHA-256 of the source's bytes.
        geometry: how frames were cut and scaled, plain data for readers of the tar.
        decoder: family and version that decoded it, such as "decord 0.6.0".
        shape: (T, H, W) of the frames inside `payload`.
        payload: what `encode_frames` gave.
        arrays: what belongs to the frames beside their pixels, one row per frame, by name (letters and underscores).
        part: which part of a manifest line it is, if not all of it.
        truncated: what was found of a file that was cut short but is kept.
    """

    id: str
    split: str
    label: str | None
    fps: float
    source: str
    digest: str
    fingerprint: str
    decoder: str
    codec: Codec
    shape: tuple[int, int, int]
    payload: bytes
    geometry: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    part: Part | None = None
    truncated: str = ""

    @classmethod
    def from_array(
        cls,
        id: str,
        frames: Frames,
        *,
        split: str = "train",
        label: str | None = None,
        fps: float = 10.0,
        codec: Codec = "raw",
        source: str = "",
        decoder: str = "array",
    ) -> FrameSample:
        """A clip whose frames, uint8 (T, H, W, 3), do not come from a video file."""
        check_frames(frames)
        digest = hashlib.sha256(frames.tobytes()).hexdigest()
        return cls(
            id=id,
            split=split,
            label=label,
            fps=fps,
            source=source,
            digest=digest,
            fingerprint=fingerprint({"digest": digest, "shape": list(frames.shape)}),
            decoder=decoder,
            codec=codec,
            shape=frames.shape[:3],
            payload=encode_frames(frames, codec),
            geometry={},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameClip:
    """One clip inside finished shards.

    Attributes:
        key: name inside the tar, without extension.
        fingerprint: hash of what the frames are made of.
        source: the video's path.
        offset: where the pixels (codec raw) or the picture (other codecs) begin in the shard, in bytes.
        nbytes: how many bytes they take there.
        shard: name of the tar.
        arrays: offset and bytes in the shard of each `.npy` file that lies beside the frames, by name.
        part: which part of a manifest line it is; None when it is all of it.
        truncated: what was found of a file that was cut short but is kept; None for a whole one.
    """

    id: str
    key: str
    split: str
    label: str | None
    fps: float
    source: str
    digest: str
    fingerprint: str
    num_frames: int
    height: int
    width: int
    decoder: str
    codec: Codec
    offset: int
    nbytes: int
    shard: str
    arrays: Mapping[str, list[int]] | None = None
    part: Part | None = None
    truncated: str | None = None


@dataclass(frozen=True, kw_only=True)
class ClipFailure:
    """A clip that gave no frames, and why. `reason` is one of `data.videos.FAILURE_REASONS`.

    `fingerprint` hashes what was tried (clip content, geometry, decoders), so an unchanged clip is not tried again.
    """

    id: str
    source: str
    reason: str
    message: str
    decoder: str
    fingerprint: str


@dataclass(frozen=True)
class Receipt:
    """What a finished shard holds: its clips and its failures, both in manifest order."""

    clips: list[FrameClip]
    failures: list[ClipFailure]


def shard_name(split: str, index: int) -> str:
    """File name of a shard: `train-000012.tar`."""
    return f"{split}-{index:06d}.tar"


def receipt_path(shard: Path) -> Path:
    """The receipt of a shard: `train-000012.json`."""
    return shard.with_suffix(".json")


def tar_key(clip_id: str) -> str:
    """Name of a clip inside its shard.

    webdataset cuts the name at the first dot of its last part and skips names that begin with `__`, so both are
    percent-encoded, and so are control characters and the percent sign. Different ids have different keys.
    """
    folder, slash, name = clip_id.rpartition("/")
    key = _encode(folder) + slash + _encode(name).replace(".", "%2E")
    return f"%5F{key[1:]}" if key.startswith("__") else key


def _encode(text: str) -> str:
    return "".join(quote(char) if char == "%" or not char.isprintable() else char for char in text)


def check_frames(frames: Frames) -> None:
    """Refuse what is not uint8 (T, H, W, 3) with T > 0.

    Raises:
        ShapeError: naming the shape and dtype found.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ShapeError(f"frames are uint8 (T, H, W, 3) with T > 0, found {frames.dtype} {frames.shape}")


def pixels_of(clip: FrameClip, payload: bytes | bytearray) -> Frames:
    """All frames of a clip, uint8 (T, H, W, 3), from its bytes in the shard."""
    return decode_frames(payload, clip.codec, clip.num_frames, clip.height, clip.width)


def content_fingerprint(clips: Iterable[FrameClip]) -> str:
    """Hash of a folder of frames: which clips it has, in order, and what each is made of."""
    return fingerprint_text(canonical_rows([clip.id, clip.split, clip.label, clip.fingerprint] for clip in clips))


# Writing -----------------------------------------------------------------------------------------------------------


def write_shard(
    shard: Path, samples: Sequence[FrameSample], failures: Sequence[ClipFailure] = (), *, root: Path | None = None
) -> Receipt:
    """Write one shard, then its receipt. Equal samples give equal bytes.

    A shard without samples has a receipt only, because readers of webdataset refuse an empty tar.

    Args:
        shard: the tar's path; the receipt lies beside it.
        root: the folder that paths of sources are kept relative to; the shard's own folder by default.
    """
    root = root or shard.parent
    clips: list[FrameClip] = []
    digest = size = None
    if samples:
        with atomic_writer(shard) as stream:
            tar = TarWriter(stream)
            for sample in samples:
                clips.append(_write_sample(tar, sample, shard.name))
            tar.close()
            digest, size = tar.digest, tar.size
    else:
        shard.unlink(missing_ok=True)
    kept = kept_sources(root)
    content = {
        "format": FORMAT_VERSION,
        "shard": shard.name,
        "digest": digest,
        "size": size,
        "clips": [_kept(_without_shard(clip), kept) for clip in clips],
        "failures": [_kept(asdict(failure), kept) for failure in failures],
    }
    write_json(receipt_path(shard), content)
    return Receipt(clips, list(failures))


class TarWriter:
    """A tar whose bytes depend on names and contents alone, and that knows where each content begins."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a file; returns the offset of its first byte."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644  # time, user and group stay 0
        self._write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        offset = self.size
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset

    def close(self) -> None:
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._hash.update(data)
        self.size += len(data)


def _write_sample(tar: TarWriter, sample: FrameSample, shard: str) -> FrameClip:
    num_frames, height, width = sample.shape
    key = tar_key(sample.id)
    described = {
        "id": sample.id,
        "split": sample.split,
        "label": sample.label,
        "fps": sample.fps,
        "digest": sample.digest,
        "fingerprint": sample.fingerprint,
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "codec": sample.codec,
        "decoder": sample.decoder,
        "geometry": dict(sample.geometry),
    }
    if sample.part is not None:
        described["part"] = asdict(sample.part)
    if sample.truncated:
        described["truncated"] = sample.truncated
    tar.add(f"{key}.json", json.dumps(described, ensure_ascii=False).encode())
    offset = tar.add(f"{key}.{SUFFIXES[sample.codec]}", sample.payload)
    nbytes = len(sample.payload)
    arrays = {name: _write_array(tar, f"{key}.{name}.npy", array) for name, array in sample.arrays.items()}
    if sample.codec == "raw":  # skip the .npy header, so that frames are plain bytes at a known place
        pixels = num_frames * height * width * 3
        offset, nbytes = offset + nbytes - pixels, pixels
    return FrameClip(
        id=sample.id,
        key=key,
        split=sample.split,
        label=sample.label,
        fps=sample.fps,
        source=sample.source,
        digest=sample.digest,
        fingerprint=sample.fingerprint,
        num_frames=num_frames,
        height=height,
        width=width,
        decoder=sample.decoder,
        codec=sample.codec,
        offset=offset,
        nbytes=nbytes,
        shard=shard,
        arrays=arrays or None,
        part=sample.part,
        truncated=sample.truncated or None,
    )


def _write_array(tar: TarWriter, name: str, array: NDArray[Any]) -> list[int]:
    stream = io.BytesIO()
    write_npy(stream, array)
    return [tar.add(name, stream.getvalue()), stream.tell()]


def _without_shard(clip: FrameClip) -> dict[str, Any]:
    absent = {name for name in ("arrays", "part", "truncated") if not getattr(clip, name)}
    return {key: value for key, value in asdict(clip).items() if key != "shard" and key not in absent}


def _kept(entry: dict[str, Any], kept: Translation) -> dict[str, Any]:
    return {**entry, "source": kept(entry["source"])}


def write_failures(root: Path, failures: Iterable[ClipFailure]) -> Path:
    """Write `failures.jsonl`: one line per clip that gave no frames (id, source, reason, message, decoder)."""
    kept = kept_sources(root)
    lines = [
        json.dumps(
            {name: value for name, value in _kept(asdict(failure), kept).items() if name != "fingerprint"},
            ensure_ascii=False,
        )
        for failure in failures
    ]
    path = root / FAILURES_NAME
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
    return path


def output_sizes(root: Path, shards: Iterable[str]) -> dict[str, int]:
    """Size of every file that belongs to a folder of frames, by name: shards, receipts, failures."""
    names = [FAILURES_NAME]
    for shard in shards:
        names += [name for name in (shard, receipt_path(Path(shard)).name) if (root / name).exists()]
    return {name: (root / name).stat().st_size for name in sorted(names)}


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
        stage: what made the frames, with its `settings` and the fingerprints of its `inputs`.
    """
    began = time.monotonic()
    by_split: dict[str, list[FrameSample]] = {split: [] for split in SPLITS}
    for sample in samples:
        by_split[sample.split].append(sample)
    clips: list[FrameClip] = []
    shards: list[str] = []
    with exclusive_lock(root):
        if any(root.iterdir()):
            raise ArtefactError(f"{root} is not empty; frames are written into a new folder")
        for split, members in by_split.items():
            for index, first in enumerate(range(0, len(members), clips_per_shard)):
                shards.append(shard_name(split, index))
                clips += write_shard(root / shards[-1], members[first : first + clips_per_shard]).clips
        write_failures(root, [])
        record = Provenance(
            kind="frames",
            stage=stage,
            version=FORMAT_VERSION,
            settings=settings,
            inputs=inputs,
            fingerprint=content_fingerprint(clips),
            outputs=output_sizes(root, shards),
            counts=frame_counts(clips, []),
            seconds=round(time.monotonic() - began, 3),
            finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        write_record(root, record)
    return record


def frame_counts(clips: Sequence[FrameClip], failures: Sequence[ClipFailure]) -> dict[str, Any]:
    """The facts worth showing about a folder of frames."""
    reasons: dict[str, int] = {}
    for failure in failures:
        reasons[failure.reason] = reasons.get(failure.reason, 0) + 1
    counts: dict[str, Any] = {
        "clips": len(clips),
        "frames": sum(clip.num_frames for clip in clips),
        "failures": len(failures),
        "failures_by_reason": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    }
    truncated = sum(clip.truncated is not None for clip in clips)
    return counts | ({"kept_truncated": truncated} if truncated else {})


# Reading -----------------------------------------------------------------------------------------------------------


def read_receipt(path: Path, *, opened: Translation | None = None) -> Receipt:
    """Parse a receipt; sources come back as paths that can be opened.

    Args:
        opened: what turns its sources into those (`data.sources`); by default they count from the receipt's folder.

    Raises:
        ArtefactError: it is missing, damaged, or of a format this version does not know.
    """
    opened = opened or opened_sources(path.parent)
    content = read_json(path)
    try:
        if content["format"] != FORMAT_VERSION:
            raise ArtefactError(
                f"{path} has shard format {content['format']}, this version reads {FORMAT_VERSION}; ingest again"
            )
        same: dict[float, float] = {}
        clips = [_frame_clip(entry, content["shard"], opened, same) for entry in content["clips"]]
        failures = [ClipFailure(**{**entry, "source": opened(entry["source"])}) for entry in content["failures"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path} is not a receipt of a frame shard ({error!r})") from error
    if clips:
        _check_size(path.with_name(content["shard"]), content["size"])
    return Receipt(clips, failures)


def _frame_clip(entry: dict[str, Any], shard: str, opened: Translation, same: dict[float, float]) -> FrameClip:
    """A clip of a receipt. Most of a million clips share some values, so each of these is kept once, in `same`."""
    for name in ("split", "label", "decoder", "codec"):
        if entry[name] is not None:
            entry[name] = sys.intern(entry[name])
    if entry["key"] == entry["id"]:
        entry["key"] = entry["id"]
    for name in ("fps", "nbytes"):
        entry[name] = same.setdefault(entry[name], entry[name])
    entry["source"] = opened(entry["source"])
    if "part" in entry:
        entry["part"] = Part(**entry["part"])
    return FrameClip(**entry, shard=shard)


def _check_size(shard: Path, size: int) -> None:
    try:
        found = shard.stat().st_size
    except FileNotFoundError:
        raise ArtefactError(f"{shard} is missing; run `lvt ingest` again to make it") from None
    if found != size:
        raise ArtefactError(
            f"{shard} has {found:,} bytes, its receipt says {size:,}; it is damaged: delete it and its receipt "
            f"and run `lvt ingest` again"
        )


class FrameShards:
    """A finished folder of frames, read-only. Threads may share it; it can be pickled and holds no open file.

    Attributes:
        root: the folder.
        record: its provenance.
        clips: every clip, split by split (train, val, test) and in manifest order within one.
        failures: every clip that gave no frames.
    """

    @paused_collection()
    def __init__(self, root: Path | str) -> None:
        """Open a folder that `lvt ingest` finished.

        Raises:
            ArtefactError: it is no such folder, is unfinished, or a shard is missing or of the wrong size.
        """
        self.root = Path(root)
        self.record = _finished_record(self.root)
        self.clips: list[FrameClip] = []
        self.failures: list[ClipFailure] = []
        opened = opened_sources(self.root)
        for path in _receipts_in_order(self.root, self.record):
            receipt = read_receipt(path, opened=opened)
            self.clips += receipt.clips
            self.failures += receipt.failures

    @cached_property
    def _by_id(self) -> dict[str, FrameClip]:
        return {clip.id: clip for clip in self.clips}

    @property
    def fingerprint(self) -> str:
        """Hash of which clips there are, in order, and what each is made of."""
        return content_fingerprint(self.clips)

    @property
    def num_frames(self) -> int:
        """Frames of all clips together."""
        return sum(clip.num_frames for clip in self.clips)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, clip_id: str) -> FrameClip:
        """The clip with this id.

        Raises:
            ArtefactError: there is none; the closest id is named.
        """
        if clip_id in self._by_id:
            return self._by_id[clip_id]
        close = difflib.get_close_matches(clip_id, self._by_id, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ArtefactError(f"{self.root} has no clip {clip_id!r} among its {len(self.clips)}{hint}")

    def split(self, name: str) -> list[FrameClip]:
        """The clips of "train", "val" or "test"; empty when there are none.

        Raises:
            ArtefactError: there is no such split.
        """
        if name not in SPLITS:
            raise ArtefactError(f"split {name!r} is not one of {', '.join(SPLITS)}")
        return [clip for clip in self.clips if clip.split == name]

    def read(self, clip: FrameClip | str, start: int = 0, stop: int | None = None) -> Frames:
        """Frames `start` to `stop` (excluded, like a slice) of a clip.

        Returns:
            uint8 (T, H, W, 3), a fresh array.

        Raises:
            ArtefactError: unknown clip, or the shard cannot be read.
        """
        if isinstance(clip, str):
            clip = self[clip]
        start, stop, _ = slice(start, stop).indices(clip.num_frames)
        count = max(0, stop - start)
        if clip.codec != "raw":
            return pixels_of(clip, self.payload(clip))[start : start + count].copy()
        frame_bytes = clip.height * clip.width * 3
        pixels = self._read_bytes(clip.shard, clip.offset + start * frame_bytes, count * frame_bytes)
        return np.frombuffer(pixels, np.uint8).reshape(count, clip.height, clip.width, 3)

    def arrays(self, clip: FrameClip | str) -> dict[str, NDArray[Any]]:
        """What the source holds beside a clip's frames, one row per frame, by name; empty for videos."""
        clip = self[clip] if isinstance(clip, str) else clip
        return read_arrays(clip, self.root / clip.shard)

    def payload(self, clip: FrameClip) -> bytes | bytearray:
        """The clip's bytes as they lie in the shard: plain pixels (raw) or a picture (other codecs)."""
        return self._read_bytes(clip.shard, clip.offset, clip.nbytes)

    def _read_bytes(self, shard: str, offset: int, count: int) -> bytearray:
        return read_range(self.root / shard, offset, count)


def read_arrays(clip: FrameClip, shard: Path) -> dict[str, NDArray[Any]]:
    """The arrays that lie beside a clip's frames in this shard, by name.

    Raises:
        ArtefactError: the shard cannot be read.
    """
    return {
        name: np.lib.format.read_array(io.BytesIO(read_range(shard, *place)), allow_pickle=False)
        for name, place in (clip.arrays or {}).items()
    }


def read_range(path: Path, offset: int, count: int) -> bytearray:
    """`count` bytes of a file from `offset` on.

    Opening anew costs some ten microseconds and keeps readers free of shared state: threads, forks and
    pickles are safe.

    Raises:
        ArtefactError: the file is missing or ends too early.
    """
    buffer = bytearray(count)
    view = memoryview(buffer)
    try:
        with open(path, "rb", buffering=0) as stream:
            stream.seek(offset)
            done = 0
            while done < count:
                got = stream.readinto(view[done:])
                if not got:
                    raise ArtefactError(f"{path} ends {count - done:,} bytes too early; it is damaged, ingest again")
                done += got
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read ({error.strerror}); run `lvt ingest` again to make it") from error
    return buffer


def _finished_record(root: Path) -> Provenance:
    if not root.is_dir():
        raise ArtefactError(f"{root} does not exist; `lvt ingest` makes a folder of frames")
    if not (root / RECORD_NAME).exists():
        if any(root.glob("*-[0-9]*.json")):
            raise ArtefactError(f"{root} is not finished; run the same `lvt ingest` command again to complete it")
        raise ArtefactError(f"{root} is not a folder of frames: it has no {RECORD_NAME}; `lvt ingest` makes one")
    record = read_record(root)
    if record.kind != "frames":
        raise ArtefactError(f"{root} holds {record.kind}, not frames; give the folder that `lvt ingest` made")
    missing = missing_outputs(root, record)
    if missing:
        raise ArtefactError(
            f"{root / missing[0]} is missing or has another size than recorded"
            f"{f' ({len(missing)} such files)' if len(missing) > 1 else ''}; run `lvt ingest` again to repair it"
        )
    return record


def _receipts_in_order(root: Path, record: Provenance) -> list[Path]:
    names = [Path(name) for name in record.outputs if name.endswith(".json")]
    return [root / name for name in sorted(names, key=lambda name: (_split_rank(name.stem), name.stem))]


def _split_rank(stem: str) -> int:
    split = stem.rpartition("-")[0]
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)

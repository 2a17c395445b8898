"""Checks that the bytes of a frame shard are those that were written: before its frames are used, and for `lvt verify`.

A shard is checked once per process, when its first frame is read: its SHA-256 against the receipt, and the receipt
against the tar's own headers, so a receipt that points at other bytes is found too.
"""

from __future__ import annotations

import json
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.frames.codecs import SUFFIXES
from lvt_pipeline.frames.copies import local_shard
from lvt_pipeline.frames.receipts import read_receipt
from lvt_pipeline.frames.records import FrameClip, receipts_in
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import digest_file, read_record, status_of
from lvt_pipeline.storage import Place, describe_os_error

_COMPARED = (
    "id",
    "split",
    "label",
    "fps",
    "digest",
    "fingerprint",
    "num_frames",
    "height",
    "width",
    "codec",
    "decoder",
)
_checked: set[tuple[str, str, tuple[int, int, int], bool]] = set()
_checking = threading.Lock()


def require_sound(shard: Path, digest: str, clips: Sequence[FrameClip] | None) -> None:
    """Refuse a shard whose bytes have changed. The first call in a process reads all of it, later ones nothing.

    Args:
        digest: SHA-256 that the receipt records.
        clips: all clips of the receipt; None where it is enough that the bytes are those that were written.

    Raises:
        ArtefactError: it is damaged or cannot be read.
    """
    try:
        key = (str(shard), digest, status_of(shard), clips is None)
        with _checking:
            if key in _checked:
                return
            problem = problem_of(shard, digest, clips)
            if problem is None:
                _checked.add(key)
    except FileNotFoundError as error:
        raise ArtefactError(f"{shard} is missing") from error
    except OSError as error:
        raise describe_os_error(error, f"reading {shard}") from error
    if problem is not None:
        raise ArtefactError(
            f"{shard} is damaged: {problem}; make it again from the videos with "
            f"`lvt verify {shard.parent} --repair --manifest CLIPS.jsonl`"
        )


def problem_of(shard: Path, digest: str, clips: Sequence[FrameClip] | None) -> str | None:
    """The damage of a shard or its receipt; None when both are sound.

    Raises:
        OSError: the shard cannot be read.
    """
    found = digest_file(shard)
    if found != digest:
        return f"its SHA-256 is {found[:12]}, its receipt records {digest[:12]}"
    if clips is None:
        return None
    try:
        with tarfile.open(shard, "r:", errorlevel=2) as tar:
            members = {member.name: member for member in tar}
            return next(_disagreements(tar, members, clips), None)
    except (tarfile.TarError, ValueError) as error:
        return f"it is not a tar that lvt wrote ({type(error).__name__})"


def _disagreements(
    tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], clips: Sequence[FrameClip]
) -> Iterator[str]:
    """Differences between the receipt and the tar."""
    if len(members) != sum(2 + len(clip.arrays or {}) for clip in clips):
        yield "its receipt lists another number of clips"
    for clip in clips:
        problem = f"its receipt does not agree with it about the clip {clip.id!r}"
        about, pixels = members.get(f"{clip.key}.json"), members.get(f"{clip.key}.{SUFFIXES[clip.codec]}")
        stream = tar.extractfile(about) if about is not None else None
        if stream is None or pixels is None:
            yield problem
            continue
        described: Any = json.loads(stream.read())
        end = clip.offset + clip.nbytes
        places = [(pixels.offset_data if clip.codec != "raw" else clip.offset, pixels.offset_data + pixels.size)]
        wanted = [(clip.offset, end)]
        for name, (offset, nbytes) in (clip.arrays or {}).items():
            member = members.get(f"{clip.key}.{name}.npy")
            places.append((member.offset_data, member.offset_data + member.size) if member else (-1, -1))
            wanted.append((offset, offset + nbytes))
        if places != wanted or any(described[name] != getattr(clip, name) for name in _COMPARED):
            yield problem


def is_frames_folder(root: Place) -> bool:
    """Whether a folder holds frame shards, by the names of its files."""
    return bool(receipts_in(root))


@dataclass(frozen=True)
class ShardProblem:
    """The damage of one shard; `clips` are the ids it touches, as far as its receipt can be read."""

    shard: str
    message: str
    clips: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FramesReport:
    """The result of `verify_frames`."""

    shards: int
    clips: int
    num_bytes: int
    problems: list[ShardProblem]


def verify_frames(root: Place, *, progress: Progress = SILENT) -> FramesReport:
    """Check every shard of a folder of frames against its receipt, and the receipts against the record.

    Raises:
        ArtefactError: it is not a finished folder of frames.
    """
    record = read_record(root)
    if record.kind != "frames":
        raise ArtefactError(f"{root} holds {record.kind}, not frames; give the folder that `lvt ingest` made")
    receipts = sorted(name for name in record.outputs if name.endswith(".json"))
    problems: list[ShardProblem] = []
    clips = num_bytes = 0
    with progress.bar("checking shards", len(receipts), "shards") as bar:
        for name in receipts:
            shard = Path(name).with_suffix(".tar").name
            try:
                receipt = read_receipt(root / name)
                problem = None
                if receipt.digest is not None:
                    tar = local_shard(root / shard, receipt.digest, is_fresh=True)
                    problem = problem_of(tar, receipt.digest, receipt.clips)
                    num_bytes += record.outputs.get(shard, 0)
                clips += len(receipt.clips)
                if problem is not None:
                    problems.append(ShardProblem(shard, problem, [clip.id for clip in receipt.clips]))
            except ArtefactError as error:
                problems.append(ShardProblem(shard, str(error)))
            except FileNotFoundError:
                problems.append(ShardProblem(shard, "it is missing"))
            except OSError as error:  # of the system, not of the shard
                raise describe_os_error(error, f"reading {root / shard}") from error
            bar.advance()
    return FramesReport(len(receipts), clips, num_bytes, problems)

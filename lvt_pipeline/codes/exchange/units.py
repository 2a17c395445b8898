"""The parts of every export: files, or folders, that appear whole and always have the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore
from lvt_pipeline.errors import LVTError
from lvt_pipeline.provenance import fingerprint
from lvt_pipeline.storage import shortened_name
from lvt_pipeline.video.clips import SPLITS

LONGEST_NAME_BYTES = 240  # leaves room for an ending


@dataclass(frozen=True)
class Unit:
    """One file or folder of an export.

    Attributes:
        name: relative to the output folder.
        fingerprint: of everything that decides its bytes.
        num_frames: frames of codes in it, for progress.
        write: makes it, whole or not at all.
    """

    name: str
    fingerprint: str
    num_frames: int
    write: Callable[[Path], None]


def unit_fingerprint(kind: str, version: int, store: CodeStore, clips: Sequence[CodeClip], **others: Any) -> str:
    """Hash of a unit: its format, what all codes of the store have in common, and its clips."""
    return fingerprint(
        {
            "kind": kind,
            "version": version,
            "codebook_size": store.codebook_size,
            "tokenizer": store.tokenizer,
            "clips": [described(clip) | {"fingerprint": clip.fingerprint} for clip in clips],
            **others,
        }
    )


def described(clip: CodeClip) -> dict[str, Any]:
    """The facts about a clip in the files of every format."""
    return {"id": clip.id, "split": clip.split, "label": clip.label, "fps": clip.fps, "frames": clip.length}


def by_split(clips: Sequence[CodeClip], clips_per_file: int) -> list[tuple[str, int, int, list[CodeClip]]]:
    """Clips in groups of at most `clips_per_file`: (split, number of the group, groups of the split, members)."""
    groups = []
    for split in SPLITS:
        members = [clip for clip in clips if clip.split == split]
        count = -(-len(members) // clips_per_file)
        for number in range(count):
            part = members[number * clips_per_file : (number + 1) * clips_per_file]
            groups.append((split, number, count, part))
    return groups


def clip_path(clip_id: str) -> str:
    """Where a clip's file or folder is in the output folder, without suffix. An id cannot lead out of it.

    A name that is too long for a file system is shortened; the list of clips has the id.

    Raises:
        LVTError: the id cannot be the name of a file.
    """
    path = PurePosixPath(clip_id)
    if str(path) != clip_id or path.is_absolute() or ".." in path.parts or not path.parts or "\0" in clip_id:
        raise LVTError(f"clip id {clip_id!r} cannot be the name of a file; rename it in the manifest")
    return "/".join(shortened_name(part, "", LONGEST_NAME_BYTES) for part in path.parts)

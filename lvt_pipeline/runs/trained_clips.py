"""Which clips a prior has learnt from: kept beside its run, so that an evaluation can tell, in whatever store they lie.

`trained_clips.txt` has a line for each: the first 16 digits of the clip's fingerprint, which names its content and what
made the codes, and not the file or the store it lies in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.storage import read_text, write_bytes

TRAINED_CLIPS_NAME = "trained_clips.txt"
DIGITS = 16  # two of a million clips agree by chance once in 10^7 datasets


def write_trained_clips(run: Path, clips: Iterable[CodeClip]) -> None:
    """Remember the clips that a run learns from."""
    lines = sorted({clip.fingerprint[:DIGITS] for clip in clips})
    write_bytes(run / TRAINED_CLIPS_NAME, "".join(f"{line}\n" for line in lines).encode())


def find_trained_clips(clips: Sequence[CodeClip], run: Path | None) -> list[CodeClip]:
    """Those clips that are for training: by their split, or because the run has learnt from their content.

    Args:
        run: of a prior; None, or a run that does not say what it learnt from, leaves the splits.
    """
    path = None if run is None else run / TRAINED_CLIPS_NAME
    learnt = set(read_text(path).split()) if path is not None and path.exists() else set()
    return [clip for clip in clips if clip.split == "train" or clip.fingerprint[:DIGITS] in learnt]

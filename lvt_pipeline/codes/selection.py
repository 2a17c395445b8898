"""Which clips of a code store a stage looks at: a split, or the next best one when the dataset has no such split."""

from __future__ import annotations

from lvt_pipeline.codes.store import CodeClip, CodeStore
from lvt_pipeline.errors import LVTError
from lvt_pipeline.progress import SILENT, Progress

HELD_OUT_FIRST = ("test", "val", "train")


def clips_of_split(
    store: CodeStore, split: str, min_frames: int, *, progress: Progress = SILENT
) -> tuple[list[CodeClip], int]:
    """Clips of a split that are long enough.

    A small dataset may lack a split, or have only short clips in it; then the first of test, val and train that has
    some is taken, and said.

    Args:
        split: "train", "val" or "test".
        min_frames: clips with fewer frames are left out and counted.

    Returns:
        The clips, in the store's order, and how many of that split were too short.

    Raises:
        LVTError: no split has a clip of that length.
    """
    for name in (split, *(other for other in HELD_OUT_FIRST if other != split)):
        clips = store.split(name)
        long_enough = [clip for clip in clips if clip.length >= min_frames]
        if long_enough:
            if name != split:
                progress.say(f"{store.path} has no {split} clip of {min_frames} frames or more; using {name} clips")
            return long_enough, len(clips) - len(long_enough)
    longest = max((clip.length for clip in store.clips), default=0)
    raise LVTError(
        f"{store.path} has no clip of {min_frames} frames or more (the longest has {longest}); "
        f"ask for fewer frames, or encode longer clips"
    )

"""Deleting the frames of a work directory once their codes are stored: what `lvt gc W --frames` does."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from lvt_pipeline.codes.verify import find_damaged_shards
from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.progress import count_of
from lvt_pipeline.provenance import write_record
from lvt_pipeline.storage import exclusive_lock
from lvt_pipeline.workspace.clip_changes import has_videos
from lvt_pipeline.workspace.layout import FRAMES_MEMORY, Layout
from lvt_pipeline.workspace.settings import settings_of
from lvt_pipeline.workspace.stages import StageState
from lvt_pipeline.workspace.states import stages_of, states_of


@dataclass(frozen=True)
class SpareFrames:
    """A folder of frames whose codes are stored.

    Attributes:
        clips: that it holds.
        bytes: size of its files.
        can_be_restored: whether the videos that they were made of are still there.
    """

    path: str
    clips: int
    bytes: int
    can_be_restored: bool


def find_spare_frames(work_dir: Path, *, delete: bool = False) -> SpareFrames | None:
    """The frames of a work directory, if every clip is encoded and every byte of the codes is verified.

    Args:
        delete: delete them. Their record is kept, so nothing after them becomes stale.

    Returns:
        None when the frames were deleted earlier.

    Raises:
        ArtefactError: the frames are still needed, or this is not a work directory.
        BusyError: `lvt run` works in this directory.
    """
    settings, layout = settings_of(work_dir), Layout(work_dir)
    frames, codes = layout["frames"], layout["codes"]
    with exclusive_lock(work_dir) if delete else nullcontext():
        roles = [stage.role for stage in stages_of(settings)]
        states = dict(zip(roles, states_of(settings, look=False), strict=True))
        record = states["frames"].record
        if record is not None and not frames.exists():
            return None
        for role in ("frames", "vqvae", "codes"):
            _require_finished(states[role], frames)
        damaged = find_damaged_shards(codes)
        if damaged:
            raise ArtefactError(
                f"{codes} has {count_of(len(damaged), 'damaged shard')}, so {frames} is still needed; repair with "
                f"`lvt encode-dataset --frames {frames} --vqvae {layout['vqvae']} -o {codes} --repair`"
            )
        assert record is not None, "its state is done"
        num_bytes = sum(path.stat().st_size for path in frames.rglob("*") if path.is_file())
        restorable = has_videos(settings.videos, layout["manifest"], settings.manifest, settings.media)
        if delete:
            write_record(work_dir / FRAMES_MEMORY, record)
            shutil.rmtree(frames)
    return SpareFrames(str(frames), int(record.counts.get("clips", 0)), num_bytes, restorable)


def _require_finished(state: StageState, frames: Path) -> None:
    if state.state not in ("done", "outdated") or state.record is None:
        raise ArtefactError(
            f"{frames} is still needed: {state.name} is {state.state} ({'; '.join(state.reasons)}); finish it with "
            "`lvt run`, then delete the frames"
        )

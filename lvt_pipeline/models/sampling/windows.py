"""Clips of any length from a prior of one length: the windows in which they are sampled.

A window holds as many frames as the prior was trained on and is moved along the clip, so that the model never meets a
position that it was not trained on.

- Where every slice belongs to one frame, the window moves by one frame: each further frame is sampled as the last frame
  of a window, the only place at which the model has always seen all frames that its context reaches.
- In the other orders no frame is final before the last slices are. There the window moves on until it begins with the
  last frames of the window before, as many as the clip was primed with, and the rest is sampled from these.

The codes of a frame depend on no later window, so a longer sample begins with the shorter one. Only the first window of
a spatial prior may be shorter than the others; see `window_frames`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.network import PriorNetwork

PAPERS_FRAMES = 16  # the paper samples 16 frames at once, also from a spatial prior that was trained on 4


@dataclass(frozen=True)
class Window:
    """One pass over some frames of a clip.

    Attributes:
        start: the clip's frame that is the window's first.
        open_slices: (slice, known pixels) of each slice in which something is sampled.
        num_open_pixels: how many pixels are sampled.
    """

    start: int
    open_slices: tuple[tuple[int, int], ...]
    num_open_pixels: int


@dataclass(frozen=True)
class Rollout:
    """The windows of a clip.

    Attributes:
        window_frames: length of every window.
        windows: in order; every frame after the priming ones is sampled once.
    """

    window_frames: int
    windows: tuple[Window, ...]

    @property
    def num_frames(self) -> int:
        """Frames from the clip's first to the last window's end; the last ones may be more than were asked for."""
        return max((window.start for window in self.windows), default=0) + self.window_frames

    @property
    def num_open_pixels(self) -> int:
        """Pixels that are sampled, in all windows."""
        return sum(window.num_open_pixels for window in self.windows)


def window_frames(config: PriorConfig, frames: int) -> int:
    """Length of the windows in which a clip of `frames` frames is sampled.

    It is the length that the prior was trained on. A spatial prior, whose positions in time are those of its attention
    blocks, takes clips of up to the paper's 16 frames at once, rounded up to whole blocks.
    """
    block = config.block_shape[0]
    if config.subscale[0] > 1:
        return config.frames
    longest = max(config.frames, PAPERS_FRAMES // block * block)
    return min(-(-frames // block) * block, longest)


def plan_rollout(model: PriorNetwork, num_given: int, frames: int) -> Rollout:
    """The windows that continue clips.

    Args:
        num_given: priming frames.
        frames: length of a clip, including them.

    Raises:
        ShapeError: more are given than asked for, or too few for a prior whose first slices are never trained.
    """
    if num_given > frames:
        raise ShapeError(f"{num_given} priming frames are more than the {frames} frames asked for")
    config, length = model.config, window_frames(model.config, frames)
    moves_by_frame = config.is_frame_by_frame
    # Frames that a window after the first begins with.
    carried = length - 1 if moves_by_frame else _carried(config, num_given, length)
    windows = []
    known = num_given
    while known < frames:
        start = 0 if known < length else known - carried
        end = min(start + length, frames) if moves_by_frame else start + length
        windows.append(_window(model, start, known - start, end - start, length))
        known = end
    return Rollout(length, tuple(windows))


def _carried(config: PriorConfig, num_given: int, length: int) -> int:
    """As many as the clip was primed with: at least those of training and one, at most half of the window."""
    return min(max(min(num_given, length // 2), config.priming_frames, 1), length - 1)


def _window(model: PriorNetwork, start: int, num_known: int, num_wanted: int, length: int) -> Window:
    """The window at `start`, whose first frames are known and whose frames from `num_wanted` on are not needed."""
    geometry = model.geometry(length)
    known, wanted = (geometry.num_primed(count).tolist() for count in (num_known, num_wanted))
    slices = [(index, primed) for index, primed in enumerate(known) if primed < wanted[index]]
    if {index for index, _ in slices} - set(model.trainable_slices):
        raise ShapeError(
            f"this prior needs at least {model.config.priming_frames} priming frames, found {num_known}: with one "
            "frame per slice it was not trained on the first ones"
        )
    return Window(start, tuple(slices), sum(geometry.num_pixels - primed for _, primed in slices))

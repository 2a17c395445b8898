"""A clip that is continued one frame at a time, each frame under an action that is chosen after the frame before it.

A step shows the model the last frames, one fewer than its window holds, and samples one more. The random numbers are
those of `lvt sample`: a prior with one frame per slice gives exactly the sample of that clip, seed and actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.errors import ArtefactError, ConfigError, LVTError, ShapeError
from lvt_pipeline.jobs.sample import check_settings, choose_clips, report_unfinished
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.models.sampling.numbers import clip_generator
from lvt_pipeline.models.sampling.sampler import Decoders
from lvt_pipeline.models.sampling.windows import plan_rollout, window_frames
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.report.work import WorkDir
from lvt_pipeline.runs.actions import own_actions
from lvt_pipeline.runs.compatibility import label_numbers, require_fitting_codes, require_own_tokenizer
from lvt_pipeline.runs.read import load_prior, load_vqvae
from lvt_pipeline.storage import shortened_name, write_bytes
from lvt_pipeline.video.geometry import Frames
from lvt_pipeline.video.write import npy_bytes, write_mp4

MOST_FRAMES = 2000  # of a played clip: all of them are written to one video
SHOWN_PIXELS = 256  # smaller frames are enlarged in the video
REACH = 2  # standard deviations from the mean to the ends of an axis


@dataclass(frozen=True)
class Axis:
    """One number of an action: its name, the ends of its slider, and its value while nothing is pressed."""

    name: str
    low: float
    high: float
    rest: float


class Player:
    """The trained networks of a work directory, and the clip that is being continued.

    Args:
        settings: clips, start, priming frames, seed and sampling rule; length, actions and label are not used.

    Attributes:
        clips: those that can be continued, by id.
        axes: the numbers of an action; empty for a prior without actions.
        seed, clip: of the clip that is being continued; at first those of the settings.

    Raises:
        ArtefactError: the work directory lacks an artefact.
        ConfigError: there are no priming frames.
    """

    def __init__(
        self, work: WorkDir, settings: SampleSettings, *, device: str = "auto", progress: Progress = SILENT
    ) -> None:
        work.require_artefacts()
        for role in ("codes", "vqvae", "prior"):
            if not work.layout[role].exists():
                raise ArtefactError(f"{work.layout[role]} does not exist; make it with: {work.layout.command(role)}")
        if not settings.priming_frames:
            raise ConfigError("priming_frames=0 leaves nothing to start from; give at least 1")
        self._settings = replace(settings, frames=settings.priming_frames + 1, actions=None, label=None)
        self._store, self._prior = work.codes, work.layout["prior"]
        self._tokenizer = load_vqvae(work.layout["vqvae"], device=device)
        self._model = load_prior(self._prior, device=device)
        require_own_tokenizer(self._store, work.layout["vqvae"], self._tokenizer)
        require_fitting_codes(self._store, self._prior, self._model)
        check_settings(self._prior, self._model, self._settings)
        report_unfinished(self._prior, progress)
        clips, _ = choose_clips(self._store, self._prior, self._model, self._settings, progress)
        self.clips = {clip.id: clip for clip in clips}
        self.axes = self._axes()
        self._decoders: Decoders = {}
        self.restart(clips[0].id, settings.seed)

    def restart(self, clip_id: str, seed: int) -> Frames:
        """Begin one of `clips`; its priming frames, uint8 (T0, H, W, 3), as the tokenizer reconstructs them.

        Raises:
            LVTError: the clip cannot be played.
        """
        if clip_id not in self.clips:
            raise LVTError(f"clip {clip_id!r} is not one of those that can be played")
        settings, clip = self._settings, self.clips[clip_id]
        replace(settings, seed=seed)  # refuses one out of range
        self.clip: CodeClip = clip
        self.seed = seed
        self._generator = clip_generator(seed, clip_id, 0)
        self._labels = label_numbers([clip], self._prior, self._model)
        end = settings.start + settings.priming_frames
        self._codes: list[NDArray[Any]] = list(self._store.read(clip, settings.start, end).astype(np.int64))
        self._actions: list[NDArray[Any]] = []  # one fewer than frames
        if self.axes:
            config = self._model.config
            rows = own_actions(self._store, clip, self._prior, config, settings.start, settings.priming_frames)
            self._actions = list(rows[:-1])
        return self._frames(self._codes)

    def step(self, action: Sequence[float]) -> Frames:
        """The next frame, uint8 (1, H, W, 3), under the action (d,) of the frame before it.

        Raises:
            ShapeError: the action has another width, or is not finite.
            LVTError: the clip has as many frames as a clip may have.
        """
        if len(action) != len(self.axes) or not all(isinstance(one, int | float) and abs(one) < 1e30 for one in action):
            raise ShapeError(f"an action of this prior is {len(self.axes)} finite numbers")
        if len(self._codes) >= MOST_FRAMES:
            raise LVTError(f"a played clip has at most {MOST_FRAMES} frames; save it and restart")
        model, config = self._model, self._model.config
        shown = min(len(self._codes), window_frames(config, len(self._codes) + 1) - 1)
        size = (plan_rollout(model, shown, shown + 1).num_open_pixels, config.num_codebooks, 1)
        actions = [*self._actions, np.array(action, np.float32)]
        sampled = model.sample(
            np.stack(self._codes[-shown:])[None],
            frames=shown + 1,
            uniforms=torch.rand(size, generator=self._generator, dtype=torch.float64),
            labels=self._labels,
            actions=np.stack(actions[-shown:])[None] if self.axes else None,
            decoders=self._decoders,
            **self._settings.sampling,
        )
        self._actions = actions
        self._codes.append(sampled[0, -1].numpy())
        return self._frames(self._codes[-1:])

    @property
    def num_frames(self) -> int:
        """Length of the clip so far, including the priming frames."""
        return len(self._codes)

    def save(self, folder: Path) -> list[Path]:
        """Write the clip so far as a new mp4, and for a prior with actions its rows (T - 1, d) next to it.

        `lvt sample --actions` and `lvt continue --actions` read the rows.
        """
        name = self.clip.id.replace("/", "_")
        paths = (folder / shortened_name(name, f".seed-{self.seed}.{number}.mp4") for number in count(1))
        path = next(path for path in paths if not path.exists())
        folder.mkdir(parents=True, exist_ok=True)
        frames = self._frames(self._codes)
        write_mp4(path, frames, self.clip.fps, max(1, SHOWN_PIXELS // frames.shape[2]))
        if not self.axes:
            return [path]
        rows = path.with_suffix(".action.npy")
        write_bytes(rows, npy_bytes(np.array(self._actions, np.float32).reshape(-1, len(self.axes))))
        return [path, rows]

    def _frames(self, codes: Sequence[NDArray[Any]]) -> Frames:
        frames: Frames = self._tokenizer.decode(np.stack(codes), batch_size=min(len(codes), 32)).numpy()
        return frames

    def _axes(self) -> list[Axis]:
        embedding, config = self._model.encoder.actions, self._model.config
        if embedding is None:
            return []
        widths = zip(config.actions or (), config.action_widths or (), strict=True)
        names = [f"{name}[{number}]" if width > 1 else name for name, width in widths for number in range(width)]
        axes = []
        for name, mean, std in zip(names, embedding.mean.tolist(), embedding.std.tolist(), strict=True):
            low, high = mean - REACH * std, mean + REACH * std
            axes.append(Axis(name, low, high, min(max(0.0, low), high)))
        return axes

"""What `lvt figures` and `lvt show` show, as settings. Nothing here loads torch, so that help texts stay quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lvt_pipeline.jobs.settings import Split
from lvt_pipeline.settings import Settings, setting

FigureName = Literal[
    "samples",
    "long-rollout",
    "code-frequencies",
    "codes",
    "good-sample",
    "bad-sample",
    "tokenizer-loss",
    "prior-loss",
    "code-usage",
    "horizon-psnr",
    "horizon-ssim",
    "horizon-lpips",
]


@dataclass(frozen=True, kw_only=True)
class FigureSettings(Settings):
    """The figures, and the samples in them."""

    only: tuple[FigureName, ...] = setting((), "Figure to plot; may be repeated.", example="NAME", unset="all")
    clips: tuple[str, ...] = setting(
        (), "Id of a clip to show; may be repeated.", option="--clip", example="ID", unset="the first ones"
    )
    num_clips: int = setting(8, "Number of clips in the figure of samples.", at_least=1)
    num_frames: int = setting(16, "Number of frames of each sample.", at_least=1)
    with_real: bool = setting(False, "Show the real continuation above each sample.", option="--real")


@dataclass(frozen=True, kw_only=True)
class ShowSettings(Settings):
    """The clips, and how much of them."""

    clips: tuple[str, ...] = setting(
        (),
        "Id of a clip to show; may be repeated. In a store of samples, all samples of that clip.",
        option="--clip",
        example="ID",
        unset="random clips",
    )
    num_clips: int = setting(8, "Number of random clips.", at_least=1, at_most=100)
    seed: int = setting(0, "Random seed of the choice of clips.", at_least=0)
    split: Split | None = setting(None, "Split of the clips.", unset="all")
    num_frames: int = setting(8, "Number of frames per clip on a contact sheet.", at_least=1, at_most=100)
    seconds: float = setting(10.0, "Largest length of a film in seconds.", above=0, at_most=86400)
    scale: int | None = setting(
        None, "Factor by which pixels are enlarged.", at_least=1, at_most=64, unset="to about 96 pixels"
    )

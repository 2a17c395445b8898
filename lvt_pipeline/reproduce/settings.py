"""The settings of a work directory of `lvt reproduce`: the contents of `reproduce.toml`, and the options that set them.

Nothing here loads torch, so that help texts stay quick.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lvt_pipeline import config
from lvt_pipeline.demo.videos import DemoSettings
from lvt_pipeline.errors import ConfigError
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.jobs.settings import EncodeSettings
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.manifest.sources import location_of
from lvt_pipeline.settings import Settings, setting

SETTINGS_NAME = "reproduce.toml"
SCALES = ("tiny", "small", "paper")
Scale = Literal["tiny", "small", "paper"]


@dataclass(frozen=True, kw_only=True)
class ReproduceSettings(Settings):
    """The contents of `reproduce.toml` in a work directory. Its `scale` is the preset."""

    scale: Scale = setting("tiny", "Preset that the settings started from.")
    videos: str | None = setting(
        None, "Source of videos.", unset="the frames in the work directory, or else the clips of a demo"
    )
    media: str | None = setting(None, "Folder or URL of the videos that a list names.", unset="next to the list")
    max_failures: float = setting(0.5, "Fraction of clips that may fail in ingest.", at_least=0, at_most=1)
    runs: int = setting(10, "Number of sampling runs, each with its own seed.", at_least=1)
    max_clips: int | None = setting(
        None, "Largest number of test clips; the first ones are measured.", at_least=1, unset="all"
    )
    spatial: Literal["reference", "full", "both"] = setting(
        "reference",
        'Rows "Spatial": as the released code trains them (4-frame clips), as the paper describes them (16), or both.',
    )
    repetitions: int = setting(3, "Number of timed samplings of one clip, after one that is not counted.", at_least=1)
    i3d: str | None = setting(None, "TorchScript network of FVD.", unset="no FVD")
    demo: DemoSettings = field(default_factory=DemoSettings)
    manifest: ManifestSettings = field(default_factory=ManifestSettings)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    encode: EncodeSettings = field(default_factory=EncodeSettings)
    # Changes to the settings of every tokenizer and prior; `preset` in them replaces the one of the row.
    vqvae: Mapping[str, Any] = field(default_factory=dict)
    prior: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Asked(Settings):
    """The options that set some of them by other names; None leaves a setting as it is."""

    scale: str | None = setting(
        None,
        "Preset. tiny: minutes on two cores. small: one GPU. paper: as published.",
        option="--preset",
        old_options=("--scale",),
        unset="that of the work directory, or tiny",
    )
    videos: str | None = setting(
        None,
        "Folder of videos, or any source that `lvt manifest build` accepts.",
        unset="those of the work directory, or a demo",
    )
    media: str | None = setting(None, "Folder or URL of the videos that a list names.", unset="next to the list")
    i3d: str | None = setting(None, "TorchScript network of FVD; without it there is no FVD.")
    runs: int | None = setting(None, "Number of sampling runs.", at_least=1, unset="that of the preset")
    max_clips: int | None = setting(None, "Largest number of test clips.", at_least=1, unset="that of the preset")

    @property
    def given(self) -> dict[str, Any]:
        """The settings that were given, without the preset; locations are absolute."""
        locate: dict[str, Callable[[str], str]] = {"videos": location_of, "media": location_of, "i3d": os.path.abspath}
        given = {name: value for name, value in asdict(self).items() if value is not None and name != "scale"}
        return {name: locate[name](value) if name in locate else value for name, value in given.items()}


def load_settings(work_dir: Path, asked: Asked = Asked(), overrides: Sequence[str] = ()) -> ReproduceSettings:
    """The settings that the work directory was made with, or those of a preset, changed by options.

    Raises:
        ConfigError: a setting is unknown, or the directory holds experiments of another preset.
    """
    path, scale = work_dir / SETTINGS_NAME, asked.scale
    saved = config.read_toml(path) if path.is_file() else None
    if scale is not None and scale not in SCALES:
        close = difflib.get_close_matches(scale, SCALES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"there is no preset {scale!r}; {hint}known: {', '.join(SCALES)}")
    if saved is not None and scale is not None and saved.get("scale") != scale:
        raise ConfigError(
            f"{work_dir} holds experiments of preset {saved.get('scale')} but --preset {scale} was asked for; "
            "give another work directory"
        )
    chosen = scale or "tiny"
    start = saved if saved is not None else {"scale": chosen, **config.read_preset("reproduce", chosen)}
    return config.build(ReproduceSettings, config.merge(start, config.parse_overrides(overrides), asked.given))

"""The settings of a work directory: the contents of `pipeline.toml`, and how they are combined."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lvt_pipeline import config
from lvt_pipeline.errors import ArtefactError, ConfigError
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.jobs.settings import DecodeSettings, EncodeSettings, SampleSettings
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.provenance import finished_record
from lvt_pipeline.settings import Settings, required_setting, setting
from lvt_pipeline.storage import write_bytes
from lvt_pipeline.training.settings import PriorRunSettings, VQVAERunSettings
from lvt_pipeline.video.locations import is_url
from lvt_pipeline.workspace.layout import ARTEFACTS, SETTINGS_NAME

WhenDataChanges = Literal["keep", "refine", "retrain"]
STARTS = ("preset", "recipe")  # in the tables `vqvae` and `prior`: what their settings start from


@dataclass(frozen=True, kw_only=True)
class DataChanges(Settings):
    """What `lvt run` does with a trained network when only its data have changed."""

    vqvae: WhenDataChanges = setting("keep", "Tokenizer: keep it, refine it on the new frames, or retrain it.")
    prior: WhenDataChanges = setting("keep", "Prior: keep it, refine it on the new codes, or retrain it.")


@dataclass(frozen=True, kw_only=True)
class PipelineSettings(Settings):
    """All settings of `pipeline.toml`. The tables `vqvae` and `prior` may start from a `preset` and a `recipe`."""

    videos: str = required_setting("Source of videos: a folder, pattern, list or URL, as for `lvt manifest build`.")
    media: str | None = setting(None, "Folder or URL of the videos that a list names.", unset="next to the list")
    work_dir: str = setting(".", "Work directory, relative to the file.")
    max_failures: float = setting(0.5, "Fraction of clips that may fail in ingest.", at_least=0, at_most=1)
    manifest: ManifestSettings = field(default_factory=ManifestSettings)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    vqvae: VQVAERunSettings = field(default_factory=VQVAERunSettings)
    encode: EncodeSettings = field(default_factory=EncodeSettings)
    prior: PriorRunSettings = field(default_factory=PriorRunSettings)
    sample: SampleSettings = field(default_factory=SampleSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    when_data_changes: DataChanges = field(default_factory=DataChanges)

    def __post_init__(self) -> None:
        super().__post_init__()
        model = self.prior.model
        for name, frames in (("sample", self.sample.frames), ("evaluate", self.evaluate.frames)):
            if model.subscale[0] != 1 and frames != model.frames:  # better now than after the training
                raise ConfigError(f"{name}.frames={frames} must be prior.model.frames={model.frames}")


def load_settings(
    *,
    file: Path | None = None,
    videos: Path | str | None = None,
    media: Path | str | None = None,
    work_dir: Path | None = None,
    preset: str | None = None,
    overrides: tuple[str, ...] = (),
) -> PipelineSettings:
    """Settings from a preset, a file, and options; later wins. Paths in a file are relative to the file.

    Without file and preset, the settings that `work_dir` was made with are the start; in a new one, the preset "tiny".

    Raises:
        ConfigError: no videos were named, or a setting is unknown.
    """
    if file is None and preset is None and work_dir is not None and (work_dir / SETTINGS_NAME).is_file():
        file = work_dir / SETTINGS_NAME  # what this directory was made with
    tables = config.read_toml(file) if file else {}
    preset = preset or tables.pop("preset", None) or ("tiny" if file is None else None)
    base = file.parent if file else Path()
    for name in ("videos", "media", "work_dir"):
        if isinstance(tables.get(name), str) and not is_url(tables[name]):
            tables[name] = str(base / tables[name])
    if file:
        tables.setdefault("work_dir", str(base))
    options = {"videos": videos, "media": media, "work_dir": work_dir}
    given = {name: str(path) for name, path in options.items() if path is not None}
    said = config.merge(config.read_preset("pipeline", preset) if preset else {}, tables)
    asked = config.merge(config.parse_overrides(overrides), given)
    merged = config.merge(said, asked)
    for family in ("vqvae", "prior"):
        layers = [layer.get(family, {}) for layer in (said, asked)]
        if all(isinstance(layer, Mapping) for layer in layers):
            merged[family] = _started(family, *layers)
    if "videos" not in merged:
        raise ConfigError('no videos were named; give --videos DIR, or videos = "DIR" in the pipeline file')
    return config.build(PipelineSettings, merged, where=str(file or "settings"))


def _started(family: str, said: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a family with its `preset` and `recipe` filled in.

    In a file the settings next to a recipe change it; one given on the command line replaces that of the file.
    """
    preset = asked.get("preset", said.get("preset"))
    start = config.read_preset(family, preset) if preset is not None else {}
    if "recipe" in said:
        start = config.with_recipe(family, start, said["recipe"], preset)
    table = config.merge(start, {key: value for key, value in said.items() if key not in STARTS})
    if "recipe" in asked:
        table = config.with_recipe(family, table, asked["recipe"], preset)
    return config.merge(table, {key: value for key, value in asked.items() if key not in STARTS})


def save_settings(settings: PipelineSettings, work_dir: Path) -> None:
    """Write `pipeline.toml`, so that the directory follows these settings. A file that means the same is kept."""
    path = work_dir / SETTINGS_NAME
    saved = load_settings(file=path) if path.exists() else None
    if saved is None or _located(saved) != _located(settings):
        # Absolute, so that the file means the same wherever it is read from; work_dir stays "here".
        write_bytes(path, config.to_toml(replace(_located(settings), work_dir=".")).encode())


def names_same_videos(settings: PipelineSettings, work_dir: Path) -> bool:
    """Whether a work directory was made of the videos that these settings name."""
    path = work_dir / SETTINGS_NAME
    if not path.exists():
        return False
    saved, wanted = _located(load_settings(file=path)), _located(settings)
    return (saved.videos, saved.media) == (wanted.videos, wanted.media)


def sample_settings_of(work_dir: Path, settings: SampleSettings, kept: Collection[str]) -> SampleSettings:
    """The table `sample` of a work directory, except the fields that are `kept` from `settings`.

    Without a settings file, `settings` themselves.
    """
    if not (work_dir / SETTINGS_NAME).is_file():
        return settings
    values = {name: getattr(settings, name) for name in kept}
    if "temperature" in kept:
        values.setdefault("codebook_temperatures", None)  # the two exclude each other
    return replace(settings_of(work_dir).sample, **values)


def settings_of(work_dir: Path) -> PipelineSettings:
    """The settings of an existing work directory.

    Raises:
        ArtefactError: there is no work directory at this path.
    """
    if work_dir.is_file():
        raise ArtefactError(f"{work_dir} is a file; give the work directory")
    path = work_dir / SETTINGS_NAME
    if not path.is_file():
        raise ArtefactError(
            f"{work_dir} is not a work directory (it has no {SETTINGS_NAME}, and no stage put its output there); "
            "`lvt run` makes one"
        )
    return load_settings(file=path)


def has_artefacts(work_dir: Path) -> bool:
    """Whether a directory holds finished outputs in the places where `lvt run` puts them."""
    return any(finished_record(work_dir / artefact.path) is not None for artefact in ARTEFACTS)


def find_work_dir(path: Path) -> Path:
    """The work directory that a path is in, or is.

    Raises:
        ArtefactError: there is none.
    """
    full = path.absolute()
    for folder in (full, *full.parents):
        if (folder / SETTINGS_NAME).is_file() or has_artefacts(folder):
            return folder
    raise ArtefactError(
        f"{path} is not in a work directory, so there is nothing to compare it with; `lvt inspect` describes it"
    )


def _located(settings: PipelineSettings) -> PipelineSettings:
    """The settings with absolute paths, for comparing."""

    def resolved(location: str) -> str:
        return location if is_url(location) else str(Path(location).resolve())

    return replace(
        settings,
        videos=resolved(settings.videos),
        media=None if settings.media is None else resolved(settings.media),
        work_dir=resolved(settings.work_dir),
    )

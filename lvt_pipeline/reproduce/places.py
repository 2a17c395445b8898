"""The files of a work directory of `lvt reproduce`, and the source of its clips.

W/reproduce.toml   the resolved settings; later calls use them
W/manifest.jsonl  W/frames/             as `lvt run` has them; W/demo-videos/ where no videos were named
W/runs/vqvae-nc4/  W/codes-nc4.zarr/    by number of codebooks
W/runs/prior-nc4-single-frame/          by row
W/eval/                                 a result for each tokenizer and prior, and the time that sampling takes
W/tables/table2.md .csv .json           the printed tables
W/figures/figure5.png .svg .csv        the plotted figures
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lvt_pipeline.demo.videos import SETTINGS_NAME as DEMO_NAME
from lvt_pipeline.errors import ConfigError
from lvt_pipeline.provenance import finished_record
from lvt_pipeline.reproduce.experiments import PriorRecipe, TokenizerRecipe
from lvt_pipeline.reproduce.published import Dataset
from lvt_pipeline.reproduce.settings import SETTINGS_NAME
from lvt_pipeline.workspace.settings import load_settings as load_pipeline

DEMO = "the demo's clips"


class Places:
    """The paths of a work directory.

    Attributes:
        settings: the settings that the directory was made with.
        demo_videos: clips made here, where no videos were named.
        manifest: the list of clips.
        frames: frame shards.
        tables: folder of the tables.
    """

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.settings = work_dir / SETTINGS_NAME
        self.demo_videos = work_dir / "demo-videos"
        self.manifest = work_dir / "manifest.jsonl"
        self.frames = work_dir / "frames"
        self.tables = work_dir / "tables"

    def run(self, recipe: TokenizerRecipe | PriorRecipe) -> Path:
        """Run directory of a tokenizer or prior."""
        return self.work_dir / "runs" / _name(recipe)

    def codes(self, recipe: TokenizerRecipe) -> Path:
        """Code store of a tokenizer."""
        return self.work_dir / f"codes-{recipe.name}.zarr"

    def result(self, recipe: TokenizerRecipe | PriorRecipe) -> Path:
        """The results of the measurements."""
        return self.work_dir / "eval" / f"{_name(recipe)}.json"

    def timing(self, recipe: PriorRecipe) -> Path:
        """How long sampling takes."""
        return self.work_dir / "eval" / f"timing-{recipe.name}.json"

    def figure(self, name: str) -> Path:
        """A figure, without ending."""
        return self.work_dir / "figures" / name


@dataclass(frozen=True)
class Data:
    """What the experiments are made on: in words, and which dataset of the paper it is, if any."""

    name: str
    dataset: Dataset | None


def makes_demo(videos: str | None, places: Places) -> bool:
    """Whether the clips are the demo's, made here: nothing else was named or is there."""
    if videos is not None:
        return False
    return places.demo_videos.exists() or not (places.manifest.exists() or places.frames.exists())


def describe_data(videos: str | None, places: Places) -> Data:
    """What the frames in a work directory are.

    Args:
        videos: the source the user gave; None: the one in use.
    """
    videos = videos or _videos_of_run(places.work_dir)
    if makes_demo(videos, places) or (videos is not None and (Path(videos) / DEMO_NAME).is_file()):
        return Data(DEMO, None)
    record = finished_record(places.manifest)
    counts = {} if record is None else record.counts
    kind, labels = counts.get("source"), counts.get("labels", 0)
    if kind == "bair":
        return Data("BAIR robot pushing", "bair")
    if kind == "kinetics":  # of 400, 600 or 700 classes
        return Data(f"Kinetics, {labels} classes", "kinetics" if 400 < labels <= 600 else None)
    name = Path(videos).name if videos is not None else places.work_dir.resolve().name
    return Data(f"the clips of {name}", None)


def _name(recipe: TokenizerRecipe | PriorRecipe) -> str:
    kind = "vqvae" if isinstance(recipe, TokenizerRecipe) else "prior"
    return f"{kind}-{recipe.name}"


def _videos_of_run(work_dir: Path) -> str | None:
    """What `lvt run` made the frames of, if this is its work directory."""
    try:
        return load_pipeline(work_dir=work_dir).videos
    except ConfigError:
        return None

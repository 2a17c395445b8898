"""How clips are found in a source, and how they are assigned to splits and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.settings import Settings, setting

SourceKind = Literal["folder", "csv", "jsonl", "kinetics", "bair", "rlds", "lerobot", "ucf101", "frames"]


@dataclass(frozen=True, kw_only=True)
class ManifestSettings(Settings):
    """How clips are found, and how they are assigned to splits and labels."""

    other_names: ClassVar[Mapping[str, str]] = {
        "type": "kind",
        "format": "kind",
        "dataset": "kind",
        "val_fraction": "val_share",
        "val_split": "val_share",
        "val_ratio": "val_share",
        "test_fraction": "test_share",
        "test_split": "test_share",
        "test_ratio": "test_share",
        "class_column": "label_column",
        "video_column": "path_column",
    }

    kind: SourceKind | None = setting(
        None, "Kind of the source. auto: detect the kind and print it. frames: folders of pictures.", none_word="auto"
    )
    split: Literal["auto", "hash", "none"] = setting(
        "auto",
        "Assignment to splits. auto: from the source (folders named train, val and test, a column or a list), or else "
        "as hash. hash: by content. none: every clip is in train.",
    )
    val_share: float = setting(0.1, "Fraction of clips in val.", at_least=0, at_most=1)
    test_share: float = setting(0.1, "Fraction of clips in test.", at_least=0, at_most=1)
    label: Literal["folder", "none"] = setting(
        "folder", "Label of a clip. folder: the name of its folder, or the label in the list. none: no label."
    )
    path_column: str | None = setting(
        None, "Column of a CSV or JSONL file that names the video.", unset="path, source or video"
    )
    label_column: str | None = setting(None, "Column that names the class.", unset="label")
    split_column: str | None = setting(None, "Column that names the split.", unset="split")
    camera: str | None = setting(
        None,
        "Camera of recordings that have several; or several, with commas, or all: then each camera is a clip.",
        unset="BAIR image_aux1, others the first by name",
    )
    fold: int | None = setting(None, "Number of the UCF101 split, 1 to 3.", at_least=1, at_most=3, unset="1")
    fps: float | None = setting(
        None, "Frame rate of sources that hold no times.", above=0, unset="BAIR and RLDS 10, folders of pictures 25"
    )
    missing: Literal["list", "drop"] | None = setting(
        None,
        "Treatment of clips without a file. list: `lvt ingest` records them as missing. drop: they are left out.",
        unset="list",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_share + self.test_share >= 1:
            raise ConfigError(
                f"val_share={self.val_share} and test_share={self.test_share} leave nothing to train on; "
                f"their sum must stay below 1"
            )

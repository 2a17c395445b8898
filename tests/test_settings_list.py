"""The lists of all settings: in `--help`, in the documentation, and as complete as the dataclasses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from lvt_pipeline.config import to_plain
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.jobs.settings import DecodeSettings, EncodeSettings, ExportSettings, ImportSettings, SampleSettings
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.models.prior.config import PriorModelSettings
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.reproduce.settings import ReproduceSettings
from lvt_pipeline.settings import Listed, list_settings, setting
from lvt_pipeline.training.settings import PriorRunSettings, PriorTraining, VQVAERunSettings, VQVAETraining
from lvt_pipeline.workspace.settings import PipelineSettings

DOCS = Path(__file__).parents[1] / "docs"
CLASSES = {
    "train-prior": (PriorRunSettings, PriorModelSettings, PriorTraining),
    "train-vqvae": (VQVAERunSettings, VQVAEConfig, VQVAETraining),
}
STAGE_CLASSES = (
    ManifestSettings,
    IngestSettings,
    EncodeSettings,
    SampleSettings,
    DecodeSettings,
    EvaluateSettings,
    ExportSettings,
    ImportSettings,
)


@dataclass(frozen=True)
class Base:
    rate: float = setting(1e-5, "Speed.")
    kind: Literal["a", "b"] | None = setting(None, "Kind.", unset="a")


@dataclass(frozen=True)
class Inner(Base):
    other_names: ClassVar[Mapping[str, str]] = {"shape": "size (height, width)"}

    size: tuple[int, int] = setting((1, 2), "Height and width.")
    rate: float = 2.0


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    is_on: bool = True


def test_keys_have_their_defaults_choices_and_words() -> None:
    assert list(list_settings(Outer)) == [
        Listed("inner.rate", "2.0", (), "Speed."),
        Listed("inner.kind", "unset", ("a", "b"), "Kind. Unset: a."),
        Listed("inner.size", "[1, 2]", (), "Height and width.", ("shape",)),
        Listed("is_on", "true", (), ""),
    ]


def test_every_setting_of_every_stage_has_words() -> None:
    for cls in (PriorRunSettings, VQVAERunSettings, PipelineSettings, ReproduceSettings, *STAGE_CLASSES):
        for one in list_settings(cls):
            if one.name in ("vqvae", "prior"):  # tables of changes, in a file of `lvt reproduce`
                continue
            assert one.meaning.endswith("."), f"{cls.__name__}.{one.name}: {one.meaning!r}"


def test_lvt_run_lists_every_setting_of_a_pipeline_file(lvt: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = lvt("run", "--list-settings")
    assert code == 0
    for one in list_settings(PipelineSettings):
        assert f"{one.name} = {one.default}" in out
    assert "ingest.geometry.size = 64" in out


@pytest.mark.parametrize("command", sorted(CLASSES))
def test_help_lists_every_key(command: str, lvt: Callable[..., tuple[int, str, str]]) -> None:
    whole, model, training = CLASSES[command]
    names = [f"model.{item.name}" for item in fields(model)] + [f"training.{item.name}" for item in fields(training)]
    assert [one.name for one in list_settings(whole)] == names
    code, out, _ = lvt(command, "--help")
    assert code == 0
    assert all(f"\n  {name} = " in out for name in names)
    assert len(names) > 40
    assert set(to_plain(training())) <= {name.partition(".")[2] for name in names}


def test_documentation_lists_every_key_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    sys.modules.pop("generate_settings", None)
    import generate_settings  # type: ignore[import-not-found]

    text = (DOCS / "configuration.md").read_text()
    assert generate_settings.page(text) == text, "run python docs/generate_settings.py"
    assert '| `training.parallel` | `"ddp"` | `"ddp"` | `ddp`, `fsdp`. ' in text
    assert all(f"| `{table}." in text for table in generate_settings.STAGES)

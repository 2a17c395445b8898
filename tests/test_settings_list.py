"""The lists of all settings: in `--help`, in the documentation, and as complete as the dataclasses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest

from lvt_pipeline.config import to_plain
from lvt_pipeline.models.vqvae.model import VQVAEConfig
from lvt_pipeline.settings_list import Setting, list_settings
from lvt_pipeline.training.prior_settings import PriorModelSettings, PriorRunSettings, PriorTraining
from lvt_pipeline.training.vqvae import VQVAERunSettings, VQVAETraining

DOCS = Path(__file__).parents[1] / "docs"
CLASSES = {
    "train-prior": (PriorRunSettings, PriorModelSettings, PriorTraining),
    "train-vqvae": (VQVAERunSettings, VQVAEConfig, VQVAETraining),
}


@dataclass(frozen=True)
class Base:
    rate: float = 1e-5  # how fast
    kind: Literal["a", "b"] | None = None


@dataclass(frozen=True)
class Inner(Base):
    """With a word: that is no field."""

    # Said above,
    # in two lines.
    size: tuple[int, int] = field(default=(1, 2))
    rate: float = 2.0


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    is_on: bool = True  # yes or no; none


def test_keys_have_their_defaults_choices_and_comments() -> None:
    assert list(list_settings(Outer)) == [
        Setting("inner.rate", "2", (), "how fast"),
        Setting("inner.kind", "unset", ("a", "b"), ""),
        Setting("inner.size", "[1, 2]", (), "Said above, in two lines"),
        Setting("is_on", "true", (), "yes or no; none"),
    ]


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
    assert '| `training.parallel` | `"ddp"` | `"ddp"` | `ddp`, `fsdp`: ' in text

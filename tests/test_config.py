"""Settings: what is read, what is refused, and that presets say what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from lvt_pipeline import config
from lvt_pipeline.errors import ConfigError
from lvt_pipeline.training.settings import PriorRunSettings


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 8
    kernel: tuple[int, int, int] = (1, 3, 3)
    kind: Literal["red", "blue"] = "red"

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ConfigError(f"width={self.width} must be even")


@dataclass(frozen=True, kw_only=True)
class Outer:
    rate: float = 0.5
    name: str = "x"
    clip: float | None = None
    is_fast: bool = False
    model: Inner = field(default_factory=Inner)


def test_missing_settings_take_their_defaults() -> None:
    assert config.build(Outer, {}) == Outer()


def test_nested_settings_are_built() -> None:
    built = config.build(Outer, {"model": {"width": 4, "kernel": [5, 3, 3]}, "rate": 1})
    assert built == Outer(rate=1.0, model=Inner(width=4, kernel=(5, 3, 3)))


def test_unknown_setting_is_refused_with_the_closest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting model\.widht; did you mean model\.width\?"):
        config.build(Outer, {"model": {"widht": 4}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": "fast"}, "rate needs a number, found 'fast'"),
        ({"name": 3}, "name needs a text, found 3"),
        ({"is_fast": 1}, "is_fast needs true or false, found 1"),
        ({"model": {"width": 4.5}}, r"model\.width needs a whole number, found 4\.5"),
        ({"model": {"width": True}}, r"model\.width needs a whole number, found True"),
        ({"model": {"kernel": [1, 2]}}, r"model\.kernel needs 3 numbers, found 2"),
        ({"model": {"kind": "green"}}, "'green' is not one of red, blue"),
        ({"model": 3}, "model is a table of settings, found 3"),
        ({"model": {"width": 3}}, "here.toml: width=3 must be even"),
    ],
)
def test_wrong_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.build(Outer, values, where="here.toml")


def test_settings_survive_toml_and_back(tmp_path: Path) -> None:
    settings = Outer(clip=1.5, model=Inner(kernel=(5, 1, 1), kind="blue"))
    path = tmp_path / "settings.toml"
    path.write_text(config.to_toml(settings))
    assert config.build(Outer, config.read_toml(path)) == settings


def test_overrides_are_toml_and_bare_words_are_texts() -> None:
    parsed = config.parse_overrides(["model.width=4", "model.kernel=[1,1,1]", "rate=1e-3", "name=hello"])
    assert parsed == {"model": {"width": 4, "kernel": [1, 1, 1]}, "rate": 1e-3, "name": "hello"}


def test_override_without_equals_is_refused() -> None:
    with pytest.raises(ConfigError, match="write it as name=value"):
        config.parse_overrides(["model.width"])


def test_broken_toml_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("a = 1\nb = \n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not a TOML file: .*line 2"):
        config.read_toml(path)


def test_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml does not exist"):
        config.read_toml(tmp_path / "none.toml")


def test_a_preset_with_a_base_states_only_what_differs() -> None:
    base, tied = config.read_preset("prior", "table8-adaptive"), config.read_preset("prior", "table8-adaptive-tied")
    assert tied == config.merge(base, {"model": {"head": "adaptive-tied"}})
    assert base["model"]["width"] == 512
    assert base["training"]["optimizer"] == "rmsprop"


def test_a_file_may_name_a_base_and_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "single-frame"\nrecipe = "default"\n[model]\nwidth = 64\n')
    mine = config.load(PriorRunSettings, "prior", config=file)
    paper = config.load(PriorRunSettings, "prior", preset="single-frame", overrides=["model.width=64"])
    assert mine.model == paper.model
    assert (mine.training.max_steps, mine.training.optimizer) == (600_000, "adamw")
    file.write_text('base = "single-fame"\n')
    with pytest.raises(ConfigError, match=r"no prior preset 'single-fame'; did you mean single-frame\?"):
        config.load(PriorRunSettings, "prior", config=file)


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no pipeline preset 'tinny'; did you mean tiny\?"):
        config.read_preset("pipeline", "tinny")


def test_later_layers_win_key_by_key() -> None:
    assert config.merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}) == {"a": {"x": 1, "y": 3}}

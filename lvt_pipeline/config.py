"""Settings: frozen dataclasses, read from TOML files and `--set a.b=value`, refused when unknown.

Every stage has one settings dataclass, possibly with nested ones; its defaults are what the documentation shows, and
the resolved settings are saved with every output.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from lvt_pipeline import storage
from lvt_pipeline.errors import ConfigError
from lvt_pipeline.settings import build_tables

Settings = TypeVar("Settings")


def build(cls: type[Settings], values: Mapping[str, Any], where: str = "settings") -> Settings:
    """Make a settings dataclass from plain data; missing keys take their defaults.

    Args:
        where: the file or option the values came from, named in errors; "" for no name.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, or a combination the dataclass refuses.
    """
    try:
        result = build_tables(cls, values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error
    assert isinstance(result, cls)
    return result


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ConfigError: it is missing or not TOML (with line and column).
    """
    if not path.exists():
        raise ConfigError(f"config file {path} does not exist")
    return storage.read_toml(path, error=ConfigError)


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn `--set model.width=256` options into nested tables. Values are TOML; a bare word is a text.

    Raises:
        ConfigError: an assignment has no `=`.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {assignment}: write it as name=value, for example --set model.width=256")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):  # not TOML, or a number of thousands of digits
            value = text
        table = result
        *parents, leaf = name.strip().split(".")
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {assignment}: {parent} was already set to a plain value")
        table[leaf] = value
    return result


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables, later layers winning key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def load(
    cls: type[Settings],
    family: str,
    *,
    preset: str | None = None,
    recipe: str | None = None,
    config: Path | None = None,
    overrides: Iterable[str] = (),
) -> Settings:
    """Settings of a stage: defaults, then a preset, then a file, then a recipe, then `--set`; later wins.

    Args:
        family: folder of the presets: "vqvae", "prior" or "pipeline".
        recipe: the training recipe, instead of that of the preset or file.
    """
    tables = merge(
        read_preset(family, preset) if preset else {},
        with_base(family, read_toml(config)) if config else {},
    )
    if recipe:
        tables = with_recipe(family, tables, recipe, preset)
    return build(cls, merge(tables, parse_overrides(overrides)), where=str(config) if config else "settings")


def read_preset(family: str, name: str) -> dict[str, Any]:
    """The tables of a preset that ships with the package.

    Raises:
        ConfigError: there is no such preset (the known ones are named).
    """
    return with_base(family, _read_shipped(family, name, f"{family} preset"))


def with_base(family: str, tables: Mapping[str, Any]) -> dict[str, Any]:
    """Tables completed by the preset or recipe they name at the top.

    `base = "NAME"` starts from another preset of the family, so that only the differences are stated. `recipe = "NAME"`
    starts from the settings of that recipe, some of which the tables may change.

    Raises:
        ConfigError: there is no such preset or recipe.
    """
    own = {key: value for key, value in tables.items() if key not in ("base", "recipe")}
    base = read_preset(family, tables["base"]) if "base" in tables else {}
    recipe = read_recipe(family, tables["recipe"]) if "recipe" in tables else {}
    return merge(base, recipe, own)


def read_recipe(family: str, name: str) -> dict[str, Any]:
    """A training recipe: optimizer, rates, clipping and moving average, in a table `training`.

    The network, the batch size and the number of steps are left to presets.

    Raises:
        ConfigError: there is no such recipe (the known ones are named).
    """
    return _read_shipped(_recipe_folder(family), name, f"{family} recipe")


def with_recipe(family: str, tables: Mapping[str, Any], name: str, preset: str | None = None) -> dict[str, Any]:
    """Tables in which this recipe replaces every setting that any recipe states.

    Args:
        preset: the preset that the tables started from. One that uses this recipe already, perhaps with rates for its
            size, is left unchanged.

    Raises:
        ConfigError: there is no such recipe.
    """
    recipe = read_recipe(family, name)
    if preset is not None and _recipe_of(family, preset) == name:
        return dict(tables)
    stated = {key for other in recipe_names(family) for key in read_recipe(family, other)["training"]}
    training = tables.get("training", {})
    if not isinstance(training, Mapping):
        return dict(tables)  # building settings of it names the mistake
    kept = {key: value for key, value in training.items() if key not in stated}
    return merge({**tables, "training": kept}, recipe)


def recipe_names(family: str) -> list[str]:
    """Names of the recipes that ship with the package, sorted."""
    return preset_names(_recipe_folder(family))


def _recipe_of(family: str, preset: str) -> str | None:
    """The recipe that a preset, or the one it is based on, names."""
    tables = _read_shipped(family, preset, f"{family} preset")
    if "recipe" in tables or "base" not in tables:
        return tables.get("recipe")
    return _recipe_of(family, tables["base"])


def _recipe_folder(family: str) -> str:
    return f"{family}-recipes"


def _read_shipped(folder: str, name: str, what: str) -> dict[str, Any]:
    known = preset_names(folder)
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"there is no {what} {name!r}; {hint}known: {', '.join(known)}")
    return tomllib.loads((files("lvt_pipeline") / "presets" / folder / f"{name}.toml").read_text())


def preset_names(family: str) -> list[str]:
    """Names of the presets that ship with the package, sorted."""
    folder = files("lvt_pipeline") / "presets" / family
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def to_plain(settings: Any) -> dict[str, Any]:
    """A settings dataclass as nested plain data (tuples become lists), for JSON and fingerprints."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    result = plain(settings)
    assert isinstance(result, dict)
    return result


def to_toml(settings: Any) -> str:
    """A settings dataclass as a TOML text that reads back to the same settings; unset values are left out."""
    return tomli_w.dumps(without_none(to_plain(settings)))


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, names with dots; empty tables are left out."""
    result: dict[str, Any] = {}
    for name, value in tables.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return result


def without_none(value: Any) -> Any:
    """Nested tables without the values that are not set, as TOML holds them."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return value

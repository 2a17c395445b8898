"""What a settings class is: a frozen dataclass whose fields carry their help text, their bounds and their option.

A setting is stated once, where its class is defined:

    num_clips: int = setting(8, "Number of clips to continue.", at_least=1)

From this line come the option of the command (`stages/command.py`), the key in TOML files and for `--set`
(`config.py`), the check of its value, and its row in docs/configuration.md. A class derives from `Settings`, so that
its values are checked however it is built.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

from lvt_pipeline.errors import ConfigError

Value = TypeVar("Value")
Details = ParamSpec("Details")

KEY = "lvt_pipeline"  # of a field's metadata
LARGEST = 2**63 - 1  # whole numbers fit into 64 bits, as in NumPy and zarr
SHOWN = 60  # characters of a wrong value in a message
KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


@dataclass(frozen=True)
class About:
    """The metadata of a field.

    Attributes:
        help: its meaning, as a sentence that begins with a noun or an imperative.
        at_least, above, at_most, below: bounds of a number, or of every number of a list.
        unset: what the value None stands for, such as "all" or "the clip's own".
        none_word: what an option and a file write for None, in addition to leaving it out, such as "auto".
        option: the option's name where it differs from the field's, such as "--num-frames".
        old_options: former names of the option, still accepted.
        example: what a value looks like in the help, such as "T,H,W".
        bare: the value of the option when it is given without one; None: it needs one.
    """

    help: str = ""
    _: KW_ONLY
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    unset: str = ""
    none_word: str = ""
    option: str = ""
    old_options: tuple[str, ...] = ()
    example: str = ""
    bare: Any = None

    def require_in_range(self, name: str, value: float) -> None:
        """Refuse a number outside the bounds.

        Raises:
            ConfigError: naming the setting, the value and the bounds.
        """
        is_inside = (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )
        if not is_inside:
            raise ConfigError(f"{name}={shown(value)} must be {self.range}")

    @property
    def range(self) -> str:
        """The bounds in words, "" without any."""
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least:g} to {self.at_most:g}"
        bounds = (
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        )
        return " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)


def _described(describe: Callable[Details, About]) -> Callable[Concatenate[Value, Details], Value]:
    def setting(default: Value, /, *args: Details.args, **details: Details.kwargs) -> Value:
        """A field of a settings class, or a parameter of a command: its default, then the arguments of `About`."""
        return field(default=default, metadata={KEY: describe(*args, **details)})

    return setting


setting = _described(About)


def required_setting(help: str = "", *, example: str = "") -> Any:
    """A field without a default; the arguments are those of `About`."""
    return field(metadata={KEY: About(help, example=example)})


class Settings:
    """Base of settings classes: whichever way one is built, its values have the types, choices and bounds it states.

    Attributes:
        other_names: what other programs call these settings, and the name here; for "unknown setting" messages.
        table: what precedes the names in messages, such as "training.".
    """

    other_names: ClassVar[Mapping[str, str]] = {}
    table: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_fields(self, self.table)


def check_fields(settings: Any, prefix: str = "") -> None:
    """Hold the fields of a settings class to their types, choices and bounds.

    Args:
        prefix: what precedes the names in messages, such as "training.".

    Raises:
        ConfigError: a value is of another type, not one of the choices, not finite or out of bounds.
    """
    hints = type_hints(type(settings))
    for name, about in abouts(type(settings)).items():
        object.__setattr__(settings, name, convert(hints[name], getattr(settings, name), f"{prefix}{name}", about))


def type_hints(cls: Any) -> dict[str, Any]:
    """The types of a settings class's fields."""
    return _hints_and_abouts(cls)[0]


def abouts(cls: Any) -> dict[str, About]:
    """The metadata of the fields, by name, in order. A field without its own inherits those of the base class."""
    return _hints_and_abouts(cls)[1]


@cache
def _hints_and_abouts(cls: Any) -> tuple[dict[str, Any], dict[str, About]]:
    return typing.get_type_hints(cls), {item.name: _about(cls, item) for item in fields(cls)}


def _about(cls: type[Any], item: Field[Any]) -> About:
    for base in cls.__mro__:
        known: Mapping[str, Field[Any]] = getattr(base, "__dataclass_fields__", {})
        if item.name in known and KEY in known[item.name].metadata:
            about = known[item.name].metadata[KEY]
            assert isinstance(about, About)
            return about
    return About()


def convert(hint: Any, value: Any, name: str, about: About = About()) -> Any:
    """A value as the type that a field states: whole numbers become floats, lists tuples, tables settings.

    Raises:
        ConfigError: it is of another type, not one of the choices, not finite or out of bounds.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, name, about)
    if origin is typing.Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise ConfigError(f"{name}={shown(value)} is not one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _convert_list(arguments, value, name, about)
    if hint is int or hint is float:
        return _number(hint, value, name, about)
    if hint in (str, bool):
        if type(value) is not hint:
            raise ConfigError(f"{name} needs {KINDS[hint]}, found {shown(value)}")
        return value
    if is_dataclass(hint):
        return _convert_table(hint, value, name)
    if origin in (dict, Mapping) or hint in (dict, Any):
        return value
    raise AssertionError(f"setting {name} has a type that settings.py does not know: {hint}")


def _convert_table(cls: Any, value: Any, name: str) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is a table of settings, found {shown(value)}")
    return build_tables(cls, value, f"{name}.")


def build_tables(cls: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Make a settings class from nested tables; missing keys take their defaults.

    Args:
        prefix: what precedes the keys in messages.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, or a combination the class refuses.
    """
    hints, about = type_hints(cls), abouts(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in about:
            raise ConfigError(f"unknown setting {prefix}{key}; {_suggestion(cls, key, prefix)}")
        arguments[key] = convert(hints[key], value, f"{prefix}{key}", about[key])
    return cls(**arguments)


def _suggestion(cls: Any, key: str, prefix: str) -> str:
    known: Mapping[str, str] = getattr(cls, "other_names", {})
    if key in known:
        return f"here it is {prefix}{known[key]}"
    inner = [f"{prefix}{one.name}" for one in list_settings(cls) if one.name.rpartition(".")[2] == key]
    if inner:
        return f"did you mean {' or '.join(inner)}?"
    names = list(abouts(cls))
    close = difflib.get_close_matches(key, names, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(names)}"


def _convert_union(options: tuple[Any, ...], value: Any, name: str, about: About) -> Any:
    words = ("none", about.none_word) if str not in options else ()
    if type(None) in options and (value is None or (isinstance(value, str) and value in words)):
        return None
    kinds = [option for option in options if option is not type(None)]
    for kind in kinds[:-1]:
        try:
            return convert(kind, value, name, about)
        except ConfigError:
            continue
    return convert(kinds[-1], value, name, about)


def _convert_list(items: tuple[Any, ...], value: Any, name: str, about: About) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} is a list, found {shown(value)}")
    kinds = [items[0]] * len(value) if items[1:] == (Ellipsis,) else list(items)
    if len(kinds) != len(value):
        raise ConfigError(f"{name} needs {len(kinds)} numbers, found {len(value)}")
    return tuple(convert(kind, entry, name, about) for kind, entry in zip(kinds, value, strict=True))


def _number(kind: type[int] | type[float], value: Any, name: str, about: About) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) <= LARGEST else math.inf
    if type(value) is not kind:
        raise ConfigError(f"{name} needs {KINDS[kind]}, found {shown(value)}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{name}={value} is not a finite number")
    if kind is int and abs(value) > LARGEST:
        raise ConfigError(f"{name}={shown(value)} is too large; the largest whole number is {LARGEST}")
    about.require_in_range(name, value)
    return value


def shown(value: Any) -> str:
    """A wrong value for a message, cut short."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


@dataclass(frozen=True)
class Listed:
    """One key, for `--help` and the documentation.

    Attributes:
        name: as `--set` takes it, such as "model.width".
        default: as a TOML value, "unset" where there is none.
        choices: the accepted values, () where any value of its type is.
        meaning: in words, "" where the name is enough.
        other_names: what other programs call it.
    """

    name: str
    default: str
    choices: tuple[str, ...]
    meaning: str
    other_names: tuple[str, ...] = ()


def list_settings(cls: type[Any], prefix: str = "") -> Iterator[Listed]:
    """The keys of a settings class and of those inside it, in order."""
    for item in fields(cls):
        hint = type_hints(cls)[item.name]
        if is_dataclass(hint):
            yield from list_settings(typing.cast(type[Any], hint), f"{prefix}{item.name}.")
            continue
        about = abouts(cls)[item.name]
        unset = f"Unset: {about.unset}" if about.unset else ""
        meaning = " ".join(filter(None, (about.help, unset and f"{unset}.")))
        others = other_names(cls, item.name)
        yield Listed(f"{prefix}{item.name}", default_text(item), choices(hint), meaning, others)


def other_names(cls: type[Any], name: str) -> tuple[str, ...]:
    """What other programs call a field of a settings class."""
    known: Mapping[str, str] = getattr(cls, "other_names", {})
    return tuple(theirs for theirs, ours in known.items() if re.match(r"\w+", ours)[0] == name)  # type: ignore[index]


def choices(hint: Any) -> tuple[str, ...]:
    """The accepted values of a field of this type, () where any value is accepted."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(choice for option in typing.get_args(hint) for choice in choices(option))
    return tuple(map(str, typing.get_args(hint))) if typing.get_origin(hint) is typing.Literal else ()


def default_text(item: Field[Any]) -> str:
    """The default of a field as a TOML value."""
    if item.default_factory is not MISSING:
        return json.dumps(item.default_factory())
    if item.default is MISSING:
        return "needed"
    return "unset" if item.default is None else json.dumps(item.default)

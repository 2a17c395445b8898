"""All keys of a settings dataclass with their defaults and meanings, for `--help` and the documentation.

What a key means is the comment beside its field, or the lines of comment above it, so that it is said in one place.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any

FIELD = re.compile(r"    (\w+): .*?(?:  # (.*))?")
COMMENT = re.compile(r"    # (.*)")


@dataclass(frozen=True)
class Setting:
    """One key.

    Attributes:
        name: as `--set` takes it, such as "model.width".
        default: as a TOML value, "unset" where there is none.
        choices: what it may be, () where any value of its type is taken.
        meaning: in words, "" where the name says it all.
    """

    name: str
    default: str
    choices: tuple[str, ...]
    meaning: str


def list_settings(cls: type[Any], prefix: str = "") -> Iterator[Setting]:
    """The keys of a settings dataclass and of those inside it, in order."""
    hints = typing.get_type_hints(cls)
    meanings: dict[str, str] = {}
    for one in cls.__mro__:
        if isinstance(one, type) and is_dataclass(one):
            for name, meaning in _comments(one).items():
                meanings[name] = meanings.get(name) or meaning
    for item in fields(cls):
        hint = hints[item.name]
        if is_dataclass(hint):
            yield from list_settings(typing.cast(type[Any], hint), f"{prefix}{item.name}.")
        else:
            meaning = meanings.get(item.name, "").removesuffix(".")
            yield Setting(f"{prefix}{item.name}", _spoken_default(item), _choices(hint), meaning)


def _comments(cls: type[Any]) -> dict[str, str]:
    found, above = {}, ""
    for line in inspect.getsource(cls).splitlines():
        if match := COMMENT.fullmatch(line):
            above = f"{above} {match[1]}".strip()
        elif match := FIELD.fullmatch(line):
            found[match[1]], above = match[2] or above, ""
        else:
            above = ""
    return found


def _choices(hint: Any) -> tuple[str, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(choice for option in typing.get_args(hint) for choice in _choices(option))
    return tuple(map(str, typing.get_args(hint))) if typing.get_origin(hint) is typing.Literal else ()


def _spoken_default(item: Field[Any]) -> str:
    value = item.default if item.default is not MISSING else "needed"
    return "unset" if value is None else json.dumps(value) if not isinstance(value, float) else f"{value:g}"

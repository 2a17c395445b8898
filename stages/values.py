"""The types of values on the command line: wrong values end the command before it starts, with exit code 2."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from lvt_pipeline.settings import LARGEST, shown
from lvt_pipeline.storage import StoreURL, as_place

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # not generic before click 8.3


class PathType(click.Path):
    """A path as `Path`. The library checks that it exists, because its message also names the remedy.

    Args:
        takes_urls: s3://, gs:// and az:// URLs are taken too, as `StoreURL`.
    """

    def __init__(self, takes_urls: bool = False) -> None:
        super().__init__(path_type=Path)
        self._takes_urls = takes_urls

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; an empty text is refused."""
        if value == "":
            self.fail("an empty text is not a path", param, ctx)
        if "://" in str(value):
            place = as_place(value)
            if self._takes_urls and isinstance(place, StoreURL):
                return place
            needed = "s3://, gs:// and az:// are taken here" if self._takes_urls else "this must be a local path"
            self.fail(f"{shown(str(value))} is a URL; {needed}", param, ctx)
        return super().convert(value, param, ctx)


class TextType(ParamType):
    """A text of at least one character."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text; an empty one is refused."""
        if not str(value).strip():
            self.fail("an empty text is not a value", param, ctx)
        return value


class Whole(click.IntRange):
    """A whole number of at most 64 bits."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; one that no array could hold is refused."""
        number = super().convert(_short(value), param, ctx)
        if abs(number) > LARGEST:
            self.fail(f"{shown(number)} is too large; the largest whole number is {LARGEST}", param, ctx)
        return number


class Real(click.FloatRange):
    """A finite number."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; nan and infinity are refused."""
        number = super().convert(_short(value), param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class ValueList(ParamType):
    """Values separated by commas, such as 0.9,1,1."""

    name = "values"

    def __init__(self, of: ParamType, count: int | None = None) -> None:
        self._of, self._count = of, count

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The values as a tuple; of "none" an empty one."""
        if isinstance(value, tuple) or (value == "none" and self._of is TEXT):
            return () if value == "none" else value
        numbers = tuple(self._of.convert(part, param, ctx) for part in str(value).split(","))
        if self._count is not None and len(numbers) != self._count:
            self.fail(f"{shown(value)} is not {self._count} numbers separated by commas", param, ctx)
        return numbers


class Share(NamedTuple):
    """One part of several: the number of the part, from 1, and of all parts."""

    number: int
    of: int


class ShareType(ParamType):
    """One part of several, such as 3/8."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The part as `Share`."""
        number, slash, count = str(value).partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) <= 1_000_000):
            self.fail(f"{shown(str(value))} is not a part such as 1/8, 2/8, ... or 8/8", param, ctx)
        return Share(int(number), int(count))


def _short(value: Any) -> Any:
    """A number's text, without the thousands of digits that no message should repeat."""
    return shown(value) if isinstance(value, str) and len(value) > 400 else value


STORE = PathType(takes_urls=True)
TEXT = TextType()
TYPES: dict[type[Any], ParamType] = {Path: PathType(), str: TEXT, Share: ShareType()}

"""The options of the commands: built from the settings classes where they are settings, shared where they are not.

A command that takes settings is decorated with `settings_options(SampleSettings)` and receives the built object. Name,
type, range, choices, default and help of each option come from the fields of the class (`lvt_pipeline.settings`).
"""

from __future__ import annotations

import difflib
import functools
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from importlib import import_module
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from lvt_pipeline.config import build
from lvt_pipeline.machine import use_threads
from lvt_pipeline.settings import About, abouts, choices, list_settings, other_names, type_hints
from lvt_pipeline.streams import require_working_directory
from stages.values import PATH, TEXT, ParamType, PathType, Real, ValueList, Whole

Function = TypeVar("Function", bound=Callable[..., Any])

# What other tools, and people in a hurry, call an option; the first name that the command has is suggested.
OTHER_NAMES: Mapping[str, list[str]] = {
    theirs: ours.split()
    for many, ours in {
        "output output-dir out-dir outdir dest save-dir save-path": "out work-dir",
        "num-workers jobs processes num-processes": "workers",
        "num-threads cpu-threads": "threads",
        "force overwrite-existing clobber restart": "overwrite",
        "random-seed rng-seed": "seed",
        "checkpoint ckpt model model-path run": "prior vqvae",
        "tokenizer vae vq-vae autoencoder": "vqvae",
        "transformer gpt": "prior",
        "data dataset input input-dir data-dir store": "codes frames videos manifest",
        "cuda gpu gpus accelerator cpu": "device",
        "limit max-samples n count num-videos": "num-clips max-clips",
        "ids id clip-id": "clip",
        "generation revision": "at",
        "dryrun plan preview": "dry-run",
        "settings option override overrides": "set",
        "logger wandb tensorboard report-to": "track",
        "max-time time-limit timeout": "max-seconds",
        "steps num-steps iters iterations": "max-steps",
    }.items()
    for theirs in many.split()
}
RESUME = ("resume", "continue", "resume-from", "auto-resume")


# Commands and options ------------------------------------------------------------------------------------------------


class Option(click.Option):
    """An option that also accepts its former names, which the help does not show.

    Attributes:
        old_names: former names, with dashes.
        other_names: what other programs call it; suggested, not accepted.
    """

    def __init__(
        self, *args: Any, old_names: tuple[str, ...] = (), other_names: Collection[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.old_names, self.other_names = old_names, other_names

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Also register the former names."""
        shown_names = self.opts
        self.opts = [*shown_names, *self.old_names]
        super().add_to_parser(parser, ctx)
        self.opts = shown_names


class Command(click.Command):
    """A command that answers an unknown option with the right one, or with the `--set` of a setting.

    Attributes:
        settings_home: module and name of the class whose keys `--set` takes, if the command has `--set`. It is loaded
            only when needed.
    """

    settings_home: tuple[str, str] | None = None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, with a better answer to unknown options.

        Raises:
            click.UsageError: an option is unknown; the message suggests another one.
        """
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            hint = self._suggestion(error.option_name)
            raise click.UsageError(f"there is no option {error.option_name}{hint}", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, in a working directory that exists.

        Raises:
            LVTError: the working directory was deleted.
        """
        require_working_directory()
        return super().invoke(ctx)

    def _suggestion(self, option: str) -> str:
        wanted = option.lstrip("-").replace("_", "-").lower()
        known = {name.lstrip("-") for parameter in self.params for name in parameter.opts if name.startswith("--")}
        if wanted in known:
            return f"; did you mean --{wanted}?"
        if wanted in RESUME:
            return "; to resume, run the same command again"
        for parameter in self.params:
            if isinstance(parameter, Option) and wanted.replace("-", "_") in parameter.other_names:
                return f"; here it is {parameter.opts[-1]}"
        keys = self._setting_keys(wanted.replace("-", "_"))
        if keys:
            return f"; it is a setting: {' or '.join(f'--set {key}=VALUE' for key in keys)}"
        for name in OTHER_NAMES.get(wanted, ()):
            if name in known:
                return f"; here it is --{name}"
        close = difflib.get_close_matches(wanted, known, n=1)
        return f"; did you mean --{close[0]}?" if close else ""

    def _setting_keys(self, wanted: str) -> list[str]:
        """Keys for `--set` whose last part is this, or that other programs call this."""
        if self.settings_home is None:
            return []
        module, name = self.settings_home
        listed = list_settings(getattr(import_module(module), name))
        return [one.name for one in listed if wanted in (one.name.rpartition(".")[2], *one.other_names)]


def stage_command(
    name: str, *, settings_home: tuple[str, str] | None = None, lists_settings: bool = False
) -> Callable[[Callable[..., Any]], Command]:
    """Decorator of a command's function.

    Args:
        settings_home: module and name of the class whose keys `--set` takes.
        lists_settings: whether `--help` ends with all of them.
    """
    cls = type("Command", (ListingCommand if lists_settings else Command,), {"settings_home": settings_home})
    return click.command(name, cls=cls)


class ListingCommand(Command):
    """A command whose `--help` ends with all keys of its settings class."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the keys with their defaults and meanings."""
        assert self.settings_home is not None
        module, name = self.settings_home
        with formatter.section("Settings, for --set and --config, with the values they have without a preset"):
            formatter.write_dl(setting_rows(getattr(import_module(module), name)))


def setting_rows(cls: type[Any]) -> list[tuple[str, str]]:
    """Each key of a settings class with its default, and its choices and meaning."""
    return [
        (f"{one.name} = {one.default}", ". ".join(filter(None, (" | ".join(one.choices), one.meaning))))
        for one in list_settings(cls)
    ]


# Options that several commands share ---------------------------------------------------------------------------------


def out_option(
    help_text: str,
    *,
    required: bool = True,
    default: str | None = None,
    shown_default: str | None = None,
    kind: PathType = PATH,
) -> Callable[[Function], Function]:
    """The `-o/--out` option that every writing stage has.

    Args:
        shown_default: the default in words, where the command chooses it.
        kind: `STORE` for an output that may be in a bucket.
    """
    attributes: dict[str, Any] = {"required": True} if required else {"show_default": shown_default or False}
    if default is not None:
        attributes = {"default": default, "show_default": True}
    return click.option("-o", "--out", type=kind, help=help_text, **attributes)


def json_option(function: Function) -> Function:
    """`--json`: facts as one JSON object on stdout instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")(function)


def device_option(function: Function) -> Function:
    """`--device`: where tensors are computed, and `--threads`: with how many CPU threads."""
    threads = click.option(
        "--threads",
        type=Whole(1),
        expose_value=False,
        callback=lambda _, __, count: None if count is None else use_threads(count),
        help="CPU threads to compute with.  [default: as many as the work can use]",
    )
    device = click.option(
        "--device",
        type=TEXT,
        default="auto",
        show_default=True,
        help="Device: auto, cpu, cuda or cuda:N. auto uses a GPU if there is one.",
    )
    return device(threads(function))


def at_option(function: Function) -> Function:
    """`--at`: which generation of a code store is read."""
    return click.option(
        "--at",
        type=Whole(1),
        metavar="N",
        show_default="the current one",
        help="Generation of the code store to read; `lvt inspect` lists them.",
    )(function)


def overwrite_option(function: Function) -> Function:
    """`--overwrite`: delete the existing output first. Never the default."""
    return click.option("--overwrite", is_flag=True, help="Delete the existing output first.")(function)


def set_option(help_text: str = "Change one setting; may be repeated.") -> Callable[[Function], Function]:
    """`--set`: settings by their keys."""
    return click.option("--set", "overrides", type=TEXT, multiple=True, metavar="NAME=VALUE", help=help_text)


def media_option(function: Function) -> Function:
    """`--media`: where the videos of a list are."""
    return click.option(
        "--media", type=TEXT, show_default="next to the list", help="Folder or URL of the videos that a list names."
    )(function)


def workers_option(function: Function) -> Function:
    """`--workers`: processes that decode videos."""
    return click.option(
        "--workers",
        type=Whole(0, 4096),
        show_default="one per core",
        help="Number of decoding processes. 0: decode in the main process.",
    )(function)


def is_given(name: str) -> bool:
    """Whether the parameter was given on the command line."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def given_fields(cls: type[Any]) -> list[str]:
    """The fields of a settings class whose options were given on the command line."""
    return [item.name for item in fields(cls) if is_given(f"setting__{item.name}")]


# Options from settings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Leaf:
    """A field that becomes an option, and where it is in nested settings."""

    path: tuple[str, ...]
    hint: Any
    about: About
    item: Field[Any]
    other_names: tuple[str, ...]

    @property
    def parameter(self) -> str:
        return "__".join(("setting", *self.path))


def settings_options(
    cls: type[Any], *, argument: str = "settings", leave_out: Collection[str] = (), required: Collection[str] = ()
) -> Callable[[Function], Function]:
    """An option for every field of a settings class; the command receives the built object.

    Args:
        argument: the command's parameter that receives it.
        leave_out: fields without an option; they keep their defaults.
        required: fields that must be given, whatever their default.
    """
    leaves = [leaf for leaf in _leaves(cls) if leaf.path[-1] not in leave_out]

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = {leaf.path: kwargs.pop(leaf.parameter) for leaf in leaves}
            settings = build(cls, _nested(given), where="")
            return function(*args, **{argument: settings}, **kwargs)

        for leaf in reversed(leaves):
            click.option(*_declared(leaf), cls=Option, **_attributes(leaf, required))(call)
        return typing.cast(Function, call)

    return decorate


def _leaves(cls: type[Any], path: tuple[str, ...] = ()) -> Iterator[_Leaf]:
    for item in fields(cls):
        hint = type_hints(cls)[item.name]
        if is_dataclass(hint):
            yield from _leaves(typing.cast(type[Any], hint), (*path, item.name))
            continue
        yield _Leaf((*path, item.name), hint, abouts(cls)[item.name], item, other_names(cls, item.name))


def _nested(given: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Values by path as nested tables, without those that were not given."""
    tables: dict[str, Any] = {}
    for path, value in given.items():
        if value is None:
            continue
        table = tables
        for name in path[:-1]:
            table = table.setdefault(name, {})
        table[path[-1]] = value
    return tables


def _declared(leaf: _Leaf) -> tuple[str, str]:
    return leaf.about.option or "--" + leaf.path[-1].replace("_", "-"), leaf.parameter


def _attributes(leaf: _Leaf, required: Collection[str]) -> dict[str, Any]:
    """The arguments of `click.option`."""
    about, item = leaf.about, leaf.item
    attributes: dict[str, Any] = {"help": about.help, "old_names": about.old_options, "other_names": leaf.other_names}
    if leaf.path[-1] in required:
        return {**attributes, "type": _click_type(leaf.hint, about), "required": True}
    if leaf.hint is bool:
        return {**attributes, "is_flag": True}
    if about.example:
        attributes["metavar"] = about.example
    if about.bare is not None:
        attributes |= {"is_flag": False, "flag_value": about.bare}
    if _is_repeated(leaf.hint):
        (kind, _) = typing.get_args(leaf.hint)
        return {**attributes, "type": _click_type(kind, about), "multiple": True, "show_default": about.unset or False}
    attributes["type"] = _click_type(leaf.hint, about)
    if about.none_word:
        words = [about.none_word, *choices(leaf.hint)]
        return {**attributes, "type": click.Choice(words), "default": about.none_word, "show_default": True}
    if item.default is None or item.default is MISSING:
        attributes["show_default"] = about.unset or False
    else:
        attributes |= {"default": item.default, "show_default": True}
    return attributes


def _is_repeated(hint: Any) -> bool:
    """Whether an option may be given several times: a tuple of texts or choices."""
    return typing.get_origin(hint) is tuple and typing.get_args(hint)[0] not in (int, float)


def _click_type(hint: Any, about: About) -> ParamType:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return click.Choice(choices(hint))
    if typing.get_origin(hint) is tuple:
        kind, *rest = typing.get_args(hint)
        count = None if rest == [Ellipsis] else 1 + len(rest)
        return ValueList(_click_type(kind, about), count)
    low = about.at_least if about.above is None else about.above
    high = about.at_most if about.below is None else about.below
    if hint is int:
        return Whole(None if low is None else int(low), None if high is None else int(high))
    if hint is float:
        return Real(low, high, min_open=about.above is not None, max_open=about.below is not None)
    assert hint is str, f"no option can be made of {hint}"
    return TEXT

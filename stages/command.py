"""Commands: the signature of a function declares the arguments and options of its command.

A parameter is described as a setting is (`lvt_pipeline.settings`). The option's type, range, choices, default and help
follow from its type and its description:

    @stage_command("example")
    def command(
        store: Place,
        *,
        out: Path = required_setting("Folder to create."),
        settings: SampleSettings,
        at: int | None = AT,
    ) -> Result:

Parameters before the `*` are arguments, those after it options, in the order of the help. A parameter whose type is a
dataclass, such as `settings`, has an option for every field of the class; the function receives the built object.
`out` is also `-o`, and `device` brings `--threads`, which sets the number of threads. A command that returns a `Result`
has `--json`, and the result is printed.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from importlib import import_module
from typing import Any

import click
from click.core import ParameterSource

from lvt_pipeline.config import build
from lvt_pipeline.machine import use_threads
from lvt_pipeline.settings import KEY, About, Settings, abouts, choices, list_settings, other_names, type_hints
from lvt_pipeline.storage import StoreURL
from lvt_pipeline.streams import require_working_directory
from stages.console import Result
from stages.values import STORE, TYPES, ParamType, Real, ValueList, Whole

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


def stage_command(
    name: str,
    *,
    group: click.Group | None = None,
    settings_home: tuple[str, str] | None = None,
    lists_settings: bool = False,
) -> Callable[[Callable[..., Any]], Command]:
    """Decorator that makes a command of a function.

    Args:
        group: the command that this one is a part of.
        settings_home: module and name of the class whose keys `--set` takes.
        lists_settings: whether `--help` ends with all of them.
    """
    cls = type("Command", (ListingCommand if lists_settings else Command,), {"settings_home": settings_home})

    def decorate(function: Callable[..., Any]) -> Command:
        hints = typing.get_type_hints(function)
        taken = inspect.signature(function).parameters
        leaves = [leaf for key, parameter in taken.items() for leaf in _leaves_of(parameter, hints[key])]

        @functools.wraps(function)
        def call(**values: Any) -> Any:
            given = _nested({leaf.path: values[leaf.parameter] for leaf in leaves})
            result = function(**{key: _argument(hints[key], given.get(key)) for key in taken})
            return result.echo(values["as_json"]) if isinstance(result, Result) else result

        parameters = [parameter for leaf in leaves for parameter in _click_parameters(leaf)]
        if hints.get("return") in (Result, Result | None):
            parameters.append(Option(["--json", "as_json"], is_flag=True, help="Print the facts as JSON."))
        command: Command = click.command(name, cls=cls, params=parameters)(call)
        if group is not None:
            group.add_command(command)
        return command

    return decorate


def settings_option(*, leave_out: Collection[str] = (), required: Collection[str] = ()) -> Any:
    """Describes a parameter whose type is a dataclass.

    Args:
        leave_out: fields without an option; they keep their defaults.
        required: fields that must be given, whatever their default.
    """
    return field(metadata={"leave_out": leave_out, "required": required})


def is_given(name: str) -> bool:
    """Whether the parameter was given on the command line."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def given_fields(cls: type[Any]) -> list[str]:
    """The fields of the parameter `settings`, of this class, that were given on the command line."""
    return [item.name for item in fields(cls) if is_given(f"settings__{item.name}")]


# From the signature to click ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Leaf:
    """A parameter, or a field of one, that becomes an argument or an option.

    Attributes:
        path: name of the parameter, then of the field in it.
        default: MISSING if it must be given.
    """

    path: tuple[str, ...]
    hint: Any
    about: About
    default: Any
    other_names: tuple[str, ...] = ()
    is_argument: bool = False

    @property
    def parameter(self) -> str:
        return "__".join(self.path)

    @property
    def is_repeated(self) -> bool:
        """Whether it may be given several times. A tuple of numbers is one value, such as 0.9,1,1."""
        origin = typing.get_origin(self.hint)
        return origin is Sequence or (origin is tuple and typing.get_args(self.hint)[0] not in (int, float))

    @property
    def click_type(self) -> ParamType:
        return _click_type(typing.get_args(self.hint)[0] if self.is_repeated else self.hint, self.about)


def _leaves_of(parameter: inspect.Parameter, hint: Any) -> Iterator[_Leaf]:
    given: Any = MISSING if parameter.default is parameter.empty else parameter.default
    item: Field[Any] = given if isinstance(given, Field) else field(default=given)
    if is_dataclass(hint):
        for leaf in _leaves(typing.cast(type[Any], hint), (parameter.name,)):
            if leaf.path[-1] not in item.metadata.get("leave_out", ()):
                is_required = leaf.path[-1] in item.metadata.get("required", ())
                yield replace(leaf, default=MISSING) if is_required else leaf
        return
    is_argument = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    about = item.metadata.get(KEY, About())
    yield _Leaf((parameter.name,), hint, about, item.default, is_argument=is_argument)


def _leaves(cls: type[Any], path: tuple[str, ...]) -> Iterator[_Leaf]:
    for item in fields(cls):
        hint = type_hints(cls)[item.name]
        if is_dataclass(hint):
            yield from _leaves(typing.cast(type[Any], hint), (*path, item.name))
        else:
            others = other_names(cls, item.name)
            yield _Leaf((*path, item.name), hint, abouts(cls)[item.name], item.default, others)


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


def _argument(hint: Any, value: Any) -> Any:
    """What the function receives: the value, or the object that its fields make."""
    if not is_dataclass(hint):
        return value
    cls = typing.cast(type[Any], hint)
    return build(cls, value or {}, where="") if issubclass(cls, Settings) else cls(**(value or {}))


def _click_parameters(leaf: _Leaf) -> Iterator[click.Parameter]:
    if leaf.is_argument:
        yield click.Argument(
            [leaf.parameter],
            type=leaf.click_type,
            nargs=-1 if leaf.is_repeated else 1,
            required=leaf.default is MISSING,
            metavar=leaf.about.example or None,
        )
        return
    name = leaf.path[-1]
    short = ["-o"] if name == "out" else []
    option = leaf.about.option or "--" + name.replace("_", "-")
    yield Option([*short, option, leaf.parameter], **_attributes(leaf))
    if name == "device":
        yield click.Option(
            ["--threads"],
            type=Whole(1),
            expose_value=False,
            callback=lambda _, __, count: None if count is None else use_threads(count),
            help="CPU threads to compute with.  [default: as many as the work can use]",
        )


def _attributes(leaf: _Leaf) -> dict[str, Any]:
    """The arguments of a click option."""
    about, default = leaf.about, leaf.default
    attributes: dict[str, Any] = {"help": about.help, "old_names": about.old_options, "other_names": leaf.other_names}
    if leaf.hint is bool:
        return {**attributes, "is_flag": True}
    if about.example:
        attributes["metavar"] = about.example
    if about.bare is not None:
        attributes |= {"is_flag": False, "flag_value": about.bare}
    attributes |= {"type": leaf.click_type, "multiple": leaf.is_repeated}
    if default is MISSING:
        return {**attributes, "required": True}
    if about.none_word:
        words = [about.none_word, *choices(leaf.hint)]
        return {**attributes, "type": click.Choice(words), "default": about.none_word, "show_default": True}
    if default is None or leaf.is_repeated:
        return {**attributes, "show_default": about.unset or False}
    return {**attributes, "default": default, "show_default": True}


def _click_type(hint: Any, about: About) -> ParamType:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return STORE if StoreURL in options else _click_type(options[0], about)
    if typing.get_origin(hint) is typing.Literal:
        return click.Choice(choices(hint))
    if typing.get_origin(hint) is tuple:
        kind, *rest = options
        return ValueList(_click_type(kind, about), None if rest == [Ellipsis] else 1 + len(rest))
    low = about.at_least if about.above is None else about.above
    high = about.at_most if about.below is None else about.below
    if hint is int:
        return Whole(None if low is None else int(low), None if high is None else int(high))
    if hint is float:
        return Real(low, high, min_open=about.above is not None, max_open=about.below is not None)
    return TYPES[hint]

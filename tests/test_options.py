"""Options: every command answers a missing, misspelt or misused one in one line, and settings are stated once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import click
import pytest

from lvt_pipeline import cli
from lvt_pipeline.errors import ConfigError, LVTError
from lvt_pipeline.settings import Settings, required_setting, setting
from lvt_pipeline.storage import StoreURL
from stages.command import Command, Option, settings_option, stage_command
from stages.console import Result

Lvt = Callable[..., tuple[int, str, str]]


def leaf_commands() -> list[tuple[str, click.Command]]:
    """Every command that does something, by the words that call it."""
    found: list[tuple[str, click.Command]] = []
    root = cli.lvt.make_context("lvt", [], resilient_parsing=True)
    for name in cli.COMMANDS:
        command = cli.lvt.get_command(root, name)
        assert command is not None
        children = command.commands if isinstance(command, click.Group) else {}
        found += [(f"{name} {child}", one) for child, one in children.items()] or [(name, command)]
    return found


COMMANDS = leaf_commands()
EVERY_COMMAND = pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])


def options_of(command: click.Command) -> Iterator[click.Option]:
    return (one for one in command.params if isinstance(one, click.Option) and not one.is_eager)


def good_value(parameter: click.Parameter) -> str:
    """A text that the type of a parameter accepts."""
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return str(kind.choices[0])
    if isinstance(kind, (click.types.IntRange, click.types.FloatRange)):
        return str(kind.max if kind.min is None else kind.min + (1 if kind.min_open else 0))
    return "some-text"


def complete_call(command: click.Command) -> dict[click.Parameter, list[str]]:
    """What each required parameter needs on the command line."""
    return {
        one: ([one.opts[0]] if isinstance(one, click.Option) else []) + [good_value(one)]
        for one in command.params
        if one.required
    }


def assert_usage_error(code: int, err: str, *words: str) -> None:
    assert code == 2, err
    assert err.startswith("lvt: ")
    assert len(err.strip().splitlines()) == 1
    for word in words:
        assert word in err


@EVERY_COMMAND
def test_leaving_out_any_required_parameter_is_a_usage_error(name: str, command: click.Command, lvt: Lvt) -> None:
    parts = complete_call(command)
    for missing in parts:
        given = [word for one, words in parts.items() if one is not missing for word in words]
        code, _, err = lvt(*name.split(), *given)
        assert_usage_error(code, err, "Missing", name.split()[0])


@EVERY_COMMAND
def test_an_option_with_a_value_of_another_type_is_a_usage_error(name: str, command: click.Command, lvt: Lvt) -> None:
    required = [word for words in complete_call(command).values() for word in words]
    for option in options_of(command):
        if option.is_flag:
            continue
        texts = {"integer": ["x", "1.5", "9" * 30, "9" * 5000], "number": ["x", "nan", "inf", "-inf"]}
        kind = getattr(option.type, "name", "")
        for wrong in ["", *texts.get(kind, []), *(["no-such-choice"] if kind == "choice" else [])]:
            if getattr(option, "_flag_needs_value", False) and wrong.startswith("-"):
                continue  # an option whose value may be left out takes this for the next option
            code, _, err = lvt(*name.split(), *required, f"{option.opts[-1]}={wrong}")
            assert_usage_error(code, err, option.opts[-1])
            assert len(err) < 400


@EVERY_COMMAND
def test_an_unknown_option_is_a_usage_error(name: str, command: click.Command, lvt: Lvt) -> None:
    code, _, err = lvt(*name.split(), "--no-such-option-at-all")
    assert_usage_error(code, err, "--no-such-option-at-all", "--help")


@pytest.mark.parametrize(
    ("call", "advice"),
    [
        ("sample --num-samples 4", "--samples-per-clip"),
        ("sample --temp 0.9", "--temperature"),
        ("sample --cfg-scale 2", "--guidance"),
        ("sample --checkpoint x", "--prior"),
        ("sample --gpu 0", "--device"),
        ("decode --checkpoint x", "--vqvae"),
        ("decode --output x", "--out"),
        ("encode-dataset --bach-size 4", "--batch-size"),
        ("sample --resume", "run the same command again"),
        ("train-prior --lr 1e-3", "--set training.learning_rate=VALUE"),
        ("train-prior --learning-rate 1e-3", "--set training.learning_rate=VALUE"),
        ("train-vqvae --warmup_iters 10", "--set training.warmup_steps=VALUE"),
        ("train-prior --d_model 10", "train-prior --help"),
        ("run --lr 1e-3", "--set vqvae.training.learning_rate=VALUE or --set prior.training.learning_rate=VALUE"),
        ("run --size 128", "--set ingest.geometry.size=VALUE"),
        ("ingest --resolution 128", "--size"),
        ("ingest --num-workers 4", "--workers"),
        ("evaluate --num-clips 4", "--max-clips"),
        ("manifest build --val-fraction 0.2", "--val-share"),
    ],
)
def test_an_option_of_other_tools_leads_to_ours(call: str, advice: str, lvt: Lvt) -> None:
    code, _, err = lvt(*call.split())
    assert_usage_error(code, err, advice)


@pytest.mark.parametrize(
    ("call", "option"),
    [
        (f"encode-dataset --frames f --vqvae v -o o --batch-size {2**63 - 1}", "--batch-size"),
        ("ingest --manifest m -o f --worker-memory 1e300", "--worker-memory"),
        (f"ingest --manifest m -o f --size {2**62}", "--size"),
    ],
)
def test_a_number_that_no_memory_could_hold_is_a_usage_error(call: str, option: str, lvt: Lvt) -> None:
    code, _, err = lvt(*call.split())
    assert_usage_error(code, err, option)


@pytest.mark.parametrize("change", ["learning_rate=1e300", "batch_size=9223372036854775807", "eps=inf", "seed=1e5"])
def test_an_extreme_training_setting_is_one_line(change: str, lvt: Lvt, tmp_path: Path) -> None:
    code, _, err = lvt("train-prior", "--codes", tmp_path, "-o", tmp_path / "p", "--set", f"training.{change}")
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert change.partition("=")[0] in err


# Options from settings ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Inner(Settings):
    size: int = setting(64, "Height and width of a frame.", at_least=4)
    ids: tuple[str, ...] = setting((), "Id of a clip.", option="--id")


@dataclass(frozen=True, kw_only=True)
class Outer(Settings):
    inner: Inner = field(default_factory=Inner)
    frames: int = setting(16, "Length in frames.", at_least=1, option="--num-frames", old_options=("--frames",))
    rate: float | None = setting(None, "Rate.", above=0, below=1, unset="the clip's own")
    kind: Literal["red", "blue"] = setting("red", "Colour.")
    shares: tuple[float, ...] | None = setting(None, "Shares.", at_least=0)
    is_fast: bool = setting(False, "Hurry.", option="--fast")


@stage_command("try")
def try_command(*, settings: Outer) -> Outer:
    return settings


def built(*words: str) -> Outer:
    result = try_command.main(list(words), standalone_mode=False)
    assert isinstance(result, Outer)
    return result


def test_options_not_given_are_the_defaults_of_the_class() -> None:
    assert built() == Outer()


def test_options_become_a_settings_object_with_its_types() -> None:
    words = "--size 8 --id a --id b --num-frames 3 --rate 0.5 --kind blue --shares 0.7,0.3 --fast"
    assert built(*words.split()) == Outer(
        inner=Inner(size=8, ids=("a", "b")), frames=3, rate=0.5, kind="blue", shares=(0.7, 0.3), is_fast=True
    )


def test_a_former_name_is_accepted_and_not_shown() -> None:
    assert built("--frames", "5").frames == 5
    help_text = try_command.get_help(click.Context(try_command))
    assert "--num-frames" in help_text
    assert "--frames" not in help_text.replace("--num-frames", "")


def test_help_shows_text_default_range_and_what_unset_means() -> None:
    help_text = " ".join(try_command.get_help(click.Context(try_command)).split())
    assert "Length in frames. [default: 16; x>=1]" in help_text
    assert "Rate. [default: (the clip's own); 0<x<1]" in help_text
    assert "[red|blue] Colour. [default: red]" in help_text


@dataclass(frozen=True, kw_only=True)
class Where:
    folder: Path | None = setting(None, "Folder.")


@stage_command("declared")
def declared(
    source: Path,
    names: tuple[str, ...] = (),
    *,
    out: Path = required_setting("File to write."),
    keep: Sequence[int] = setting((), "Number to keep.", at_least=1, option="--hold"),
    grid: tuple[int, int] | None = setting(None, "Height and width."),
    place: Path | StoreURL | None = setting(None, "Place."),
    where: Where,
    settings: Outer = settings_option(leave_out=["rate"], required=["kind"]),
) -> Result:
    facts = {"source": source, "names": names, "out": out, "keep": keep, "grid": grid, "place": place, "where": where}
    return Result({name: str(value) for name, value in facts.items()} | {"kind": settings.kind}, f"{source} -> {out}")


def test_the_signature_of_a_function_declares_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = "a.txt x y -o b --hold 2 --hold 3 --grid 4,5 --place s3://c/d --folder e --kind blue"
    declared.main([*words.split(), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == {
        "source": "a.txt",
        "names": "('x', 'y')",
        "out": "b",
        "keep": "(2, 3)",
        "grid": "(4, 5)",
        "place": "s3://c/d",
        "where": "Where(folder=PosixPath('e'))",
        "kind": "blue",
    }
    declared.main(["a.txt", "--out", "b", "--kind", "red"], standalone_mode=False)
    assert capsys.readouterr().out == "a.txt -> b\n"
    assert [one.opts[0] for one in declared.params][:5] == ["source", "names", "-o", "--hold", "--grid"]
    assert "--rate" not in declared.get_help(click.Context(declared))


@pytest.mark.parametrize(
    "words", ["", "a.txt --kind red", "a.txt -o b", "a.txt -o s3://b/c --kind red", "a.txt -o b --kind red --hold 0"]
)
def test_what_a_signature_requires_or_bounds_is_a_usage_error(words: str) -> None:
    with pytest.raises(click.UsageError):
        declared.main(words.split(), standalone_mode=False)


def test_an_error_of_a_result_is_raised_after_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    @stage_command("failing")
    def failing() -> Result:
        return Result({"problems": 1}, "one problem", LVTError("the store has 1 problem"))

    for words, printed in (([], "one problem\n"), (["--json"], '{\n  "problems": 1\n}\n')):
        with pytest.raises(LVTError, match="the store has 1 problem"):
            failing.main(words, standalone_mode=False)
        assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frames": 0}, "frames=0 must be at least 1"),
        ({"frames": 2.5}, "frames needs a whole number, found 2.5"),
        ({"frames": True}, "frames needs a whole number, found True"),
        ({"frames": 10**30}, "frames=1000000000000000000000000000000 is too large"),
        ({"frames": 10**6000}, "frames=a number of thousands of digits is too large"),
        ({"rate": 1}, "rate=1.0 must be above 0 and below 1"),
        ({"rate": math.nan}, "rate=nan is not a finite number"),
        ({"rate": math.inf}, "rate=inf is not a finite number"),
        ({"rate": 10**400}, "rate=inf is not a finite number"),
        ({"kind": "green"}, "kind='green' is not one of red, blue"),
        ({"shares": (0.5, -1.0)}, "shares=-1.0 must be at least 0"),
        ({"shares": 3}, "shares is a list, found 3"),
    ],
)
def test_values_are_checked_however_settings_are_built(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        Outer(**values)  # type: ignore[arg-type]


def test_every_option_has_a_help_text_with_a_noun() -> None:
    for name, command in COMMANDS:
        for option in options_of(command):
            assert option.help, f"lvt {name} {option.opts[-1]}"
            first = option.help.split()[0]
            assert first not in ("Of", "In", "What", "Which", "How", "Only"), (
                f"lvt {name} {option.opts[-1]}: {option.help}"
            )
            assert option.help.rstrip().endswith((".", "]", ")")), f"lvt {name} {option.opts[-1]}: {option.help}"


def test_every_command_answers_unknown_options_itself() -> None:
    assert all(isinstance(command, Command) for _, command in COMMANDS)
    assert any(isinstance(option, Option) for _, command in COMMANDS for option in command.params)


def test_a_dry_run_of_a_work_directory_that_does_not_exist_plans_every_stage(tmp_path: Path, lvt: Lvt) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"not read by a plan")
    code, out, _ = lvt("run", "--videos", str(tmp_path / "videos"), "--work-dir", str(tmp_path / "work"), "--dry-run")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["make"] * 9
    assert not (tmp_path / "work").exists()


def test_a_setting_without_its_table_is_answered_with_its_full_key(lvt: Lvt) -> None:
    _, _, err = lvt("run", "--videos", "v", "--work-dir", "w", "--set", "temperature=1")
    assert "unknown setting temperature; did you mean sample.temperature?" in err


def test_a_message_about_options_names_its_command_at_most_once(lvt: Lvt) -> None:
    _, _, err = lvt("ingest", "--manifest", "m", "-o", "f", "--size", "63")
    assert err.startswith("lvt: size=63 is not a multiple of 4")
    assert lvt("sampel")[2].strip() == "lvt: there is no command 'sampel'; did you mean sample? See lvt --help"

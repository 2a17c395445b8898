"""The command line: help, exit codes, and one line for every expected error."""

from __future__ import annotations

import inspect
import runpy
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lvt_pipeline import cli
from lvt_pipeline.errors import LVTError, OverBudget, Stopped

REPOSITORY = Path(__file__).parents[1]


def all_commands() -> list[tuple[str, click.Command]]:
    root = cli.lvt.make_context("lvt", [], resilient_parsing=True)
    found = []
    for name in cli.COMMANDS:
        command = cli.lvt.get_command(root, name)
        assert command is not None
        found.append((name, command))
        if isinstance(command, click.Group):
            found += [(f"{name} {child}", command.commands[child]) for child in command.commands]
    return found


@pytest.mark.parametrize(("name", "command"), all_commands(), ids=[name for name, _ in all_commands()])
def test_help_ends_in_an_example_of_the_command(name: str, command: click.Command) -> None:
    assert command.help is not None
    last = inspect.cleandoc(command.help).split("\n\n")[-1]
    assert last.startswith(f"Example: lvt {name.split()[0]}"), f"lvt {name} --help ends in {last!r}"


def test_cli_reference_is_up_to_date() -> None:
    page = runpy.run_path(str(REPOSITORY / "docs" / "generate_cli.py"))
    assert page["TARGET"].read_text() == page["render"](), "run `python docs/generate_cli.py`"


def test_help_lists_every_command_and_imports_no_torch() -> None:
    code = "import sys; from lvt_pipeline.cli import run; run(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in cli.COMMANDS:
        assert f"  {name} " in done.stdout


def test_misspelt_command_gets_a_suggestion_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["ingset"]) == 2
    assert "did you mean ingest?" in capsys.readouterr().err


def test_wrong_option_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sample", "--no-such-option"]) == 2
    assert "there is no option --no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LVTError("x is y; do z"), 1),
        (OverBudget("finished, but 9 of 10 clips failed"), 3),
        (Stopped("stopped by SIGTERM: step 3 is saved"), 75),
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device", "out.bin"), 1),
    ],
)
def test_errors_become_one_line_and_their_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli, "load_stage", lambda name: failing)
    assert cli.run(["doctor"]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("lvt: ")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def buggy() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "load_stage", lambda name: buggy)
    with pytest.raises(ZeroDivisionError):
        cli.run(["doctor"])


def test_foreign_stages_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import stages

    monkeypatch.setattr(stages, "DISTRIBUTION", "somebody-else")
    with pytest.raises(LVTError, match="not part of lvt-pipeline"):
        cli.load_stage("doctor")

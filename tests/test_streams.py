"""Closed or broken streams, a deleted working directory, and other surroundings that a command may find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lvt_pipeline import cli
from tests.conftest import moving_square

LVT = f"{sys.executable} -m lvt_pipeline"


def shell(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line as a shell runs it; `lvt` is the checkout's."""
    script = f'set -o pipefail; lvt() {{ {LVT} "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", script],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
        timeout=120,
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips as folders of pictures, in a folder of its own."""
    from PIL import Image

    root = tmp_path_factory.mktemp("streams")
    for clip in range(2):
        folder = root / "pictures" / f"clip-{clip}"
        folder.mkdir(parents=True)
        for number, frame in enumerate(moving_square(clip, 4, 16, 16)):
            Image.fromarray(frame).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture
def here(pictures: Path, tmp_path: Path) -> Path:
    (tmp_path / "pictures").symlink_to(pictures / "pictures")
    return tmp_path


BUILD = "lvt manifest build pictures --kind frames -o m.jsonl"
INGEST = f"{BUILD} && lvt ingest --manifest m.jsonl -o frames --size 16 --workers 0"


def test_with_stderr_closed_the_work_is_done(here: Path) -> None:
    done = shell(f"({INGEST}) 2>&-", here)
    assert done.returncode == 0
    assert "2 clips" in done.stdout
    assert (here / "frames" / "provenance.json").exists()


def test_with_all_streams_closed_the_work_is_done_and_no_file_takes_their_place(here: Path) -> None:
    done = shell(f"({INGEST}) <&- >&- 2>&-", here)
    assert done.returncode == 0
    assert (here / "frames" / "provenance.json").exists()
    checked = shell("lvt verify frames && lvt inspect m.jsonl", here)
    assert checked.returncode == 0, checked.stderr


def test_with_stdout_closed_the_work_is_done_and_one_line_reports_it(here: Path) -> None:
    done = shell(f"{BUILD} >&-", here)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "lvt: standard output is closed; the result could not be printed"
    assert (here / "m.jsonl").exists()


def test_an_error_with_stderr_closed_keeps_its_exit_code(here: Path) -> None:
    assert shell("lvt inspect nothing-here 2>&-", here).returncode == 1
    assert shell("lvt inspect 2>&-", here).returncode == 2


@pytest.mark.parametrize(
    "command", ["lvt --help | head -1", "lvt train-prior --help | true", "lvt inspect m.jsonl | true"]
)
def test_a_reader_that_leaves_early_costs_no_traceback(command: str, here: Path) -> None:
    assert shell(BUILD, here).returncode == 0
    done = shell(command, here)
    assert done.returncode in (0, 1)
    assert done.stderr == ""


def test_a_reader_of_stderr_that_leaves_early_does_not_stop_the_work(here: Path) -> None:
    done = shell(f"({INGEST}) 2>&1 >/dev/null | true", here)
    assert done.returncode == 0
    assert (here / "frames" / "provenance.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_stdout_is_one_line(here: Path) -> None:
    done = shell(f"{BUILD} > /dev/full", here)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "lvt: the result could not be printed: No space left on device"


def test_a_deleted_working_directory_is_one_line(here: Path) -> None:
    done = shell("mkdir gone && cd gone && rmdir ../gone && lvt manifest build ../pictures -o m.jsonl", here)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("lvt: the working directory was deleted")


@pytest.mark.parametrize(
    "command",
    [
        "lvt run --videos pictures --work-dir file",
        "lvt demo -o file",
        "lvt status file",
        "lvt why file",
        "lvt report file",
        "lvt figures file",
        "lvt reproduce table1 --work-dir file",
    ],
)
def test_a_work_directory_that_is_a_file_is_one_line(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    (here / "file").write_text("words")
    assert cli.run(command.split()[1:]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("lvt: ")
    assert "file" in lines[0]
    assert (here / "file").read_text() == "words"


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"LC_ALL": "POSIX"},
        {"PYTHONIOENCODING": "ascii"},
    ],
)
def test_names_in_utf8_work_under_an_ascii_locale(locale: dict[str, str], here: Path) -> None:
    (here / "vidéos").symlink_to(here / "pictures")
    done = shell("lvt manifest build vidéos --kind frames -o é.jsonl && lvt inspect é.jsonl", here, **locale)
    assert done.returncode == 0, done.stderr
    assert (here / "é.jsonl").exists()


def test_no_help_imports_torch() -> None:
    code = """
import sys, click
from lvt_pipeline import cli
root = cli.lvt.make_context("lvt", [], resilient_parsing=True)
for name in cli.COMMANDS:
    command = cli.lvt.get_command(root, name)
    for one in [command, *getattr(command, "commands", {}).values()]:
        one.get_help(click.Context(one))
        assert "torch" not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True)

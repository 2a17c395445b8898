"""What users install: the wheel holds both packages and its data, and works outside the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for name in ("lvt_pipeline", "stages"):  # a copy, so that the build leaves nothing in the checkout
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_has_exactly_the_two_top_level_names(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"lvt_pipeline", "stages"}


def test_wheel_carries_presets_template_and_type_mark(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kept in ("py.typed", "presets/vqvae/tiny.toml", "presets/pipeline/paper.toml", "report/templates/"):
        assert any(name.startswith(f"lvt_pipeline/{kept}") for name in names), kept


def test_installed_wheel_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """A fresh environment that borrows the installed dependencies but has only the wheel's own files for lvt."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    packages = Path(subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip())  # fmt: skip
    import click

    (packages / "borrowed.pth").write_text(str(Path(click.__file__).parents[1]) + "\n")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    done = subprocess.run([environment / "bin" / "lvt", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "encode-dataset" in done.stdout
    where = subprocess.run(
        [python, "-c", "import lvt_pipeline, stages; print(lvt_pipeline.__file__, stages.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert all(Path(file).is_relative_to(environment) for file in where)

"""Whether lvt works with all versions that `pyproject.toml` allows: `python -m tests.version_matrix`.

For every Python that can be found (`python3.11`, `python3.12`, ... on the path, and those of pyenv), two fresh
environments are made: one with the oldest version that each bound allows, one with the newest. In each the wheel is
installed, with Ray, and a tiny pass over every stage is run, with both video decoders; ingest, encode-dataset, sample
and decode also with `--runner ray`, which has to give the same files.

`--borrow-torch` takes torch from the environment that runs the script instead of installing gigabytes, and `--torch
3.12=FOLDER` from a folder that holds one for another Python. Pythons that neither fits then run the stages that need no
torch: listing, ingest with both decoders, and the help of every command.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.version import Version

REPOSITORY = Path(__file__).parents[1]
# What torch itself needs, small and pure Python, where torch is borrowed without its record of dependencies.
NEEDED_BY_TORCH = ("filelock", "networkx", "sympy", "typing_extensions", "setuptools")
BORROWED = ("torch", "torchgen", "functorch", "triton", "nvidia")
# Runs inside each environment; the first argument says whether torch is there.
PASS = """
import subprocess, sys
from pathlib import Path
import numpy as np
from lvt_pipeline.cli import COMMANDS, run
from lvt_pipeline.video.write import write_mp4

has_torch, folder = sys.argv[1] == "torch", Path(sys.argv[2])
generator = np.random.default_rng(0)
for number, split in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2):
    frames = generator.integers(0, 256, (1, 48, 64, 3), dtype=np.uint8).repeat(8, 0)
    for index, frame in enumerate(frames):
        frame[index : index + 12, number : number + 12] = 255
    write_mp4(folder / "videos" / split / f"clip{number}.mp4", frames, fps=10)

def lvt(*arguments):
    print("lvt", *arguments, flush=True)
    code = run([str(argument) for argument in arguments])
    if code:
        sys.exit(f"lvt {' '.join(map(str, arguments))} ended with {code}")

for command in COMMANDS:
    done = subprocess.run([sys.executable, "-m", "lvt_pipeline", command, "--help"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"lvt {command} --help: {done.stderr}")
lvt("manifest", "build", folder / "videos", "-o", folder / "m.jsonl")
for decoder in ("decord", "pyav"):
    options = ["--size", 32, "--workers", 1, "--decoder", decoder]
    lvt("ingest", "--manifest", folder / "m.jsonl", "-o", folder / decoder, *options)
if has_torch:
    frames, vqvae, codes, prior = (folder / name for name in ("decord", "vqvae", "data.zarr", "prior"))
    steps = ["--set", "training.max_steps=2", "--set", "training.batch_size=2", "--device", "cpu"]
    small = ["--set", "model.num_codebooks=2", "--set", "model.codebook_size=16", "--set", "model.code_width=16"]
    lvt("train-vqvae", "--frames", frames, "-o", vqvae, "--preset", "tiny", *steps, *small)
    lvt("encode-dataset", "--frames", frames, "--vqvae", vqvae, "-o", codes, "--device", "cpu")
    shape = ["model.frames=4", "model.subscale=[4,1,1]", "model.block=[1,8,8]", "model.width=24", "model.head_width=8"]
    options = [part for setting in shape for part in ("--set", setting)]
    lvt("train-prior", "--codes", codes, "-o", prior, "--preset", "tiny", *steps, *options)
    lvt("sample", "--prior", prior, "--codes", codes, "-o", folder / "s.zarr", "--num-frames", 4,
        "--priming-frames", 2, "--num-clips", 1, "--device", "cpu")
    lvt("decode", "--codes", folder / "s.zarr", "--vqvae", vqvae, "-o", folder / "out", "--device", "cpu")
    lvt("verify", codes)
    lvt("doctor", "--folder", folder)
    ray = ["--runner", "ray", "--workers", 1]
    lvt("ingest", "--manifest", folder / "m.jsonl", "-o", folder / "ray", "--size", 32, "--decoder", "decord", *ray)
    lvt("encode-dataset", "--frames", folder / "ray", "--vqvae", vqvae, "-o", folder / "r.zarr", "--device", "cpu",
        *ray)
    lvt("sample", "--prior", prior, "--codes", codes, "-o", folder / "t.zarr", "--num-frames", 4,
        "--priming-frames", 2, "--num-clips", 1, "--device", "cpu", *ray)
    lvt("decode", "--codes", folder / "t.zarr", "--vqvae", vqvae, "-o", folder / "outr", "--device", "cpu", *ray)
    for ours, theirs in (("ray", "decord"), ("r.zarr/codes/c", "data.zarr/codes/c"), ("outr", "out")):
        files = [path for path in (folder / theirs).rglob("*") if path.is_file() and ".json" not in path.suffix]
        for path in files:
            if path.read_bytes() != (folder / ours / path.relative_to(folder / theirs)).read_bytes():
                sys.exit(f"{path} is another file with --runner ray")
        print(len(files), "equal files in", ours)
"""


@dataclass(frozen=True)
class Outcome:
    """One environment: a Python, a set of versions, and how the pass went."""

    python: str
    versions: str
    is_ok: bool
    detail: str


def main() -> int:
    """Run the matrix and print a table; 1 where a pass failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--borrow-torch", action="store_true", help="Take torch from this environment.")
    parser.add_argument("--torch", action="append", default=[], metavar="3.12=FOLDER", help="Take torch from there.")
    parser.add_argument("--python", action="append", help="A Python to use, instead of all that are found.")
    parser.add_argument("--pin", action="append", default=[], help="A requirement on top, such as av==14.0.0.")
    parser.add_argument("--versions", choices=["oldest", "newest"], action="append", help="One end only.")
    arguments = parser.parse_args()
    pythons = [Path(path) for path in arguments.python] if arguments.python else list(find_pythons())
    ends = arguments.versions or ["oldest", "newest"]
    torches = {python: Path(folder) for python, _, folder in (one.partition("=") for one in arguments.torch)}
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        for number, python in enumerate(pythons):
            for end in ends:
                place = Path(folder) / f"{number}-{end}"
                outcome = try_versions(python, end, wheel, place, arguments.borrow_torch, arguments.pin, torches)
                outcomes.append(outcome)
                print(f"{'ok  ' if outcome.is_ok else 'FAIL'} {outcome.python} {end}: {outcome.detail}", flush=True)
                shutil.rmtree(place, ignore_errors=True)
    return int(not all(outcome.is_ok for outcome in outcomes))


def find_pythons() -> Iterator[Path]:
    """One interpreter of every minor version that `requires-python` allows."""
    first = int(re.search(r">=3\.(\d+)", _project()["requires-python"])[1])  # type: ignore[index]
    for minor in range(first, first + 10):
        found = shutil.which(f"python3.{minor}")
        pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python3"))
        candidates = [*([Path(found)] if found else []), *pyenv]
        working = [path for path in candidates if _run([path, "-m", "venv", "--help"]).returncode == 0]
        if working:
            yield working[-1]


def requirements(end: str) -> list[str]:
    """The required dependencies and Ray at one end of their bounds."""
    found, project = [], _project()
    for line in [*project["dependencies"], *project["optional-dependencies"]["ray"]]:
        name, low = re.fullmatch(r"([\w-]+)(?:>=([\w.]+))?.*", line).groups()  # type: ignore[union-attr]
        found.append(f"{name}=={low}" if end == "oldest" and low else line)
    return found


def try_versions(
    python: Path,
    end: str,
    wheel: Path,
    place: Path,
    borrow: bool,
    pins: list[str],
    torches: Mapping[str, Path] | None = None,
) -> Outcome:
    """Install one end of the bounds in a fresh environment and run the pass there.

    Args:
        torches: where torch is borrowed from, by Python such as "3.12"; for this Python it is this environment.
    """
    name = _run([python, "-c", "import platform; print(platform.python_version())"]).stdout.strip()
    lender = {**_own_torch(), **(torches or {})}.get(name.rpartition(".")[0])
    _run([python, "-m", "venv", place], check=True)
    inside = place / "bin" / "python"
    wanted = requirements(end)
    has_torch = not borrow or lender is not None
    if borrow:
        wanted = [*(line for line in wanted if not line.startswith("torch>") and not line.startswith("torch=")),
                  *NEEDED_BY_TORCH]  # fmt: skip
    pinned = {re.split(r"[=<>]", pin)[0] for pin in pins}
    wanted = [line for line in wanted if re.split(r"[=<>]", line)[0] not in pinned] + pins
    problem = _install(inside, wanted)
    if problem:
        return Outcome(name, end, False, f"pip: {problem}")
    _run([inside, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    if borrow and lender is not None:
        _lend_torch(inside, lender)
    work = place / "work"
    work.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [str(inside), "-W", "ignore", "-c", PASS, "torch" if has_torch else "no-torch", str(work)]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=1800)
    versions = _run([inside, "-m", "pip", "freeze"]).stdout.split()
    shown = " ".join(
        line for line in versions if re.match(r"(?i)(torch|av|zarr|numpy|click|pillow|decord|ray)==", line)
    )
    what = "every stage, four of them with Ray too," if has_torch else "listing, ingest and help (no torch to borrow)"
    if done.returncode:
        return Outcome(name, end, False, f"{shown}: {' '.join((done.stderr or done.stdout).split())[-600:]}")
    return Outcome(name, end, True, f"{what} with {shown}")


def _install(python: Path, wanted: list[str]) -> str:
    """Install requirements; returns what went wrong, "" for nothing.

    An oldest version without a wheel for this Python is replaced by the oldest one that has one.
    """
    wanted = list(wanted)
    while True:
        done = _run([python, "-m", "pip", "install", "--quiet", "--no-input", "--only-binary", ":all:", *wanted])
        if not done.returncode:
            return ""
        missing = re.search(r"satisfies the requirement ([\w-]+)==(\S+) \(from versions: ([^)]+)\)", done.stderr)
        if missing is None:
            return done.stderr.strip().splitlines()[-1]
        name, low, found = missing.groups()
        later = [version for version in found.split(", ") if Version(version) > Version(low)]
        if f"{name}=={low}" not in wanted or not later:
            return done.stderr.strip().splitlines()[-1]
        wanted[wanted.index(f"{name}=={low}")] = f"{name}=={min(later, key=Version)}"


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout."""
    source = folder / "source"
    for name in ("lvt_pipeline", "stages"):  # a copy, so that the build leaves nothing in the checkout
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
    ]
    _run(command, check=True)
    return next(folder.glob("*.whl"))


def _own_torch() -> dict[str, Path]:
    """The folder of this environment's torch, by its Python."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    return {f"{sys.version_info.major}.{sys.version_info.minor}": Path(spec.origin).parents[1]}


def _lend_torch(python: Path, here: Path) -> None:
    """Let an environment import torch from a folder, and nothing else of it."""
    there = Path(_run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip())
    for path in [*(here / name for name in BORROWED), *here.glob("torch-*.dist-info")]:
        if path.exists():
            (there / path.name).symlink_to(path)


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return project


def _run(command: list[object], check: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], check=check, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main())

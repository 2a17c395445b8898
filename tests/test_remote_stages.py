"""Every command that takes a URL makes of it what it makes of a path; every other place is refused in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.manifest.manifest import build_manifest
from lvt_pipeline.runs.read import run_fingerprint
from lvt_pipeline.storage import Place, open_storage
from tests.object_stores import files_in
from tests.test_filled_splits import video
from tests.test_ingest import contents

Lvt = Callable[..., tuple[int, str, str]]
CPU = ("--device", "cpu")
STEPS = ("--set", "training.max_steps=3", "--set", "training.batch_size=2")
VQVAE = ("stem_width=8", "code_width=16", "residual_width=8", "num_codebooks=2", "codebook_size=16")
PRIOR = ("frames=4", "subscale=[4,1,1]", "width=16", "head_width=8", "num_heads=2", "embedding_width=8")
# Facts that are about this run and not about its output, or that name a place.
LEFT_OUT = {"seconds", "finished", "command", "out", "path", "phases", "limited_by", "reader", "outputs", "bytes"}


def model(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", f"model.{setting}")]


def make_everything(lvt: Lvt, manifest: Path, place: Place, here: Path) -> dict[str, Any]:
    """Run every stage, each on the outputs of those before it.

    Args:
        place: of frames and stores, a folder of this machine or a URL.
        here: for runs and all other outputs.

    Returns:
        the facts that each command printed.
    """
    frames, codes, samples = place / "frames", place / "data.zarr", place / "samples.zarr"
    vqvae, prior = here / "vqvae", here / "prior"
    network = ["--frames", frames, "--vqvae", vqvae, *CPU]
    commands: list[list[object]] = [
        ["ingest", "--manifest", manifest, "-o", frames, "--size", 16, "--workers", 0, "--clips-per-shard", 3],
        ["train-vqvae", "--frames", frames, "-o", vqvae, *STEPS, *model(*VQVAE), *CPU],
        ["encode-dataset", "-o", codes, *network],
        ["train-prior", "--codes", codes, "-o", prior, *STEPS, *model(*PRIOR), *CPU],
        ["sample", "--prior", prior, "--codes", codes, "-o", samples, "--num-frames", 4, "--priming-frames", 2, *CPU],
        ["decode", "--codes", samples, "--vqvae", vqvae, "-o", here / "out", "--format", "npy", *CPU],
        ["evaluate", "--codes", codes, "--prior", prior, *network, "--num-frames", 4, "-o", here / "eval.json",
         "--samples", samples, "--allow-training-clips"],
        ["verify", frames],
        ["verify", codes, "--decode", 2, *network],
        ["inspect", frames],
        ["inspect", codes],
        ["show", frames, "-o", here / "frames.png"],
        ["show", codes, "--vqvae", vqvae, "-o", here / "codes.png", *CPU],
        ["export", codes, "--format", "npy", "-o", here / "npy"],
        ["import-codes", here / "npy", "--codebook-size", 16, "-o", place / "imported.zarr"],
        ["why", codes, "train/0", "--frames", frames, "--vqvae", vqvae],
        ["compact", codes],
        ["gc", codes, "--grace", 0, "--apply"],
    ]  # fmt: skip
    said: dict[str, Any] = {}
    for command in commands:
        has_facts = not str(command[0]).startswith("train")
        code, out, err = lvt(*command, *(["--json"] if has_facts else []))
        assert code == 0, (command, err)
        if has_facts:
            said[" ".join(map(str, command[:2]))] = json.loads(out)
    return said


def about_output(facts: Any, place: Place, here: Path) -> Any:
    """Facts about an output, without those about the run that made it."""
    if isinstance(facts, dict):
        kept = {key: value for key, value in facts.items() if key not in LEFT_OUT}
        return {about_output(key, place, here): about_output(value, place, here) for key, value in kept.items()}
    if isinstance(facts, list):
        return [about_output(value, place, here) for value in facts]
    return facts.replace(str(place), "PLACE").replace(str(here), "HERE") if isinstance(facts, str) else facts


def test_every_stage_makes_of_urls_what_it_makes_of_paths(bucket: Place, tmp_path: Path, lvt: Lvt) -> None:
    for number in range(6):
        split = ("train", "train", "train", "train", "val", "test")[number]
        video(tmp_path / "videos" / split / f"{number}.mp4", number)
    build_manifest(tmp_path / "videos", tmp_path / "m.jsonl")
    places: list[tuple[Place, Path]] = [(tmp_path / "local", tmp_path / "a"), (bucket, tmp_path / "b")]
    facts = []
    for place, here in places:
        said = make_everything(lvt, tmp_path / "m.jsonl", place, here)
        facts.append(about_output(said, place, here))
    for command, local in zip(facts[0], facts[0].values(), strict=True):
        assert facts[1][command] == local, command
    local_files, remote_files = (files_in(place) for place, _ in places)
    assert local_files.keys() == remote_files.keys()
    differ = {name for name in local_files if local_files[name] != remote_files[name]}
    about_the_run = r"(frames/(.*json|failures.jsonl)|.*\.zarr/zarr.json|.*/generations/.*)"  # times and sources
    assert not [name for name in differ if not re.fullmatch(about_the_run, name)]
    ours, theirs = (run_fingerprint(here / "prior") for _, here in places)
    assert ours == theirs
    for folder in ("out", "npy"):
        ours, theirs = (contents(here / folder) for _, here in places)  # type: ignore[assignment]
        assert ours == theirs
    for name in ("frames.png", "codes.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert np.load(next((tmp_path / "b" / "out").rglob("*.npy"))).ndim == 4
    codes = bucket / "data.zarr"
    for name in ("codes/c/0/0/0/0", "codes/zarr.json"):
        sound = files_in(codes)[name]
        open_storage(codes).replace(name, b"x" * len(sound))
        assert lvt("verify", codes)[0] == 1
        repair = ["verify", codes, "--repair"] if name.endswith("json") else _encoding(bucket, tmp_path / "b")
        code, _, err = lvt(*repair)
        assert code == 0, err
        assert files_in(codes)[name] == sound
        assert lvt("verify", codes)[0] == 0


def _encoding(place: Place, here: Path) -> list[object]:
    vqvae, codes = here / "vqvae", place / "data.zarr"
    return ["encode-dataset", "--frames", place / "frames", "--vqvae", vqvae, "-o", codes, "--repair", *CPU]


URL = "s3://bucket/place"
LOCAL = f"'{URL}' is a URL; this must be a local path"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run --videos v --work-dir URL", LOCAL),
        ("run URL", LOCAL),
        ("manifest build v -o URL", LOCAL),
        ("ingest --manifest URL -o f", LOCAL),
        ("train-vqvae --frames f -o URL", LOCAL),
        ("encode-dataset --frames f --vqvae URL -o s", LOCAL),
        ("train-prior --codes s -o URL", LOCAL),
        ("sample --prior URL --codes s -o t", LOCAL),
        ("decode --codes s --vqvae r -o URL", LOCAL),
        ("evaluate --codes s -o URL", LOCAL),
        ("export s --format npy -o URL", LOCAL),
        ("import-codes URL --codebook-size 4 -o s", LOCAL),
        ("show f -o URL", LOCAL),
        ("figures URL", LOCAL),
        ("report URL", LOCAL),
        ("status URL", LOCAL),
        ("play URL", LOCAL),
        ("continue a.mp4 --work-dir URL -o b.mp4", LOCAL),
        ("reproduce table5 --work-dir URL", LOCAL),
        ("why URL", f"{URL} is a URL; a work directory has to be on this machine"),
        ("gc URL --frames", f"{URL} is a URL; a work directory has to be on this machine"),
        ("ingest --manifest m.jsonl -o https://host/f", "is a URL; s3://, gs:// and az:// are taken here"),
    ],
)
def test_a_url_where_none_can_be_is_refused_in_one_line(
    lvt: Lvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = lvt(*command.replace("URL", URL).split())
    assert (code, out) == (1 if "machine" in message else 2, "")
    assert message in err.splitlines()[-1]
    assert not [*tmp_path.iterdir()]

"""The fingerprints and settings of a tiny end-to-end run, frozen in `golden.json`.

A change that is meant to alter nothing leaves this test green. A change that is meant to alter results rewrites the
file with `python -m tests.test_golden` and says why in the changelog.

Settings, versions, the manifest and the frames (from PNG pictures, so that no video decoder has a say) are compared
everywhere. Trained weights differ in their last bits between processors and torch versions: whatever follows from them
is compared exactly only where a plain torch computation, the canary, gives the recorded bits, and roughly elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lvt_pipeline.cli import run
from lvt_pipeline.storage import read_json
from tests.conftest import moving_square, tiny_options

GOLDEN = Path(__file__).with_name("golden.json")
RECORDS = {
    "manifest": "manifest.jsonl.provenance.json",
    "frames": "frames/provenance.json",
    "vqvae": "runs/vqvae/provenance.json",
    "codes": "data.zarr/zarr.json",
    "prior": "runs/prior/provenance.json",
    "samples": "samples.zarr/zarr.json",
    "videos": "videos/provenance.json",
    "evaluation": "eval.json.provenance.json",
}
WITHOUT_TRAINING = ("manifest", "frames")  # their fingerprints depend on no trained weight
LOSSES = {"vqvae": ("train", "reconstruction_loss"), "prior": ("val", "bits_per_dim")}


def canary() -> str:
    """Digest of a small convolution, product and softmax, forwards and backwards, after a few optimizer steps."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(4, 3, 16, 16, generator=generator)
    weights = [torch.rand(shape, generator=generator).requires_grad_() for shape in ((8, 3, 4, 4), (8, 32), (32, 16))]
    optimizer = torch.optim.Adam(weights, lr=0.01)
    for _ in range(10):
        hidden = torch.nn.functional.conv2d(pictures, weights[0], stride=2, padding=1).relu().flatten(2).transpose(1, 2)
        logits = torch.softmax(hidden @ weights[1], -1) @ weights[2]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(logits.shape[1]).repeat(4) % 16)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return hashlib.sha256(b"".join(weight.detach().numpy().tobytes() for weight in weights)).hexdigest()


def make_pictures(folder: Path) -> Path:
    """Ten clips as folders of PNG frames."""
    for number, split in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2):
        clip = folder / split / f"clip{number}"
        clip.mkdir(parents=True)
        for index, frame in enumerate(moving_square(number)):
            Image.fromarray(frame).save(clip / f"{index:03d}.png")
    return folder


def tiny_run(folder: Path) -> Path:
    """A work directory made by `lvt run` from nothing."""
    pictures, work = make_pictures(folder / "pictures"), folder / "work"
    options = ["--workers", "1", "--device", "cpu", *tiny_options()]
    assert run(["run", "--videos", str(pictures), "--work-dir", str(work), *options]) == 0
    return work


def observe(work: Path) -> dict[str, Any]:
    """What the golden file holds of a work directory."""
    stages = {}
    for name, path in RECORDS.items():
        data = read_json(work / path)
        record = data["attributes"]["provenance"] if path.endswith("zarr.json") else data
        stages[name] = {key: record[key] for key in ("kind", "stage", "version", "settings", "fingerprint")}
        stages[name]["inputs"] = sorted(record["inputs"])
    losses = {}
    for run_name, (split, key) in LOSSES.items():
        lines = [json.loads(line) for line in (work / "runs" / run_name / "metrics.jsonl").read_text().splitlines()]
        losses[run_name] = [line[key] for line in lines if line.get("split") == split and key in line]
    return {"canary": canary(), "stages": stages, "losses": losses}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return observe(tiny_run(tmp_path_factory.mktemp("golden")))


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", RECORDS)
def test_settings_and_versions_of_a_tiny_run_are_the_recorded_ones(
    observed: dict[str, Any], golden: dict[str, Any], name: str
) -> None:
    ours, theirs = dict(observed["stages"][name]), dict(golden["stages"][name])
    if name not in WITHOUT_TRAINING:
        ours.pop("fingerprint"), theirs.pop("fingerprint")
    assert ours == theirs


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_a_tiny_run_are_the_recorded_ones(
    observed: dict[str, Any], golden: dict[str, Any], name: str
) -> None:
    assert golden["losses"][name]
    assert observed["losses"][name] == pytest.approx(golden["losses"][name], rel=1e-3)


@pytest.mark.parametrize("name", [name for name in RECORDS if name not in WITHOUT_TRAINING])
def test_fingerprints_of_a_tiny_run_are_the_recorded_ones(
    observed: dict[str, Any], golden: dict[str, Any], name: str
) -> None:
    if observed["canary"] != golden["canary"]:
        pytest.skip("this processor or torch rounds differently from the one the golden file was made on")
    assert observed["stages"][name]["fingerprint"] == golden["stages"][name]["fingerprint"]


if __name__ == "__main__":
    torch.set_num_threads(1)  # as under pytest
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(observe(tiny_run(Path(folder))), indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{GOLDEN} written\n")

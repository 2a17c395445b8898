"""The first sampled frame of the test clips of a finished work directory, against the real one and a repeated one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import lvt_pipeline as lvt
from benchmarks.lookahead import WORK

GIVEN = 15
STARTS = (0, 10, 20)  # of the windows in each clip
RULES: dict[str, dict[str, Any]] = {
    "sampled from all codes": {},
    "top-p 0.9": {"top_p": 0.9},
    "top-p 0.9, temperature 0.7": {"top_p": 0.9, "temperature": 0.7},
    "always the likeliest code": {"top_k": 1},
}


def run() -> str:
    """PSNR and the share of codes that differ from the frame before, seed 0."""
    if not (WORK / "runs" / "prior").exists():
        return f"### First frame\n\nskipped: {WORK} is no finished work directory; run `make demo`, or set LVT_WORK\n"
    vqvae = lvt.load_vqvae(WORK / "runs" / "vqvae", device="cpu")
    prior = lvt.load_prior(WORK / "runs" / "prior", device="cpu")
    store, shards = lvt.open_codes(WORK / "data.zarr"), lvt.FrameShards(WORK / "frames")
    places = [(clip.id, start) for clip in store.split("test") for start in STARTS if start + GIVEN < clip.length]
    windows = np.stack([store[name][start : start + GIVEN + 1] for name, start in places]).astype(np.int64)
    real = np.stack([shards.read(name)[start + GIVEN - 1 : start + GIVEN + 1] for name, start in places])
    rows = [
        np.stack([store.array(name)[clip][start : start + GIVEN + 1] for clip, start in places])
        for name in prior.config.actions or ()
    ]
    actions = np.concatenate(rows, axis=-1) if rows else None
    before, after = windows[:, GIVEN - 1], windows[:, GIVEN]

    def row(name: str, codes: NDArray[np.int64]) -> str:
        decoded = vqvae.decode(codes).numpy()
        return f"| {name} | {psnr(decoded, real[:, 1]):.2f} dB | {100 * np.mean(codes != before):.1f} % |"

    lines = [
        f"### First sampled frame: {len(places)} windows of the test clips of {WORK}",
        "",
        "| frame | PSNR, mean | codes that change |",
        "|---|---|---|",
        f"| the last real frame, repeated | {psnr(real[:, 0], real[:, 1]):.2f} dB | |",
        row("the last frame encoded and decoded, repeated", before),
        row("the real codes of the frame, decoded", after),
    ]
    for name, rule in RULES.items():
        sampled = prior.sample(windows[:, :GIVEN], frames=GIVEN + 1, seed=0, actions=actions, **rule)
        lines.append(row(name, sampled[:, GIVEN].numpy()))
    return "\n".join(lines) + "\n"


def psnr(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """Mean over frames (N, H, W, 3), in dB."""
    errors = ((found.astype(np.float64) - wanted) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / errors)))

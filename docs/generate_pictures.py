"""Write the pictures of README and pages from a finished demo: `python docs/generate_pictures.py demo/work`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import lvt_pipeline as lvt
from lvt_pipeline.report.figures import FigureSettings, plot_work_figures
from lvt_pipeline.video.pictures import change_mask, colour_codes
from lvt_pipeline.video.write import enlarge

TARGET = Path(__file__).with_name("images")
GIVEN = (240, 170, 40)  # edge of the frames that were given to the prior
SCALE, GAP = 2, 2
COLUMNS = (0, 2, 4, 5, 7, 9, 11, 13, 15)


def main(work_dir: Path) -> None:
    """Samples of two clips, reconstructions of eight frames, and the codes of one clip."""
    frames = lvt.FrameShards(work_dir / "frames")
    codes, samples = lvt.open_codes(work_dir / "data.zarr"), lvt.open_codes(work_dir / "samples.zarr")
    vqvae = lvt.load_vqvae(work_dir / "runs" / "vqvae", device="cpu")
    priming = int(samples.provenance.counts["priming_frames"])
    rows = []
    for clip in samples.clips[:2]:
        real = frames.read(clip.id)[: clip.length]
        reconstructed = vqvae.decode(codes.read(clip.id, 0, clip.length)).numpy()
        sampled = vqvae.decode(samples[clip.id]).numpy()
        rows += [row_of(real, 0), row_of(reconstructed, 0), row_of(sampled, priming)]
    save("demo_samples.png", rows)
    clips = frames.split("test")[:8]
    originals = np.stack([frames.read(clip)[20] for clip in clips])
    again = vqvae.decode(vqvae.encode(originals)).numpy()
    save("demo_reconstructions.png", [tiles(originals), tiles(again)])
    save("demo_videos.png", [tiles(frames.read(clip)[::5]) for clip in clips[:3]])
    clip_codes = codes.read(samples.clips[0].id, 0, samples.clips[0].length)
    books = [clip_codes[..., book] for book in range(codes.num_codebooks)]
    drawn = [colour_codes(book, codes.codebook_size) for book in books] + [changes_of(book) for book in books]
    save("demo_codes.png", [tiles(strip[list(COLUMNS)], 8) for strip in drawn])
    save_figure(work_dir, "good-sample")


def save_figure(work_dir: Path, name: str) -> None:
    """One figure of `lvt figures` at half its resolution and with 256 colours, which is enough for a screen."""
    with tempfile.TemporaryDirectory() as folder:
        files = plot_work_figures(work_dir, Path(folder), FigureSettings(only=(name,))).drawn[name]
        with Image.open(files.png) as picture:
            small = picture.convert("RGB").reduce(2).quantize(256, dither=Image.Dither.NONE)
    small.save(TARGET / f"demo_{name.replace('-', '_')}.png", optimize=True)


def changes_of(codes: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    """Change masks, uint8 (T, h, w, 3); the first frame has none and is white."""
    masks = change_mask(codes)[..., :3].copy()
    masks[0] = 255
    return masks


def row_of(video: NDArray[np.uint8], priming: int) -> NDArray[np.uint8]:
    """Some frames of a clip side by side; those given to the prior have an edge."""
    video = enlarge(video, SCALE)
    for frame in video[:priming]:
        for edge in (frame[:2], frame[-2:], frame[:, :2], frame[:, -2:]):
            edge[:] = GIVEN
    return tiles(video[list(COLUMNS)], scale=1)


def tiles(pictures: NDArray[np.uint8], scale: int = SCALE) -> NDArray[np.uint8]:
    """Pictures side by side with white gaps."""
    padded = np.pad(enlarge(pictures, scale), ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-GAP]


def save(name: str, rows: list[NDArray[np.uint8]]) -> None:
    """Rows below each other."""
    padded = [np.pad(row, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for row in rows]
    Image.fromarray(np.concatenate(padded)[:-GAP]).save(TARGET / name, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

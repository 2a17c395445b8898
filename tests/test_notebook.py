"""Objects print as one line, and show themselves in a notebook as self-contained, escaped HTML."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import av
import numpy as np

import lvt_pipeline as lvt
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.video.notebook import Film, clips_html
from lvt_pipeline.video.write import write_bytes
from tests.conftest import moving_square


def test_everything_that_is_opened_prints_as_one_line_with_its_counts(finished_work_dir: Path) -> None:
    store = lvt.open_codes(finished_work_dir / "data.zarr")
    frames = lvt.FrameShards(finished_work_dir / "frames")
    assert repr(store) == (f"CodeStore('{store.path}', 10 clips, 120 frames of 8x8x2 codes, K=16, generation 1)")
    assert repr(frames) == f"FrameShards('{frames.root}', 10 clips, 120 frames, 1 failed)"
    assert repr(store.clip("train/clip0")) == "CodeClip('train/clip0', 12 frames, train)"
    assert repr(frames["train/clip0"]) == "FrameClip('train/clip0', 12 frames of 32x32, train)"
    windows = lvt.CodeWindows(store, frames=4)
    assert repr(windows) == f"CodeWindows('{store.path}', {len(windows)} windows of 4 frames, train)"
    vqvae = lvt.load_vqvae(finished_work_dir / "runs" / "vqvae", device="cpu")
    assert repr(vqvae) == "VQVAE(K=16, n_c=2, 12,403 parameters)"
    prior = lvt.load_prior(finished_work_dir / "runs" / "prior", device="cpu")
    assert repr(prior) == "Prior(4 frames, subscale 4x1x1, 10,708 parameters)"


def test_a_clip_is_shown_as_a_film_that_a_browser_can_play(tmp_path: Path) -> None:
    film = Film(moving_square(0, 6, 32, 48), 10.0, "<b>a & b")
    page = film._repr_html_()
    assert "&lt;b&gt;a &amp; b" in page
    assert "<b>" not in page
    source = re.search(r'src="data:video/mp4;base64,([^"]+)"', page)
    assert source is not None
    path = tmp_path / "film.mp4"
    write_bytes(path, base64.b64decode(source.group(1)))
    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) == 6
    assert shown[0].shape == (256, 384, 3)


def test_stores_and_frames_show_their_clips_decoded_or_coloured(finished_work_dir: Path) -> None:
    store = lvt.open_codes(finished_work_dir / "data.zarr")
    vqvae = lvt.load_vqvae(finished_work_dir / "runs" / "vqvae", device="cpu")
    np.testing.assert_array_equal(store.show("train/clip0", vqvae).frames, vqvae.decode(store["train/clip0"]).numpy())
    coloured = store.show(store.clip("train/clip0"))
    assert (coloured.frames.shape, coloured.frames.dtype, coloured.fps) == ((12, 8, 8, 3), np.uint8, 10)
    frames = lvt.FrameShards(finished_work_dir / "frames")
    np.testing.assert_array_equal(frames.show("train/clip0").frames, frames.read("train/clip0"))


def test_a_store_is_shown_as_a_table_of_its_first_clips(finished_work_dir: Path) -> None:
    page = lvt.open_codes(finished_work_dir / "data.zarr")._repr_html_()
    assert page.count("<tr>") == 11
    assert "<td>train/clip0</td>" in page
    assert "more clips" not in page


def test_a_table_escapes_ids_and_counts_the_clips_that_it_leaves_out() -> None:
    page = clips_html("<title>", [{"id": "<script>", "label": None}], 3)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "and 2 more clips" in page


def test_the_label_of_a_clip_is_in_its_line() -> None:
    clip = CodeClip(id="a", split="val", label="wave", offset=0, length=1200, fingerprint="f", fps=10.0, source="a.mp4")
    assert repr(clip) == "CodeClip('a', 1,200 frames, val, label 'wave')"

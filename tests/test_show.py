"""`lvt show`: the right frames of the right clips, the same for a seed, and one line for what cannot be shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.frames.records import FrameSample
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.frames.writer import write_frames
from lvt_pipeline.report.contact_sheet import PRIMING, ShownClip, contact_sheet, film, show
from lvt_pipeline.report.settings import ShowSettings
from lvt_pipeline.video.write import enlarge

Lvt = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty clips of noise, half of them with another rate and codec-free sizes."""
    root = tmp_path_factory.mktemp("show") / "frames"
    samples = [
        FrameSample.from_array(
            f"c{index:02d}",
            np.random.default_rng(index).integers(0, 256, (6 + index, 16, 16, 3), np.uint8),
            split="train" if index < 15 else "test",
            fps=10.0 if index % 2 else 20.0,
        )
        for index in range(20)
    ]
    write_frames(root, samples, stage="test", settings={}, inputs={})
    return root


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.array(opened)


def contains(picture: np.ndarray, tile: np.ndarray) -> bool:
    """Whether a tile lies somewhere in a picture, pixel for pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(picture[..., 0], tile.shape[:2])
    places = np.argwhere((windows[..., :4, :] == tile[:4, :, 0]).all(axis=(2, 3)))
    height, width, _ = tile.shape
    return any(np.array_equal(picture[top : top + height, left : left + width], tile) for top, left in places)


def upper(tile: np.ndarray) -> np.ndarray:
    """A tile without the part that its frame number is written on."""
    return tile[: len(tile) // 2]


def test_a_sheet_holds_the_first_and_the_last_frame_of_the_clips_asked_for(frames: Path, tmp_path: Path) -> None:
    shown = show(frames, tmp_path / "s.png", ShowSettings(clips=("c07", "c02"), num_frames=3, scale=2))
    assert shown == ["c07", "c02"]
    sheet = picture(tmp_path / "s.png")
    shards = FrameShards(frames)
    for name in shown:
        pixels = shards.read(name)
        for index in (0, round((len(pixels) - 1) / 2), len(pixels) - 1):
            assert contains(sheet, upper(enlarge(pixels[index : index + 1], 2)[0]))
        assert not contains(sheet, upper(enlarge(pixels[1:2], 2)[0]))


def test_random_clips_are_the_same_for_the_same_seed_and_others_for_another(frames: Path, tmp_path: Path) -> None:
    first = show(frames, tmp_path / "a.png", ShowSettings(num_clips=4, seed=1))
    assert show(frames, tmp_path / "b.png", ShowSettings(num_clips=4, seed=1)) == first == sorted(first)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert show(frames, tmp_path / "c.png", ShowSettings(num_clips=4, seed=2)) != first
    assert len(show(frames, tmp_path / "d.png", ShowSettings(num_clips=100))) == 20
    assert set(show(frames, tmp_path / "e.png", ShowSettings(split="test"))) == {f"c{index}" for index in range(15, 20)}


@pytest.mark.parametrize("name", ["a\nb", "a\r\tb", "\x00", "half \ud800", "\u2028", "日本\n"])
def test_a_name_that_cannot_be_written_on_one_line_is_shown_all_the_same(name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    clip = ShownClip(name, "about\nit", 3, 5.0, lambda indices: noise[indices])
    assert contact_sheet([clip], 2).shape[2] == 3
    frames, _ = film([clip], 1.0)
    assert len(frames) == 3


def test_frames_of_a_sheet_are_numbered_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    original = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda pen, place, text, *rest, **options: written.append(text) or original(pen, place, text, *rest, **options),
    )
    clip = ShownClip("a", "", 5, 5.0, lambda indices: np.zeros((len(indices), 16, 16, 3), np.uint8))
    contact_sheet([clip], 3)
    assert [text for text in written if text.isdigit()] == ["1", "3", "5"]


def test_a_clip_of_fewer_frames_than_asked_shows_each_once(frames: Path, tmp_path: Path) -> None:
    show(frames, tmp_path / "s.png", ShowSettings(clips=("c00",), num_frames=50, scale=1))
    assert picture(tmp_path / "s.png").shape[1] == 8 + 6 * (16 + 4)


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_films_play_every_clip_at_its_own_speed(frames: Path, tmp_path: Path, suffix: str) -> None:
    show(frames, tmp_path / f"s.{suffix}", ShowSettings(clips=("c03", "c04"), seconds=0.5, scale=2))
    with av.open(str(tmp_path / f"s.{suffix}")) as container:
        assert len(list(container.decode(video=0))) == 10
    tens, twenties = (
        ShownClip(
            name, "", len(FrameShards(frames).read(name)), fps, lambda at, name=name: FrameShards(frames).read(name)[at]
        )
        for name, fps in (("c03", 10.0), ("c04", 20.0))
    )
    pictures, fps = film([tens, twenties], seconds=10.0, scale=1)
    assert (len(pictures), fps) == (18, 20.0)  # 9 frames at 10 and 10 at 20 per second
    for moment in (0, 5, 17):
        assert contains(pictures[moment], FrameShards(frames).read("c03")[moment // 2])
        assert contains(pictures[moment], FrameShards(frames).read("c04")[min(moment, 9)])


@pytest.mark.parametrize("suffix", ["png", "mp4", "gif"])
def test_show_replaces_its_own_picture_and_no_other_file(frames: Path, tmp_path: Path, lvt: Lvt, suffix: str) -> None:
    out = tmp_path / f"s.{suffix}"
    show(frames, out, ShowSettings(clips=("c03",), seconds=0.2))
    first = out.read_bytes()
    show(frames, out, ShowSettings(clips=("c04",), seconds=0.2))
    assert out.read_bytes() != first
    theirs = first.replace(b"written by lvt show", b"written by somebody")
    out.write_bytes(theirs)
    code, _, errors = lvt("show", frames, "-o", out)
    assert (code, errors.count("\n")) == (1, 1)
    assert "exists and lvt show did not write it; choose another output, or delete the file first" in errors
    assert out.read_bytes() == theirs


def test_a_caption_shows_control_characters_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageDraw

    drawn: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, corner, text, *rest, **more: drawn.append(text))
    clip = ShownClip("a\nb\x1b[31m", "", 1, 10.0, lambda at: np.zeros((len(at), 200, 200, 3), np.uint8))
    contact_sheet([clip], num_frames=1, scale=1)
    assert drawn[0] == r"a\nb\x1b[31m"


def test_frames_that_a_sample_was_given_have_an_amber_edge() -> None:
    clip = ShownClip("x", "", 4, 10.0, lambda at: np.zeros((len(at), 32, 32, 3), np.uint8), num_priming=3)
    sheet = contact_sheet([clip], num_frames=4, scale=1)
    amber = (sheet == PRIMING).all(axis=-1)
    assert amber.sum() == 3 * (36 * 36 - 32 * 32)


def test_codes_are_shown_in_colours_and_as_the_tokenizer_decodes_them(
    finished_work_dir: Path, tmp_path: Path, lvt: Lvt
) -> None:
    from lvt_pipeline.runs.read import load_vqvae

    codes, vqvae = finished_work_dir / "data.zarr", finished_work_dir / "runs" / "vqvae"
    name = open_codes(codes).clips[0].id
    code, text, _ = lvt("show", codes, "-o", tmp_path / "c.png", "--clip", name, "--scale", 4)
    assert (code, text) == (0, f"1 clip of {codes} -> {tmp_path}/c.png\n")
    assert lvt("show", codes, "-o", tmp_path / "p.png", "--clip", name, "--vqvae", vqvae, "--scale", 1)[0] == 0
    first = load_vqvae(vqvae, device="cpu").decode(open_codes(codes).read(name)[:1]).numpy()[0]
    assert contains(picture(tmp_path / "p.png"), upper(first))
    assert picture(tmp_path / "c.png").shape != picture(tmp_path / "p.png").shape
    code, text, _ = lvt("show", finished_work_dir / "samples.zarr", "--vqvae", vqvae, "-o", tmp_path / "s.png")
    assert code == 0
    assert ((picture(tmp_path / "s.png") == PRIMING).all(axis=-1)).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "{frames}", "-o", "x.jpg"], "x.jpg ends in .jpg; a picture ends in .png, .mp4, .gif"),
        (["show", "{frames}", "--clip", "c99"], "has no clip 'c99' among its 20; did you mean 'c19'?"),
        (["show", "{frames}", "--split", "val"], "has no val clip to show"),
        (["show", "{frames}", "--vqvae", "x"], "is a folder of frames; --vqvae applies to code stores; leave it out"),
        (["show", "nowhere"], "nowhere does not exist; give"),
        (["show", "{frames}/provenance.json"], "is neither a folder of frames nor a code store"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    frames: Path, lvt: Lvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = lvt(*[argument.format(frames=frames) for argument in arguments])
    assert code == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_other_sizes_share_a_film() -> None:
    def flat(size: int, level: int) -> Any:
        return lambda at: np.full((len(at), size, size, 3), level, np.uint8)

    clips = [ShownClip(str(size), "", 2, 10.0, flat(size, 100 + size)) for size in (8, 12, 16)]
    pictures, _ = film(clips, seconds=1.0, scale=1)
    for size in (8, 12, 16):
        assert (pictures[0] == 100 + size).all(axis=-1).sum() >= size * size

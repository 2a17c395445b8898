"""One clip to frames: right pixels, right count, right time; and a reason for every file that cannot be used."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lvt_pipeline.config import build, to_plain
from lvt_pipeline.errors import ConfigError, DecodeError
from lvt_pipeline.video.container.facts import inspect_video
from lvt_pipeline.video.container.streams import open_container
from lvt_pipeline.video.container.timing import Timing
from lvt_pipeline.video.decode import (
    FAILURE_REASONS,
    choose_frames,
    decode_clip,
    decoder_version,
)
from lvt_pipeline.video.geometry import centre_square, lanczos_square, scaled_sides, square_of_scaled
from lvt_pipeline.video.settings import GeometrySettings
from lvt_pipeline.video.write import write_mp4, write_video

CLIPS = Path(__file__).parents[2] / "shared" / "videos"
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder of real clips is not here")
SMALL = GeometrySettings(size=32)
DECORD = GeometrySettings(size=32, decoder="decord")


def numbered(num_frames: int = 20, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames that tell their number: a bright bar moves one step to the right each time."""
    frames = np.full((num_frames, height, width, 3), 30, np.uint8)
    for index, frame in enumerate(frames):
        frame[:, 8 + 2 * index : 14 + 2 * index] = 220
    return frames


def bars(frames: np.ndarray) -> list[float]:
    """Where the bar of each frame stands, in its pixels."""
    profile = frames.astype(float).mean(axis=(1, 3)) - 30
    return [float((row * np.arange(len(row))).sum() / row.sum()) for row in profile]


def encode(
    path: Path, frames: np.ndarray, codec: str, times: list[int] | None = None, clock: int = 100, **options: str
) -> Path:
    """Write frames in some codec; `times` are presentation times in ticks of the clock, hundredths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, clock)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = times[index] if times else clock // 10 * index, Fraction(1, clock)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def reason_of(path: Path, geometry: GeometrySettings = SMALL) -> tuple[str, str]:
    with pytest.raises(DecodeError) as caught:
        decode_clip(str(path), None, None, geometry)
    assert caught.value.reason in FAILURE_REASONS
    return caught.value.reason, str(caught.value)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_mp4(tmp_path / "clip.mp4", numbered(), fps=10)
    return tmp_path / "clip.mp4"


# Geometry


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (49, 64), (48, 61), (31, 31), (121, 160), (7, 12)])
def test_the_crop_is_pillows_of_the_half_pixel_box(size: tuple[int, int]) -> None:
    height, width = size
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    side = min(size)
    left, top = (width - side) / 2, (height - side) / 2
    expected = np.asarray(Image.fromarray(frame).crop((left, top, left + side, top + side)))
    assert np.array_equal(centre_square(frame), expected)


def test_resizing_is_pillows_lanczos_of_the_crop() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    expected = Image.fromarray(frame[:, 15:105]).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(lanczos_square(frame, 64), np.asarray(expected))


def test_a_frame_of_the_right_size_is_left_alone() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert np.array_equal(lanczos_square(frame, 64), frame)


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 64).map(lambda step: 4 * step))
def test_scaled_pictures_fit_every_square(height: int, width: int, size: int) -> None:
    for fit in ("crop", "letterbox"):
        rows, columns = scaled_sides(height, width, size, fit)
        if max(rows, columns) < 10_000:
            assert square_of_scaled(np.zeros((rows, columns, 3), np.uint8), size, fit).shape == (size, size, 3)
    rows, columns = scaled_sides(height, width, size, "crop")
    assert min(rows, columns) == size


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("resize", ["lanczos", "decoder"])
@pytest.mark.parametrize("fit", ["crop", "letterbox"])
@pytest.mark.parametrize("size", [20, 36, 64, 100])
def test_every_size_and_fit_gives_squares_of_that_size(
    tmp_path: Path, decoder: Any, resize: Any, fit: Any, size: int
) -> None:
    write_mp4(tmp_path / "odd.mp4", numbered(3, height=54, width=86), fps=10)
    geometry = GeometrySettings(size=size, decoder=decoder, resize=resize, fit=fit)
    frames = decode_clip(str(tmp_path / "odd.mp4"), None, None, geometry).frames
    assert frames.shape == (3, size, size, 3)
    margin = round(size * (1 - 54 / 86) / 2) - 1
    bars_above = frames[:, :margin]
    assert bars_above.max() == 0 if fit == "letterbox" else bars_above.mean() > 20
    if fit == "letterbox":
        assert frames[:, margin + 3].mean() > 20
        assert frames[:, -margin:].max() == 0


def test_a_letterbox_shows_what_a_crop_cuts_off(tmp_path: Path) -> None:
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :, :8] = 250  # white at the left edge only
    write_mp4(tmp_path / "wide.mp4", frames, fps=10)
    crop, letterbox = (
        decode_clip(str(tmp_path / "wide.mp4"), None, None, GeometrySettings(size=32, fit=fit)).frames
        for fit in ("crop", "letterbox")
    )
    assert crop.max() < 20
    assert letterbox[0, 16, 1].min() > 200
    assert letterbox[0, 16, 30].max() < 20


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("resize", ["lanczos", "decoder"])
def test_every_frame_comes_back_in_order(clip: Path, decoder: Any, resize: Any) -> None:
    decoded = decode_clip(str(clip), None, None, GeometrySettings(size=48, decoder=decoder, resize=resize))
    assert decoded.frames.shape == (20, 48, 48, 3)
    assert (decoded.decoder, decoded.fps, decoded.notes) == (decoder, 10.0, ())
    inside = slice(3, 16)  # the bar is cut off at the edges of the crop
    assert np.allclose(bars(decoded.frames)[inside], [2.5 + 2 * index for index in range(20)][inside], atol=0.7)


def test_both_decoders_agree_on_pixels(clip: Path) -> None:
    one, other = (
        decode_clip(str(clip), None, None, GeometrySettings(size=32, decoder=decoder)).frames.astype(int)
        for decoder in ("decord", "pyav")
    )
    assert np.abs(one - other).max() <= 2


@pytest.mark.parametrize("size", [(20, 24), (16, 16), (18, 48), (40, 30)])
@pytest.mark.parametrize("resize", ["lanczos", "decoder"])
def test_pictures_narrower_than_decords_row_padding_are_right(
    tmp_path: Path, size: tuple[int, int], resize: Any
) -> None:
    ramp = np.linspace(40, 200, size[1]).astype(np.uint8)
    frames = np.broadcast_to(ramp[None, None, :, None], (3, *size, 3))
    write_mp4(tmp_path / "small.mp4", frames, fps=10)
    one, other = (
        decode_clip(str(tmp_path / "small.mp4"), None, None, GeometrySettings(size=16, decoder=decoder, resize=resize))
        for decoder in ("decord", "pyav")
    )
    assert one.frames.shape == (3, 16, 16, 3)
    assert np.abs(one.frames.astype(int) - other.frames).max() <= 3


def test_auto_reads_with_the_decoder_that_shows_damage_and_decoding_repeats(clip: Path) -> None:
    first, second = (decode_clip(str(clip), None, None, SMALL) for _ in range(2))
    assert first.decoder == "pyav"
    assert np.array_equal(first.frames, second.frames)


def test_a_clip_that_ends_in_a_still_is_read_whole(tmp_path: Path) -> None:
    write_mp4(tmp_path / "still.mp4", np.repeat(numbered(1), 9, axis=0), fps=10)
    decoded = decode_clip(str(tmp_path / "still.mp4"), None, None, DECORD)
    assert (len(decoded.frames), decoded.decoder) == (9, "decord")


# Time


def facts(times: list[float], fps: float = 10.0) -> Timing:
    return Timing(np.array(times), fps, 1 / fps)


@pytest.mark.parametrize(
    ("start", "end", "fps", "expected"),
    [
        (None, None, None, [0, 1, 2, 3, 4]),
        (0.1, 0.3, None, [1, 2]),
        (None, 9.0, None, [0, 1, 2, 3, 4]),
        (None, None, 5.0, [0, 2, 4]),
        (None, None, 20.0, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
        (0.2, None, 5.0, [2, 4]),
        (0.1, 0.4, 20.0, [1, 1, 2, 2, 3, 3]),
    ],
)
def test_ranges_and_rates_choose_by_time(
    start: float | None, end: float | None, fps: float | None, expected: list[int]
) -> None:
    chosen = choose_frames(facts([0.0, 0.1, 0.2, 0.3, 0.4]), start, end, GeometrySettings(fps=fps))
    assert chosen.tolist() == expected


def test_resampling_follows_presentation_time_not_the_index() -> None:
    uneven = facts([0.0, 0.05, 0.1, 1.0, 1.5], fps=4.0)
    assert choose_frames(uneven, None, None, GeometrySettings(fps=4)).tolist() == [0, 2, 2, 2, 3, 3, 4]


def test_a_variable_rate_file_resamples_by_its_own_clock(tmp_path: Path) -> None:
    path = encode(tmp_path / "vfr.mkv", numbered(6), "mpeg4", times=[0, 10, 20, 60, 70, 100])
    decoded = decode_clip(str(path), None, None, GeometrySettings(size=48, fps=10))
    steps = np.round((np.array(bars(decoded.frames)) - bars(decoded.frames)[0]) / 2).astype(int)
    assert steps[:10].tolist() == [0, 1, 2, 2, 2, 2, 3, 4, 4, 4]
    assert decoded.fps == 10


def test_a_stride_keeps_every_nth_frame_of_the_resampled_clip(clip: Path) -> None:
    whole = decode_clip(str(clip), None, None, SMALL)
    third = decode_clip(str(clip), 0.2, None, GeometrySettings(size=32, stride=3))
    assert np.array_equal(third.frames, whole.frames[2::3])
    assert third.fps == pytest.approx(10 / 3)
    assert np.allclose(third.times, whole.times[2::3])
    both = decode_clip(str(clip), None, None, GeometrySettings(size=32, stride=2, fps=5.0, max_frames=3))
    assert np.array_equal(both.frames, whole.frames[[0, 4, 8]])
    assert (both.fps, both.times.tolist()) == (2.5, pytest.approx([0.0, 0.4, 0.8]))


@needs_clips
@pytest.mark.parametrize("name", ["phone/fire2.mp4", "phone/video_desks.3gp", "weightlifting/v_GGSY1Qvo990.mp4"])
def test_real_clips_of_variable_rate_resample_as_a_player_shows_them(name: str) -> None:
    path = str(CLIPS / name)
    with open_container(path) as container:
        stream = container.streams.video[0]
        shown = np.array([float(frame.pts * stream.time_base) for frame in container.decode(stream)])
    shown -= shown[0]
    native = decode_clip(path, None, None, GeometrySettings(size=16))
    assert np.allclose(native.times, shown)
    resampled = decode_clip(path, None, None, GeometrySettings(size=16, fps=12.0))
    expected = [
        int((shown <= index / 12 + inspect_video(path).timing.tolerance).sum()) - 1
        for index in range(len(resampled.frames))
    ]
    assert np.array_equal(resampled.frames, native.frames[expected])
    assert len(resampled.frames) == pytest.approx(12 * shown[-1], abs=2)


def test_a_range_outside_the_video_is_too_short(clip: Path) -> None:
    with pytest.raises(
        DecodeError, match=r"there is no frame between 5 s and the end: the video lasts 2\.00 s"
    ) as caught:
        decode_clip(str(clip), 5.0, None, SMALL)
    assert caught.value.reason == "too-short"


def test_max_frames_keeps_the_first(clip: Path) -> None:
    whole = decode_clip(str(clip), None, None, SMALL).frames
    assert np.array_equal(decode_clip(str(clip), None, None, GeometrySettings(size=32, max_frames=7)).frames, whole[:7])
    assert np.array_equal(decode_clip(str(clip), 0.5, 0.9, SMALL).frames, whole[5:9])


@pytest.mark.parametrize(("size", "hint"), [(50, "take 48 or 52"), (65, "take 64 or 68")])
def test_a_size_that_the_tokenizer_cannot_use_is_refused_with_the_next_ones(size: int, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"size={size} is not a multiple of 4, which the tokenizer needs; {hint}"):
        GeometrySettings(size=size)


def test_settings_as_plain_data_are_complete_and_read_back() -> None:
    assert {*to_plain(GeometrySettings())} == {item.name for item in fields(GeometrySettings)}
    assert build(GeometrySettings, to_plain(GeometrySettings(clip_seconds=3.0))) == GeometrySettings(clip_seconds=3.0)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 2}, {"fps": 0.0}, {"fps": 1e6}, {"max_frames": 0}])
def test_impossible_geometry_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        GeometrySettings(**wrong)


# Containers and codecs


@pytest.mark.parametrize("decoder", ["auto", "decord", "pyav"])
def test_pyav_reads_what_decord_cannot(tmp_path: Path, decoder: Any) -> None:
    write_video(tmp_path / "clip.gif", numbered(8), fps=10)
    decoded = decode_clip(str(tmp_path / "clip.gif"), None, None, GeometrySettings(size=32, decoder=decoder))
    assert (decoded.decoder, len(decoded.frames), decoded.fps) == ("pyav", 8, 10.0)


def test_mpeg_ts_goes_to_pyav_because_decord_returns_stale_pictures(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.ts", numbered(), "libx264")
    decoded = decode_clip(str(path), None, None, GeometrySettings(size=48))
    assert (decoded.decoder, len(decoded.frames)) == ("pyav", 20)
    assert np.allclose(np.diff(bars(decoded.frames)[3:16]), 2, atol=0.7)


@pytest.mark.parametrize(("name", "codec"), [("x.avi", "mpeg4"), ("x.mkv", "libx264"), ("x.webm", "libvpx")])
def test_common_files_go_through_decord_when_it_is_asked_for(tmp_path: Path, name: str, codec: str) -> None:
    decoded = decode_clip(str(encode(tmp_path / name, numbered(), codec)), None, None, DECORD)
    assert (decoded.decoder, len(decoded.frames)) == ("decord", 20)


def test_decoder_versions_name_the_family() -> None:
    assert decoder_version("decord").startswith("decord 0.")
    assert decoder_version("pyav").startswith("pyav libavcodec ")
    with pytest.raises(ConfigError, match="not one of decord, pyav"):
        decoder_version("opencv")


# Files that cannot be used


def test_a_missing_file_a_folder_and_an_empty_file_are_told_apart(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "gone.mp4") == ("missing", f"{tmp_path}/gone.mp4 does not exist")
    assert reason_of(tmp_path) == ("unreadable", f"{tmp_path} is not a file")
    (tmp_path / "empty.mp4").touch()
    assert reason_of(tmp_path / "empty.mp4") == ("unreadable", f"{tmp_path}/empty.mp4 is empty: it has 0 bytes")


def test_text_named_mp4_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("dear diary\n" * 100)
    reason, message = reason_of(tmp_path / "notes.mp4")
    assert reason == "unreadable"
    assert "is not a video" in message


def test_sound_without_a_picture_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert reason_of(tmp_path / "sound.mp4") == ("no-video", f"{tmp_path}/sound.mp4 holds no video, only audio")


@pytest.mark.parametrize(("name", "codec"), [("x.avi", "mpeg4"), ("x.mkv", "libx264"), ("x.webm", "libvpx")])
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_truncated_file_is_a_failure_and_never_a_short_clip(
    tmp_path: Path, name: str, codec: str, share: float
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    data = encode(tmp_path / name, noise, codec).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    reason, message = reason_of(tmp_path / name)
    assert reason == "truncated"
    assert "is cut short" in message


@pytest.mark.parametrize(("name", "codec"), [("x.avi", "mpeg4"), ("x.mkv", "libx264"), ("x.webm", "libvpx")])
@pytest.mark.parametrize("resize", ["lanczos", "decoder"])
def test_of_a_truncated_file_the_first_frames_are_kept_when_asked(
    tmp_path: Path, name: str, codec: str, resize: Any
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    path = encode(tmp_path / name, noise, codec)
    geometry = GeometrySettings(size=32, decoder="pyav", resize=resize, on_truncated="keep")
    whole = decode_clip(str(path), None, None, geometry)
    assert (len(whole.frames), whole.truncated) == (40, "")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    part = decode_clip(str(path), None, None, GeometrySettings(size=32, resize=resize, on_truncated="keep"))
    assert 10 < len(part.frames) < 30
    assert np.array_equal(part.frames, whole.frames[: len(part.frames)])
    assert (part.decoder, len(part.times)) == ("pyav", len(part.frames))
    assert re.search(r"there are \d\.\d\d of the 4\.\d\d s|ends inside a packet", part.truncated)
    late = GeometrySettings(size=32, on_truncated="keep")
    with pytest.raises(DecodeError):
        decode_clip(str(path), 3.5, None, late)


def test_of_a_truncated_file_the_frames_before_the_first_damaged_one_are_kept(clip: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    write_mp4(clip, noise, fps=10)
    whole = decode_clip(str(clip), None, None, GeometrySettings(size=32, decoder="pyav")).frames
    data = bytearray(clip.read_bytes())
    half = len(data) // 2
    data[half - 9000 : half - 5000] = bytes(4000)
    clip.write_bytes(data[:half])
    assert reason_of(clip)[0] == "truncated"
    kept = decode_clip(str(clip), None, None, GeometrySettings(size=32, on_truncated="keep")).frames
    assert 5 < len(kept) < 20
    assert np.array_equal(kept, whole[: len(kept)])


@pytest.mark.parametrize("keep", [False, True])
def test_a_header_that_counts_too_many_frames_is_found_out(tmp_path: Path, keep: bool) -> None:
    data = bytearray(encode(tmp_path / "x.avi", numbered(), "mpeg4", clock=10).read_bytes())
    for box, offset in ((b"avih", 24), (b"strh", 40)):  # frames in all, length of the stream
        place = data.index(box) + 8 + (offset - 8)
        assert int.from_bytes(data[place : place + 4], "little") == 20
        data[place : place + 4] = (40).to_bytes(4, "little")
    (tmp_path / "x.avi").write_bytes(data)
    if keep:
        kept = decode_clip(str(tmp_path / "x.avi"), None, None, GeometrySettings(size=32, on_truncated="keep"))
        assert len(kept.frames) == 20
        assert kept.truncated.endswith("20 of 40 frames")
    else:
        reason, message = reason_of(tmp_path / "x.avi")
        assert reason == "truncated"
        assert "of the 4.00 s that its header announces, and 20 of 40 frames" in message


def test_a_truncated_mp4_is_a_failure_wherever_its_index_is(tmp_path: Path, clip: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    write_mp4(clip, noise, fps=10)  # the index is in front
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    assert reason_of(clip)[0] == "truncated"
    behind = encode(tmp_path / "behind.mp4", noise, "mpeg4")
    behind.write_bytes(behind.read_bytes()[: behind.stat().st_size // 2])
    assert reason_of(behind)[0] == "unreadable"


def test_damaged_pictures_are_a_failure(clip: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    write_mp4(clip, noise, fps=10)
    data = bytearray(clip.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    clip.write_bytes(data)
    assert reason_of(clip)[0] == "damaged"


# Real clips


@needs_clips
@pytest.mark.parametrize(
    ("name", "decoder", "num_frames", "fps"),
    [
        ("tabletop/teddy.mp4", "decord", 141, 19.981),  # its header says 142
        ("broken/sample_av1.mp4", "pyav", 30, 29.97),
        ("talking_head/sample.flv", "decord", 30, 29.99),  # its header says 1000 per second
        ("phone/video_90.mov", "decord", 3, 30.0),
        ("phone/video_desks.3gp", "decord", 71, 14.143),  # its title is not UTF-8
        ("space/nasa_13013.mp4", "pyav", 390, 29.97),  # two video streams
        ("animals/bear-vp9-odd-dimensions.webm", "decord", 30, 29.97),
        ("phone/sample_android_slow_motion.mp4", "pyav", 7, 30.0),  # one frame is shown for a third of a second
    ],
)
def test_real_clips_give_every_frame_they_hold(name: str, decoder: str, num_frames: int, fps: float) -> None:
    decoded = decode_clip(str(CLIPS / name), None, None, GeometrySettings(size=16, decoder="decord"))
    assert (decoded.decoder, len(decoded.frames)) == (decoder, num_frames)
    assert decoded.fps == pytest.approx(fps, abs=0.01)


@needs_clips
@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
@pytest.mark.parametrize(
    "name", ["signing/eat.mkv", "phone/fire2.mp4", "apply_eye_makeup/v_ApplyEyeMakeup_g01_c01.avi"]
)
def test_counts_agree_with_ffprobe(name: str) -> None:
    command = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "V", "-show_entries"]
    command += ["stream=nb_read_frames", "-of", "csv=p=0", str(CLIPS / name)]
    counted = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0].strip(",")
    assert inspect_video(str(CLIPS / name)).num_frames == int(counted)


@needs_clips
@pytest.mark.parametrize("name", ["phone/fire2.mp4", "phone/sample_with_color_info.mp4"])
def test_pyav_turns_pictures_as_decord_does(name: str) -> None:
    one, other = (
        decode_clip(str(CLIPS / name), None, None, GeometrySettings(size=32, decoder=decoder, max_frames=2)).frames
        for decoder in ("decord", "pyav")
    )
    assert np.abs(one.astype(int) - other.astype(int)).mean() < 1


@needs_clips
def test_a_real_damaged_clip_is_a_failure_with_a_reason() -> None:
    assert reason_of(CLIPS / "broken" / "corrupted.mp4")[0] == "damaged"


def test_nothing_is_printed_while_decoding(clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clip.write_bytes(clip.read_bytes()[:-200])
    with pytest.raises(DecodeError):
        decode_clip(str(clip), None, None, SMALL)
    assert capfd.readouterr() == ("", "")

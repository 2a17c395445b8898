"""Inputs that are easily read wrong: every decoder setting gives the same frames, times and reason."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.video.clips import NOTE_KINDS
from lvt_pipeline.video.container import hidden_frames
from lvt_pipeline.video.container.facts import inspect_video
from lvt_pipeline.video.container.streams import packets_of
from lvt_pipeline.video.container.timing import Stamp, timing_of
from lvt_pipeline.video.decode import FAILURE_REASONS, DecodedClip, decode_clip
from lvt_pipeline.video.geometry import orientation_of, turned
from lvt_pipeline.video.settings import GeometrySettings

SIDE = 32
DECODERS = ("auto", "decord", "pyav")
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")


def numbered(num_frames: int) -> np.ndarray:
    """Frames with their number in them: the grey level rises by 2 and a bright square marks the upper left corner."""
    frames = np.empty((num_frames, SIDE, SIDE, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[:] = 20 + 2 * (index % 100)
        frame[: SIDE // 4, : SIDE // 4] = 250
    return frames


def noise(num_frames: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, SIDE, SIDE, 3), np.uint8)


def encode(
    path: Path,
    frames: np.ndarray,
    codec: str,
    *,
    rate: Fraction | int = 25,
    begin: int = 0,
    pixels: str = "yuv420p",
    prepare: Callable[[Any], None] = lambda stream: None,
    movflags: str = "",
    **options: str,
) -> Path:
    """Write frames at a constant rate, the first one shown `begin` frame intervals after zero."""
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        prepare(stream)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = begin + index, 1 / Fraction(rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def remux(source: Path, target: Path, edit: Callable[[list[Any]], list[Any]]) -> Path:
    """Copy the packets of a video's first stream, edited, into another file."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = given.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for packet in edit([packet for packet in given.demux(stream) if packet.dts is not None]):
            packet.stream = copy
            output.mux(packet)
    return target


Verdict = DecodedClip | tuple[str, str]


def verdict(path: Path, start: float | None = None, end: float | None = None, **settings: Any) -> Verdict:
    """The clip, or reason and message of the failure, the same for all decoder settings."""
    found: list[Verdict] = []
    for decoder in DECODERS:
        try:
            geometry = GeometrySettings(size=SIDE, decoder=decoder, **settings)
            found.append(decode_clip(str(path), start, end, geometry))
        except DecodeError as error:
            found.append((error.reason, str(error)))
    first = found[0]
    for other in found[1:]:
        if isinstance(first, tuple) or isinstance(other, tuple):
            assert first == other
            continue
        assert np.array_equal(first.times, other.times)
        assert (first.fps, first.notes) == (other.fps, other.notes)
        assert first.frames.shape == other.frames.shape
        assert np.abs(first.frames.astype(int) - other.frames).max() <= 3
    if isinstance(first, tuple):
        assert first[0] in FAILURE_REASONS
        assert first[0] != "unknown"
    else:
        assert {note.kind for note in first.notes} <= {*NOTE_KINDS}
    return first


def clip_of(path: Path, *range_: float | None, **settings: Any) -> DecodedClip:
    found = verdict(path, *range_, **settings)
    assert isinstance(found, DecodedClip), found
    return found


def failure_of(path: Path, **settings: Any) -> tuple[str, str]:
    found = verdict(path, **settings)
    assert isinstance(found, tuple), "it was decoded"
    return found


def kinds(clip: DecodedClip) -> set[str]:
    return {note.kind for note in clip.notes}


def numbers(clip: DecodedClip) -> list[int]:
    """Which of the numbered frames these are."""
    levels = clip.frames[:, SIDE // 2 :, SIDE // 2 :].mean(axis=(1, 2, 3))
    return [round((float(level) - 20) / 2) for level in levels]


# Clocks of containers


@pytest.mark.parametrize("rate", [30, Fraction(24000, 1001), 60])
@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.flv", "flv"), ("a.mp4", "libx264"), ("a.avi", "mpeg4")],
)
def test_the_native_rate_is_the_identity_in_every_container(
    tmp_path: Path, name: str, codec: str, rate: Fraction | int
) -> None:
    path = encode(tmp_path / name, numbered(50), codec, rate=rate, b="2M")
    whole = clip_of(path)
    again = clip_of(path, fps=float(rate))
    assert np.array_equal(again.frames, whole.frames)
    assert len(whole.frames) == 50
    assert whole.fps == pytest.approx(float(rate), rel=1e-3)


def test_an_mp4_that_was_made_from_milliseconds_keeps_every_frame(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.mkv", numbered(60), "mpeg4", rate=30, bf="0")
    path = remux(source, tmp_path / "a.mp4", lambda packets: packets)
    whole = clip_of(path).frames
    assert len(whole) == 60
    for step in (1, 2, 3, 6):
        assert np.array_equal(clip_of(path, fps=30 / step).frames, whole[::step])


def test_ranges_respect_the_resolution_of_the_clock(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", numbered(30), "libx264", rate=30)
    whole = clip_of(path)
    for first, last in ((1, 5), (2, 8), (4, 29)):
        assert np.array_equal(clip_of(path, first / 30, last / 30).times, whole.times[first:last])


@needs_ffmpeg
@pytest.mark.parametrize("fps", [10, 12, 20, 50])
def test_other_rates_select_the_frames_of_ffmpegs_filter(tmp_path: Path, fps: int) -> None:
    path = encode(tmp_path / "a.mp4", numbered(50), "libx264", rate=25)
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-vf", f"fps={fps}:round=up", "-f", "rawvideo"]
    data = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    expected = np.frombuffer(data, np.uint8).reshape(-1, SIDE, SIDE, 3)
    ours = clip_of(path, fps=float(fps)).frames
    shared = min(len(ours), len(expected))
    assert abs(len(ours) - len(expected)) <= 1
    assert np.abs(ours[:shared].astype(int) - expected[:shared]).max() <= 1


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_a_video_that_begins_at_an_hour_begins_at_zero(tmp_path: Path, name: str) -> None:
    clip = clip_of(encode(tmp_path / name, numbered(30), "libx264", begin=3600 * 25))
    assert clip.times.tolist() == pytest.approx([index / 25 for index in range(30)])
    assert (clip.fps, kinds(clip)) == (25.0, set())


# Damage


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.flv", "flv"), ("a.ts", "mpeg2video"), ("a.mkv", "mpeg4")],
)
def test_concealed_damage_is_found_whichever_decoder_reads(tmp_path: Path, name: str, codec: str) -> None:
    path = encode(tmp_path / name, noise(40), codec, g="12")
    data = bytearray(path.read_bytes())
    generator = np.random.default_rng(1)
    for place in generator.integers(len(data) // 4, len(data) * 4 // 5, 40):
        data[place] ^= 4
    path.write_bytes(data)
    reason, message = failure_of(path)
    assert reason in ("damaged", "incomplete", "truncated")  # a size of a chunk may be hit as well
    assert str(path) in message


def test_the_damaged_part_of_a_video_does_not_concern_clips_before_it(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", noise(40), "mpeg4", g="12")
    data = bytearray(path.read_bytes())
    data[len(data) * 9 // 10 : len(data) * 9 // 10 + 200] = bytes(200)
    path.write_bytes(data)
    assert failure_of(path)[0] == "damaged"
    assert len(clip_of(path, None, 0.2).frames) == 5


def test_damage_is_accepted_where_the_bitstream_is_trusted(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", noise(40), "mpeg4", g="12")
    data = bytearray(path.read_bytes())
    for place in np.random.default_rng(1).integers(len(data) // 3, len(data) * 2 // 3, 30):
        data[place] ^= 4
    path.write_bytes(data)
    assert failure_of(path)[0] == "damaged"
    geometry = GeometrySettings(size=SIDE, trust_bitstream=True)
    assert len(decode_clip(str(path), None, None, geometry).frames) == 40


# Holes


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.webm", "libvpx"), ("a.wmv", "wmv2"), ("a.mpg", "mpeg2video"), ("a.ts", "libx264"), ("a.flv", "flv")],
)
def test_a_hole_in_the_middle_is_a_failure_with_a_reason(tmp_path: Path, name: str, codec: str) -> None:
    path = encode(tmp_path / name, noise(100), codec, g="20", b="4M")
    data = bytearray(path.read_bytes())
    first, last = len(data) * 4 // 10, len(data) * 6 // 10
    data[first:last] = bytes(last - first)
    path.write_bytes(data)
    reason, message = failure_of(path)
    assert reason == "incomplete"
    assert "lacks frames in the middle: its data is damaged" in message
    assert message.endswith("--on-truncated keep takes the frames that are there")
    assert len(clip_of(path, None, 0.5).frames) in (12, 13)  # before the hole


def test_a_hole_leaves_the_rate_alone_and_is_noted_when_kept(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.webm", noise(100), "libvpx", g="20", b="4M")
    data = bytearray(path.read_bytes())
    data[len(data) * 4 // 10 : len(data) * 6 // 10] = bytes(len(data) * 6 // 10 - len(data) * 4 // 10)
    path.write_bytes(data)
    kept = clip_of(path, on_truncated="keep", trust_bitstream=True)
    assert kept.fps == 25.0
    assert "holes" in kinds(kept)
    assert kept.truncated.startswith("its data is damaged")


def test_frames_cut_out_without_a_trace_are_noted(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.mkv", numbered(100), "mpeg4", bf="0", g="10")
    path = remux(source, tmp_path / "b.mkv", lambda packets: [*packets[:40], *packets[60:]])
    clip = clip_of(path)
    assert (clip.fps, len(clip.frames), kinds(clip)) == (25.0, 80, {"gaps"})


# Orientation

MATRICES = {
    "upright": (1, 0, 0, 1),
    "clock": (0, 1, -1, 0),
    "hflip,vflip": (-1, 0, 0, -1),
    "cclock": (0, -1, 1, 0),
    "hflip": (-1, 0, 0, 1),
    "vflip": (1, 0, 0, -1),
    "cclock_flip": (0, 1, 1, 0),
    "clock_flip": (0, -1, -1, 0),
}


def with_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    values = (a, b, 0, c, d, 0, 0, 0, 1)
    for number, value in enumerate(values):
        struct.pack_into(">i", data, place + 4 * number, int(value * (1 << (30 if number % 3 == 2 else 16))))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("container", ["a.mp4", "a.mov"])
@pytest.mark.parametrize("resize", ["lanczos", "decoder"])
def test_every_turn_and_reflection_is_applied_by_every_decoder(
    tmp_path: Path, name: str, container: str, resize: str
) -> None:
    path = encode(tmp_path / container, numbered(5), "libx264", crf="5")
    plain = clip_of(path, resize=resize).frames
    found = clip_of(with_matrix(path, *MATRICES[name]), resize=resize).frames
    expected = np.stack([turned(frame, name) for frame in plain])
    assert np.abs(found.astype(int) - expected).mean() < 1


@needs_ffmpeg
@pytest.mark.parametrize("name", MATRICES)
def test_turns_are_those_of_ffmpeg(tmp_path: Path, name: str) -> None:
    path = with_matrix(encode(tmp_path / "a.mp4", numbered(2), "libx264", crf="5"), *MATRICES[name])
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    expected = np.frombuffer(data, np.uint8).reshape(-1, SIDE, SIDE, 3)
    assert np.array_equal(clip_of(path).frames, expected)


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1)])
def test_a_matrix_without_a_direction_turns_nothing(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    path = encode(tmp_path / "a.mp4", numbered(3), "libx264")
    plain = clip_of(path).frames
    assert np.array_equal(clip_of(with_matrix(path, *matrix)).frames, plain)


def test_another_angle_is_ignored_and_noted(tmp_path: Path) -> None:
    path = with_matrix(encode(tmp_path / "a.mp4", numbered(3), "libx264"), 0.866, 0.5, -0.5, 0.866)
    assert kinds(clip_of(path)) == {"odd-angle"}


def test_the_names_of_turns_follow_the_display_matrix() -> None:
    for name, (a, b, c, d) in MATRICES.items():
        assert orientation_of((a, b, 0, c, d, 0, 0, 0, 1)) == (name, True)


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV cannot write a rotation")
def test_matroska_rotation_is_applied_by_every_decoder(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.mp4", numbered(5), "libx264", crf="5")
    plain = clip_of(source).frames
    turned_source = with_matrix(source, 0, 1, -1, 0)
    path = remux(turned_source, tmp_path / "a.mkv", lambda packets: packets)
    found = clip_of(path).frames
    assert np.abs(found.astype(int) - np.rot90(plain, -1, (1, 2))).mean() < 1


# Streams


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
@pytest.mark.parametrize("default", [0, 1])
def test_the_default_one_of_two_video_streams_is_read(tmp_path: Path, name: str, default: int) -> None:
    from av.stream import Disposition

    with av.open(str(tmp_path / name), "w") as output:
        streams = []
        for index, rate in enumerate((25, 10)):
            stream = output.add_stream("libx264", rate=rate)
            stream.height = stream.width = SIDE
            stream.pix_fmt = "yuv420p"
            stream.disposition = Disposition.default if index == default else Disposition(0)
            streams.append(stream)
        for stream, level, count, rate in ((streams[0], 200, 25, 25), (streams[1], 60, 10, 10)):
            for index in range(count):
                picture = np.full((SIDE, SIDE, 3), level, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, rate)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    clip = clip_of(tmp_path / name)
    assert len(clip.frames) == (25, 10)[default]
    assert clip.frames.mean() == pytest.approx((200, 60)[default], abs=5)
    assert f"stream {default} is read, one of 2" in next(note.text for note in clip.notes)


def test_a_stream_that_appears_late_ends_nothing() -> None:
    class Late:
        def demux(self, *streams: object) -> Any:
            yield from [av.Packet(3), av.Packet(4)]
            raise IndexError("list index out of range")

    assert len(list(packets_of(Late()))) == 2  # type: ignore[arg-type] - a stand-in for a container


@needs_ffmpeg
@pytest.mark.slow
def test_sound_that_begins_late_costs_no_frame(tmp_path: Path) -> None:
    parts = []
    for number, (seconds, begin, sound) in enumerate(((12, 0, False), (4, 12, True), (4, 16, False))):
        command = ["ffmpeg", "-v", "error", "-nostdin", "-f", "lavfi", "-i", f"testsrc2=s=128x96:r=25:d={seconds}"]
        command += ["-f", "lavfi", "-i", f"sine=d={seconds}", "-c:a", "aac"] if sound else []
        command += ["-c:v", "libx264", "-crf", "2", "-g", "25", "-output_ts_offset", str(begin)]
        subprocess.run([*command, str(tmp_path / f"{number}.ts")], check=True)
        parts.append((tmp_path / f"{number}.ts").read_bytes())
    (tmp_path / "all.ts").write_bytes(b"".join(parts))
    assert len(clip_of(tmp_path / "all.ts").frames) == 500


def test_a_cover_picture_is_not_a_video(tmp_path: Path) -> None:
    from av.stream import Disposition

    with av.open(str(tmp_path / "song.mp4"), "w") as output:
        sound = output.add_stream("aac", rate=8000, layout="mono")
        cover = output.add_stream("mjpeg", rate=1)
        cover.height = cover.width = SIDE
        cover.pix_fmt = "yuvj420p"
        cover.disposition = Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(1)[0], format="rgb24")))
        output.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    assert failure_of(tmp_path / "song.mp4") == (
        "no-video",
        f"{tmp_path}/song.mp4 holds no video, only a cover picture and audio",
    )


# Pixels


@pytest.mark.parametrize(("name", "codec", "pixels"), [("a.mov", "qtrle", "gray"), ("a.mkv", "ffv1", "yuv410p")])
def test_palettes_and_rare_pixel_formats_keep_their_pictures(
    tmp_path: Path, name: str, codec: str, pixels: str
) -> None:
    clip = clip_of(encode(tmp_path / name, numbered(10), codec, pixels=pixels))
    assert numbers(clip) == pytest.approx(list(range(10)), abs=1)


@needs_ffmpeg
@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
def test_interlaced_pictures_have_the_colours_that_ffmpeg_gives(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.mkv"
    make = ["ffmpeg", "-v", "error", "-nostdin", "-f", "lavfi", "-i", f"testsrc2=s={SIDE}x{SIDE}:r=50:d=0.4"]
    make += ["-vf", "tinterlace=4", "-flags", "+ilme+ildct", "-c:v", codec, str(path)]
    subprocess.run(make, check=True)
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    assert np.array_equal(clip_of(path).frames, np.frombuffer(data, np.uint8).reshape(-1, SIDE, SIDE, 3))


# Times


def repaired(stamps: list[Stamp], unit: Fraction = Fraction(1, 25)) -> tuple[list[float], float, set[str]]:
    timing, notes = timing_of(stamps, unit, 0, Fraction(25))
    return [round(float(time) * 25, 3) for time in timing.times], timing.fps, {note.kind for note in notes}


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([0, 1, 2, 2, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]),  # repeated
        ([0, 1, 2, 2, 2, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([0, 1, 2, 9_000_000, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]),  # ahead
        ([0, 1, 2, -900, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]),  # behind
        ([0, 1, 2, 3, 4, 5, 6, 7, 9_000_000], [0, 1, 2, 3, 4, 5, 6, 7, 8]),  # the last one
        ([-9_000_000, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]),  # the first one
        ([0, 1, None, 3, 4, 5, None], [0, 1, 2, 3, 4, 5, 6]),  # missing
        ([None, None, None, None], [0, 1, 2, 3]),
        ([0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]),  # two recordings
        ([50, 51, 52, 53, 52, 53, 54, 55], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([0, 1, 2, 3, 10**7, 10**7 + 1, 10**7 + 2, 10**7 + 3, 10**7 + 4], [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_bad_stamps_are_repaired_from_their_neighbours(stamps: list[Stamp], expected: list[int]) -> None:
    times, fps, notes = repaired(stamps)
    assert times == expected
    assert (fps, notes - {"rate"}) == (25.0, {"repaired-times"})


@pytest.mark.parametrize(
    "stamps", [[0, 1, 2, 3], [3600, 3601, 3602], [-5, -4, -3], [0, 1, 5, 6, 20, 21], [0, 25, 50, 500, 525]]
)
def test_sound_stamps_are_taken_as_they_are(stamps: list[Stamp]) -> None:
    times, _, notes = repaired(stamps)
    assert times == [stamp - stamps[0] for stamp in stamps if stamp is not None and stamps[0] is not None]
    assert "repaired-times" not in notes


def test_stamps_in_the_order_of_storage_are_put_in_order_without_a_note() -> None:
    assert repaired([1, 2, 4, 3, 5, 7, 6, 8]) == ([0, 1, 2, 3, 4, 5, 6, 7], 25.0, set())


def test_one_repeated_stamp_leaves_the_other_times_alone(tmp_path: Path) -> None:
    def repeat(packets: list[Any]) -> list[Any]:
        packets[5].pts = packets[5].dts = packets[4].pts
        return packets

    source = encode(tmp_path / "a.mkv", numbered(40), "mpeg4", bf="0")
    clip = clip_of(remux(source, tmp_path / "b.mkv", repeat))
    assert clip.times.tolist() == pytest.approx([index / 25 for index in range(40)])
    assert "repaired-times" in kinds(clip)


@pytest.mark.parametrize("begin", [0, 1, 500])
def test_two_recordings_one_behind_the_other_keep_their_order_and_rate(tmp_path: Path, begin: int) -> None:
    first = encode(tmp_path / "1.ts", numbered(50), "libx264").read_bytes()
    second = encode(tmp_path / "2.ts", numbered(50), "libx264", begin=begin).read_bytes()
    (tmp_path / "both.ts").write_bytes(first + second)
    for settings in ({}, {"fps": 25.0}):
        clip = clip_of(tmp_path / "both.ts", **settings)
        assert numbers(clip) == pytest.approx([*range(50), *range(50)], abs=1)
        assert clip.fps == 25.0


# Packets that are not frames


@pytest.mark.parametrize("name", ["a.ts", "a.mpg", "a.mkv"])
@pytest.mark.parametrize("limit", [None, 20])
def test_a_recording_that_begins_between_key_frames_passes_without_its_first_pictures(
    tmp_path: Path, name: str, limit: int | None
) -> None:
    source = encode(tmp_path / "whole.ts", numbered(80), "mpeg2video", g="20", bf="2", b="1M")
    path = remux(source, tmp_path / name, lambda packets: packets[9:])
    clip = clip_of(path, max_frames=limit)
    assert "undecodable-start" in kinds(clip)
    first = numbers(clip)[0]
    assert 9 <= first <= 30
    last_seconds = clip.times[-1] + 1 / 25
    assert len(clip.frames) == (limit or 59)  # as ffmpeg, which leaves out the first key frame of an open group
    assert last_seconds == pytest.approx(len(clip.frames) / 25)


def test_a_video_whose_beginning_is_gone_for_long_is_a_failure_of_its_own(tmp_path: Path) -> None:
    source = encode(tmp_path / "whole.ts", numbered(60), "mpeg2video", rate=1, g="30", bf="0")
    path = remux(source, tmp_path / "a.mkv", lambda packets: packets[5:])
    reason, message = failure_of(path)
    assert reason == "no-start"
    assert message.endswith("--on-truncated keep takes the frames that are there")
    assert numbers(clip_of(path, on_truncated="keep"))[0] == 30


@pytest.mark.parametrize(
    ("packet", "is_shown"),
    [
        (bytes([0b10000110, 0]), True),  # an inter frame with show_frame
        (bytes([0b10000100, 0]), False),  # without
        (bytes([0b10001000, 0]), True),  # show_existing_frame
        (bytes([0b10110010, 0]), False),  # profile 3 has one bit more
        (bytes([0b10110001, 0]), True),
        (bytes([0b10000100, 0, 0b10000110, 0, 0b11000001, 2, 2, 0b11000001]), True),  # a superframe
        (bytes([0b10000100, 0, 0b10000100, 0, 0b11000001, 2, 2, 0b11000001]), False),
    ],
)
def test_hidden_frames_of_vp9_are_told_by_their_headers(packet: bytes, is_shown: bool) -> None:
    assert any(map(hidden_frames._vp9_shows, hidden_frames._vp9_frames(packet))) == is_shown


@needs_ffmpeg
@pytest.mark.slow
def test_segments_and_hidden_packets_pass_with_ffmpegs_number_of_frames(tmp_path: Path) -> None:
    def ffmpeg(*arguments: object) -> None:
        subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, arguments)], check=True, cwd=tmp_path)

    source = ("-f", "lavfi", "-i", "testsrc2=s=64x64:r=25:d=6")
    ffmpeg(*source, "-c:v", "libx265", "-x265-params", "log-level=0:keyint=25:bframes=4:scenecut=0", "h.mp4")
    ffmpeg("-ss", 2.3, "-i", "h.mp4", "-c", "copy", "cut.mkv")
    ffmpeg("-i", "h.mp4", "-c", "copy", "-f", "hls", "-hls_time", 2, "-hls_segment_filename", "s%d.ts", "h.m3u8")
    for number in (1, 2):
        coding = ("-c:v", "libvpx-vp9", "-b:v", "150k", "-cpu-used", 2, "-lag-in-frames", 25, "-auto-alt-ref", 1)
        ffmpeg(
            "-f", "lavfi", "-i", "mandelbrot=s=64x64:r=25", "-t", 4, *coding, "-pass", number, "-f", "webm", "w.webm"
        )
    ffmpeg("-i", "w.webm", "-c", "copy", "-bsf:v", "vp9_superframe_split", "-fflags", "-autobsf", "alt.webm")
    for name in ("cut.mkv", "s0.ts", "s1.ts", "s2.ts", "alt.webm"):
        command = ["ffmpeg", "-v", "error", "-nostdin", "-i", name, "-fps_mode", "passthrough", "-f", "framemd5", "-"]
        lines = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True).stdout.splitlines()
        assert len(clip_of(tmp_path / name).frames) == sum(not line.startswith("#") for line in lines), name


# Files that name other files


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ffconcat version 1.0\nfile 'a.mp4'\n", "an ffconcat script"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\na.mp4\n#EXT-X-ENDLIST\n", "an HLS playlist"),
        ('<?xml version="1.0"?>\n<MPD><Period><BaseURL>a.mp4</BaseURL></Period></MPD>\n', "a DASH manifest"),
        ("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\n", "an SDP description"),
    ],
)
def test_text_that_names_other_files_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    encode(tmp_path / "a.mp4", numbered(5), "libx264")
    (tmp_path / "list.mp4").write_text(text)
    reason, message = failure_of(tmp_path / "list.mp4")
    assert reason == "unreadable"
    assert kind in message


def test_the_name_of_a_file_is_never_a_pattern_or_a_protocol(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", numbered(5), "libx264").rename(tmp_path / "clip%03d: a?.mp4")
    assert len(clip_of(tmp_path / "clip%03d: a?.mp4").frames) == 5


# What is unusual but accepted


def test_non_square_pixels_are_noted(tmp_path: Path) -> None:
    def anamorphic(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    clip = clip_of(encode(tmp_path / "a.mp4", numbered(5), "libx264", prepare=anamorphic))
    assert [(note.kind, note.text) for note in clip.notes] == [
        ("non-square-pixels", "pixels are 4/3 as wide as high and are taken as square")
    ]


@pytest.mark.parametrize(("transfer", "primaries", "name"), [(16, 9, "PQ"), (18, 9, "HLG"), (1, 9, "BT.2020")])
def test_hdr_is_noted(tmp_path: Path, transfer: int, primaries: int, name: str) -> None:
    def colours(stream: Any) -> None:
        stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, primaries

    clip = clip_of(encode(tmp_path / "a.mp4", numbered(5), "libx264", prepare=colours))
    assert clip.notes[0].text == f"{name} colours are stored without tone mapping"


def test_frames_that_change_size_are_scaled_to_the_first_and_noted(tmp_path: Path) -> None:
    first = encode(tmp_path / "1.ts", numbered(20), "libx264").read_bytes()
    larger = numbered(20).repeat(2, axis=1).repeat(2, axis=2)
    second = encode(tmp_path / "2.ts", larger, "libx264", begin=20).read_bytes()
    (tmp_path / "both.ts").write_bytes(first + second)
    clip = clip_of(tmp_path / "both.ts")
    assert clip.frames.shape == (40, SIDE, SIDE, 3)
    assert "size-change" in kinds(clip)


def test_a_range_that_ends_after_the_video_is_noted(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered(25), "libx264")
    assert kinds(clip_of(path, 0.0, 1.0)) == set()
    clip = clip_of(path, 0.0, 10.0)
    assert [(note.kind, note.text) for note in clip.notes] == [
        ("short-range", "the range ends at 10 s, the video at 1.00 s")
    ]


def test_a_file_cut_short_names_the_remedy_and_notes_that_it_was_kept(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", noise(40), "libx264")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reason, message = failure_of(path)
    assert reason == "truncated"
    assert message.endswith("; --on-truncated keep takes the frames that are there")
    assert "truncated" in kinds(clip_of(path, on_truncated="keep"))


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize(
    ("name", "codec", "movflags"),
    [
        ("a.mkv", "libx264", ""),
        ("a.webm", "libvpx", ""),
        ("a.mp4", "libx264", "faststart"),
        ("a.mp4", "libx264", "frag_keyframe+empty_moov"),
        ("a.mp4", "libx264", "frag_every_frame+empty_moov"),
        ("a.avi", "mpeg4", ""),
        ("a.ts", "libx264", ""),
        ("a.gif", "gif", ""),
    ],
)
def test_the_last_frames_are_missed_wherever_a_file_is_cut(
    tmp_path: Path, name: str, codec: str, movflags: str, share: float
) -> None:
    pixels = "rgb8" if codec == "gif" else "yuv420p"
    path = encode(tmp_path / name, noise(100), codec, pixels=pixels, movflags=movflags, g="10")
    whole = clip_of(path)
    assert (len(whole.frames), kinds(whole)) == (100, set())
    data = path.read_bytes()
    end = int(len(data) * share) // 188 * 188 - 1  # inside a packet of MPEG-TS
    if movflags.startswith("frag"):
        end = data.rindex(b"mdat", 0, end) + 60  # FFmpeg opens no file that ends inside the header of a fragment
    path.write_bytes(data[:end])
    assert failure_of(path)[0] == "truncated"


@pytest.mark.parametrize(("first", "num_frames"), [(0, 25), (25, 25), (30, 50), (80, 20)])
def test_an_mp4_that_was_trimmed_by_its_edit_list_is_whole(tmp_path: Path, first: int, num_frames: int) -> None:
    path = encode(tmp_path / "a.mp4", numbered(100), "libx264", bf="0", g="10", crf="10")
    data = bytearray(path.read_bytes())
    ticks = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0] // 25
    # One edit: its length in milliseconds, and where it begins in the units of the stream.
    struct.pack_into(">Ii", data, data.index(b"elst") + 12, num_frames * 40, first * ticks)
    path.write_bytes(data)
    clip = clip_of(path)
    assert numbers(clip) == pytest.approx(list(range(first, first + num_frames)), abs=1)
    assert (clip.fps, kinds(clip)) == (25.0, set())


def test_frames_that_an_avi_header_counts_and_that_are_gone_are_noted(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", noise(75), "huffyuv", pixels="yuv422p")
    data = bytearray(path.read_bytes())
    first, last = len(data) * 44 // 100, len(data) * 48 // 100
    data[first:last] = bytes(last - first)
    path.write_bytes(data)
    assert "gaps" in kinds(clip_of(path))


@needs_ffmpeg
def test_theora_is_whole_with_empty_packets_and_not_with_lost_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    make = ["ffmpeg", "-v", "error", "-nostdin", "-f", "lavfi", "-i", f"testsrc2=s={SIDE}x{SIDE}:r=25:d=4"]
    subprocess.run([*make, "-c:v", "libtheora", "-q:v", "6", str(path)], check=True)
    whole = path.read_bytes()
    read = ["ffmpeg", "-v", "error", "-i", str(path), "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "gray"]
    num_pixels = len(subprocess.run([*read, "-"], check=True, capture_output=True).stdout)
    clip = clip_of(path)  # most frames repeat the one before: their packets are empty
    assert len(clip.frames) * SIDE**2 == num_pixels < 60 * SIDE**2
    assert "holes" not in kinds(clip)
    path.write_bytes(whole[: len(whole) * 97 // 100])
    assert failure_of(path)[0] == "truncated"
    subprocess.run([*make, "-y", "-vf", "noise=alls=80:allf=t", "-c:v", "libtheora", "-g", "10", str(path)], check=True)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert failure_of(path)[0] == "incomplete"


@needs_ffmpeg
def test_ten_bit_pictures_in_4_2_2_have_the_colours_that_ffmpeg_gives(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    make = ["ffmpeg", "-v", "error", "-nostdin", "-f", "lavfi", "-i", f"testsrc2=s={SIDE}x{SIDE}:r=25:d=0.4"]
    subprocess.run([*make, "-c:v", "libx264", "-pix_fmt", "yuv422p10le", str(path)], check=True)
    read = ["ffmpeg", "-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    raw = subprocess.run([*read, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True).stdout
    expected = np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE, 3).astype(int)
    assert np.abs(clip_of(path).frames - expected).mean() < 0.5


def test_damage_that_a_decoder_reports_without_marking_pictures_is_noted(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", noise(20), "ffv1", level="3", slicecrc="1")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert kinds(clip_of(path)) == {"decoder-errors"}


def test_a_few_stamps_that_nearly_repeat_leave_the_rate_alone() -> None:
    stamps = [*(640 * index for index in range(70)), *(640 * 69 + index for index in range(1, 6))]
    timing, _ = timing_of(stamps, Fraction(1, 16000), 640, Fraction(25))
    assert timing.fps == 25.0


def test_a_file_is_looked_into_without_holding_a_closed_container(tmp_path: Path) -> None:
    facts = inspect_video(str(encode(tmp_path / "a.mp4", numbered(5), "libx264")))
    assert (facts.codec, facts.num_frames, facts.height, facts.width) == ("h264", 5, SIDE, SIDE)


def test_a_pyav_that_takes_no_metadata_errors_opens_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4", numbered(5), "libx264")
    opened = av.open

    def of_version_19(file: str, *, container_options: dict[str, str]) -> Any:
        return opened(file, container_options=container_options)

    monkeypatch.setattr(av, "__version__", "19.0.0")
    monkeypatch.setattr(av, "open", of_version_19)
    assert inspect_video(str(path)).num_frames == 5

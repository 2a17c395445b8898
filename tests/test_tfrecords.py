"""Record files without TensorFlow: framing, checksums, tf.train.Example, and one trajectory of BAIR."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.video.episodes.bair import parse_trajectory
from lvt_pipeline.video.episodes.tfrecords import index_records, masked_crc, parse_example, read_record
from tests.record_files import crc32c, example, feature, flip, masked, message, solid, trajectory, write_records

PAYLOADS = [b"first", b"", b"the third record", bytes(range(256))]
STARTS = [0, 21, 37, 69]  # 12 bytes of header and 4 of checksum around each payload
BAIR = Path(__file__).parents[2] / "shared" / "bair"


def read_all(path: Path) -> list[bytes]:
    index = index_records(str(path))
    return [read_record(str(path), number, index) for number in range(len(index.places))]


@given(st.binary(max_size=300))
def test_checksums_equal_the_bitwise_definition(data: bytes) -> None:
    assert masked_crc(data) == masked(crc32c(data))


def test_the_check_value_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.tfrecords", PAYLOADS)
    index = index_records(str(path))
    assert [place.offset - 12 for place in index.places] == STARTS
    assert index.problem is None
    assert index.end == path.stat().st_size
    assert read_all(path) == PAYLOADS


def test_an_empty_file_has_no_record(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.tfrecords", [])
    assert (index_records(str(path)).places, index_records(str(path)).problem) == ([], None)


@pytest.mark.parametrize("position", range(0, 69 + 12 + 256 + 4, 3))
def test_a_flipped_byte_is_a_failure_that_names_file_and_record(tmp_path: Path, position: int) -> None:
    path = write_records(tmp_path / "a.tfrecords", PAYLOADS)
    flip(path, position)
    record = max(number for number, start in enumerate(STARTS) if start <= position)
    index = index_records(str(path))
    for number in range(record):
        assert read_record(str(path), number, index) == PAYLOADS[number]
    with pytest.raises(DecodeError, match=rf"a\.tfrecords: record {record} is damaged: the CRC-32C") as caught:
        read_record(str(path), record, index)
    assert caught.value.reason == "damaged"
    if position >= STARTS[record] + 12:  # what follows is found as long as the length is good
        assert len(index.places) == len(PAYLOADS)


@pytest.mark.parametrize("size", [*range(1, 69 + 12 + 256 + 4, 7)])
def test_a_file_cut_short_names_the_record_it_ends_in(tmp_path: Path, size: int) -> None:
    path = write_records(tmp_path / "a.tfrecords", PAYLOADS)
    path.write_bytes(path.read_bytes()[:size])
    index = index_records(str(path))
    record = len([start for start in STARTS if start <= size]) - 1
    if size in STARTS:
        assert (len(index.places), index.problem) == (record, None)
        return
    assert len(index.places) == record
    assert index.end == STARTS[record]
    with pytest.raises(DecodeError, match=rf"a\.tfrecords: record {record} is cut short") as caught:
        read_record(str(path), record, index)
    assert caught.value.reason == "truncated"


def test_a_record_that_does_not_exist_is_missing(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.tfrecords", PAYLOADS)
    with pytest.raises(DecodeError, match=r"holds 4 records, none is number 7"):
        read_record(str(path), 7, index_records(str(path)))


@pytest.mark.parametrize("is_packed", [True, False])
def test_features_of_all_types_are_read(is_packed: bool) -> None:
    features = parse_example(
        example(
            {
                "text/ü": feature(b"\x00\xff"),
                "floats": feature([0.5, -2.0, 3.25], is_packed=is_packed),
                "integers": feature([1, 300, -1, 2**62], is_packed=is_packed),
                "nothing": b"",
            }
        )
        + message(9, b"a field of a later version")
    )
    assert features["text/ü"] == [b"\x00\xff"]
    assert isinstance(features["floats"], np.ndarray)
    assert features["floats"].dtype == np.float32
    assert features["floats"].tolist() == [0.5, -2.0, 3.25]
    assert isinstance(features["integers"], np.ndarray)
    assert features["integers"].tolist() == [1, 300, -1, 2**62]
    assert features["nothing"] == []


@given(st.binary(max_size=60))
def test_bytes_that_are_no_example_are_read_or_refused_with_one_error(data: bytes) -> None:
    with suppress(ValueError):
        parse_example(data)


def test_a_trajectory_has_both_cameras_actions_and_positions() -> None:
    payload = trajectory(7, steps=5)
    for number, camera in enumerate(("image_aux1", "image_main")):
        read = parse_trajectory(payload, camera, "a: record 0")
        assert np.array_equal(read.frames, solid(7, range(5), number))
        assert read.arrays["action"].tolist() == [[7 + step / 8, 0.5, 0.25, -1.0] for step in range(5)]
        assert read.arrays["endeffector_pos"].tolist() == [[step / 4, 7.0, 2.5] for step in range(5)]


@pytest.mark.parametrize(
    ("payload", "reason", "message"),
    [
        (b"\xff\xff", "unreadable", "a: record 3 is not a tf.train.Example"),
        (example({"image": feature(b"x")}), "unreadable", "holds no camera 'image_aux1', only other data"),
        (example({"0/image_main/encoded": feature(b"x")}), "unreadable", "only image_main"),
        (example({"0/image_aux1/encoded": feature(b"x")}), "damaged", "has 1 bytes, raw 64x64 RGB has 12,288"),
        (trajectory(1, 4, ["2/image_aux1/encoded"]), "damaged", "2/image_aux1/encoded has 0 bytes"),
        (trajectory(1, 4, ["2/action"]), "damaged", "action has not the same number of values in all 4 steps"),
    ],
)
def test_what_is_wrong_with_a_trajectory_is_said(payload: bytes, reason: str, message: str) -> None:
    with pytest.raises(DecodeError, match=message) as caught:
        parse_trajectory(payload, "image_aux1", "a: record 3")
    assert caught.value.reason == reason


def test_a_trajectory_without_actions_is_frames_alone() -> None:
    names = [f"{step}/{name}" for step in range(3) for name in ("action", "endeffector_pos")]
    assert parse_trajectory(trajectory(1, 3, names), "image_aux1", "").arrays == {}


@pytest.mark.skipif(not BAIR.is_dir(), reason="the clips are not there")
def test_real_trajectories_have_30_frames_of_two_cameras_that_mirror_each_other() -> None:
    files = sorted(BAIR.rglob("*.tfrecords"))
    payloads = [payload for path in files for payload in read_all(path)]
    assert len(payloads) == 5
    for payload in payloads:
        aux1, main = (parse_trajectory(payload, camera, "") for camera in ("image_aux1", "image_main"))
        assert aux1.frames.shape == (30, 64, 64, 3)
        assert np.array_equal(aux1.frames[:, :, ::-1], main.frames)
        assert aux1.frames.std() > 10
        assert {name: rows.shape for name, rows in aux1.arrays.items()} == {
            "action": (30, 4),
            "endeffector_pos": (30, 3),
        }

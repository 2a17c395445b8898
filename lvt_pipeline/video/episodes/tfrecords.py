"""TensorFlow's record files without TensorFlow: the framing, its checksums, and `tf.train.Example`.

A file is records one after another, each: length (u64, little-endian), masked CRC-32C of these 8 bytes (u32), the
payload, masked CRC-32C of the payload (u32). A payload is a `tf.train.Example` in protobuf's wire format: a map from
names to lists of bytes, floats or integers. https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import DecodeError
from lvt_pipeline.storage import open_regular

Feature = list[bytes] | NDArray[np.float32] | NDArray[np.int64]

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8
_COMPRESSED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")  # gzip; zlib at its four levels
# Wire types of protobuf.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Field numbers of tf.train.Feature.
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


@dataclass(frozen=True)
class RecordPlace:
    """Where a record's payload is in its file, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True)
class RecordIndex:
    """The records of a file.

    Attributes:
        places: every record up to the first that cannot be delimited.
        end: where the last of them ends, in bytes.
        problem: why nothing after `end` can be found; None when the file ends there.
        compressed: whether the file is compressed as a whole, so that no record can be found.
    """

    places: list[RecordPlace]
    end: int
    problem: DecodeError | None
    compressed: bool = False


def masked_crc(data: bytes) -> int:
    """CRC-32C of some bytes, rotated and shifted so that a checksum of data with checksums inside stays good."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def index_records(path: str) -> RecordIndex:
    """Find the records of a file from their headers; payloads are not read.

    Raises:
        OSError: the file cannot be read.
    """
    places: list[RecordPlace] = []
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        end = 0
        while end < size:
            stream.seek(end)
            header = stream.read(_HEADER.size)
            problem = None
            if len(header) < _HEADER.size:
                problem = _cut_short(path, len(places), f"ends {_HEADER.size - len(header)} bytes into its header")
            else:
                length, checksum = _HEADER.unpack(header)
                missing = end + _HEADER.size + length + _CHECKSUM.size - size
                if masked_crc(header[:8]) != checksum:
                    if end == 0 and header.startswith(_COMPRESSED):
                        remedy = "is a compressed record file; decompress it with `gzip -d`"
                        return RecordIndex([], 0, DecodeError("unreadable", f"{path} {remedy}"), compressed=True)
                    problem = _wrong_checksum(path, len(places), "length")
                elif missing > 0:
                    problem = _cut_short(path, len(places), f"misses its last {missing:,} bytes")
            if problem is not None:
                return RecordIndex(places, end, problem)
            places.append(RecordPlace(end + _HEADER.size, length))
            end += _HEADER.size + length + _CHECKSUM.size
    return RecordIndex(places, end, None)


def read_record(path: str, record: int, index: RecordIndex) -> bytes:
    """The payload of one record, its checksum verified.

    Args:
        record: which, counted from 0.
        index: result of `index_records` for the file.

    Raises:
        DecodeError: "damaged", "truncated", or "missing" when the file has fewer records.
    """
    if record >= len(index.places):
        if index.problem is not None:
            raise index.problem
        raise DecodeError("missing", f"{path} holds {len(index.places)} records, none is number {record}")
    place = index.places[record]
    with open(path, "rb") as stream:
        stream.seek(place.offset)
        payload = stream.read(place.length)
        (checksum,) = _CHECKSUM.unpack(stream.read(_CHECKSUM.size))
    if masked_crc(payload) != checksum:
        raise _wrong_checksum(path, record, "content")
    return payload


def _wrong_checksum(path: str, record: int, what: str) -> DecodeError:
    return DecodeError("damaged", f"{path}: record {record} is damaged: the CRC-32C of its {what} does not match")


def _cut_short(path: str, record: int, how: str) -> DecodeError:
    return DecodeError("truncated", f"{path}: record {record} is cut short: it {how}")


# tf.train.Example --------------------------------------------------------------------------------------------------


def parse_example(payload: bytes) -> dict[str, Feature]:
    """The features of a serialised `tf.train.Example` by name.

    Raises:
        ValueError: the bytes are not such a message.
    """
    features: dict[str, Feature] = {}
    for number, value in _fields(memoryview(payload)):
        if number == 1:  # Example.features
            for inner, entry in _fields(_as_bytes(value)):
                if inner == 1:  # Features.feature, a map: one message of key and value per entry
                    name, feature = _parse_entry(_as_bytes(entry))
                    features[name] = feature
    return features


def _parse_entry(entry: memoryview) -> tuple[str, Feature]:
    name, feature = "", memoryview(b"")
    for number, value in _fields(entry):
        if number == 1:
            name = bytes(_as_bytes(value)).decode()
        elif number == 2:
            feature = _as_bytes(value)
    return name, _parse_feature(feature)


def _parse_feature(feature: memoryview) -> Feature:
    found: Feature = []
    for kind, message in _fields(feature):
        values = [value for number, value in _fields(_as_bytes(message)) if number == 1]
        if kind == _BYTES_LIST:
            found = [bytes(_as_bytes(value)) for value in values]
        elif kind == _FLOAT_LIST:  # packed into one field, or one field each
            found = np.frombuffer(b"".join(_as_bytes(value) for value in values), "<f4").astype(np.float32)
        elif kind == _INT64_LIST:
            found = np.array([number for value in values for number in _integers(value)], np.uint64).astype(np.int64)
    return found


def _integers(value: memoryview | int) -> list[int]:
    if isinstance(value, int):
        return [value]
    numbers, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        numbers.append(number)
    return numbers


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, value) in order: an int for varints, the raw bytes for everything else."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(message, position)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type} does not exist")
        if position + length > len(message):
            raise ValueError("a field is longer than its message")
        yield number, message[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number in groups of 7 bits, lowest first, and the position after it."""
    number = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
    raise ValueError("a number does not end")


def _as_bytes(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message or bytes belong")
    return value

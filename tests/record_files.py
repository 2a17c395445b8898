"""Writes tfrecord files in the obvious, slow way, so that the reader is compared with something it does not share."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

CAMERAS = ("image_aux1", "image_main")


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit (Castagnoli, reflected polynomial 0x82F63B78)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def write_records(path: Path, payloads: Sequence[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            stream.write(length + struct.pack("<I", masked(crc32c(length))))
            stream.write(payload + struct.pack("<I", masked(crc32c(payload))))
    return path


def varint(number: int) -> bytes:
    number %= 2**64
    groups = []
    while True:
        groups.append(number & 0x7F | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(groups)


def message(number: int, content: bytes) -> bytes:
    """A field that holds bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(value: bytes | Sequence[float] | Sequence[int], *, is_packed: bool = True) -> bytes:
    if isinstance(value, bytes):
        return message(1, message(1, value))
    if all(isinstance(item, int) for item in value):
        numbers = [varint(int(item)) for item in value]
        inner = message(1, b"".join(numbers)) if is_packed else b"".join(varint(1 << 3) + item for item in numbers)
        return message(3, inner)
    floats = [struct.pack("<f", item) for item in value]
    inner = message(1, b"".join(floats)) if is_packed else b"".join(varint(1 << 3 | 5) + item for item in floats)
    return message(2, inner)


def example(features: Mapping[str, bytes]) -> bytes:
    entries = [message(1, message(1, name.encode()) + message(2, content)) for name, content in features.items()]
    return message(1, b"".join(entries))


def trajectory(seed: int, steps: int = 5, leave_out: Sequence[str] = ()) -> bytes:
    """A record as BAIR has it. Frame i of image_aux1 is all (seed, i, 0), of image_main all (seed, i, 1)."""
    features = {}
    for step in range(steps):
        for number, camera in enumerate(CAMERAS):
            features[f"{step}/{camera}/encoded"] = feature(bytes([seed, step, number]) * 64 * 64)
        features[f"{step}/action"] = feature([seed + step / 8, 0.5, 0.25, -1.0])
        features[f"{step}/endeffector_pos"] = feature([step / 4, float(seed), 2.5])
    return example({name: content for name, content in features.items() if name not in leave_out})


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def solid(seed: int, steps: Sequence[int], camera: int = 0) -> np.ndarray:
    """The frames of `trajectory`, uint8 (T, 64, 64, 3)."""
    return np.stack([np.full((64, 64, 3), (seed, step, camera), np.uint8) for step in steps])

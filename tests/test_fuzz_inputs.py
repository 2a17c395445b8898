"""Whatever is in a file that `manifest build` or `ingest` reads: a right result, or one line that names the file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvt_pipeline.errors import LVTError
from lvt_pipeline.frames.records import FrameSample
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.frames.verify import verify_frames
from lvt_pipeline.frames.writer import write_frames
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import IngestSettings
from lvt_pipeline.manifest.manifest import build_manifest, read_manifest
from lvt_pipeline.provenance import DigestMemo, digest_file
from lvt_pipeline.video.read import read_clip
from lvt_pipeline.video.settings import GeometrySettings
from tests.record_files import example, feature, write_records

# What has been in the way of readers: deep nesting, huge numbers, halves of characters, other line ends, other types.
TOKENS = [
    b"[" * 5000,
    b"9" * 6000,
    b"1e999",
    b"NaN",
    b"-1",
    b'"\\ud800"',
    "\u2028\u0085".encode(),
    b"\r",
    b"\n",
    b"\0",
    b"\xff",
    b'"',
    b",",
    b";",
    b"{}",
    b"[]",
    b"null",
    b"true",
    b"../../x",
    b"",
]
EDITS = st.lists(
    st.tuples(st.integers(0, 2**16), st.integers(0, 40), st.one_of(st.sampled_from(TOKENS), st.binary(max_size=8))),
    min_size=1,
    max_size=4,
)
Edits = list[tuple[int, int, bytes]]


def edited(data: bytes, edits: Edits) -> bytes:
    """The bytes with some of them replaced; each edit is (place, how many go, what comes)."""
    for place, gone, come in edits:
        at = place % (len(data) + 1)
        data = data[:at] + come + data[at + gone :]
    return data


def with_file(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        return root / name

    return make


def listing(of: str = "") -> Callable[[Path, Path], Any]:
    return lambda root, file: build_manifest(root / of if of else file, root / "out.jsonl")


MANIFEST = b"".join(
    json.dumps(
        {"id": f"a{n}", "source": "a.mp4", "split": "val", "digest": "0" * 64, "start": 0.5, "end": n + 1}
    ).encode()
    + b"\n"
    for n in range(3)
)
KINETICS = b"label,youtube_id,time_start,time_end,split\nrun,abc,1,11,train\nwalk,def,2,12,val\n"


def pictures(root: Path) -> Path:
    from PIL import Image

    (root / "v" / "clip").mkdir(parents=True)
    for number, ending in enumerate(("png", "webp", "tiff", "jpg", "bmp")):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / "v" / "clip" / f"{number}.{ending}")
    return root / "v" / "clip" / "0.png"


def read_pictures(root: Path, file: Path) -> Any:
    build_manifest(root / "v", root / "out.jsonl")
    return [read_clip(clip, GeometrySettings(), root) for clip in read_manifest(root / "out.jsonl")]


def records(root: Path) -> Path:
    steps = {f"{n}/image_aux1/encoded": feature(bytes(64 * 64 * 3)) for n in range(2)}
    return write_records(root / "r.tfrecords", [example(steps)])


def read_records(root: Path, file: Path) -> Any:
    build_manifest(file, root / "out.jsonl")
    return [read_clip(clip, GeometrySettings(), root) for clip in read_manifest(root / "out.jsonl")]


def frames(file: str, codec: Any = "raw") -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        pixels = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
        samples = [FrameSample.from_array(f"c{n}", pixels + n, codec=codec) for n in range(2)]
        write_frames(root / "frames", samples, stage="test", settings={}, inputs={})
        return root / "frames" / file

    return make


def read_frames(root: Path, file: Path) -> Any:
    verify_frames(root / "frames")
    shards = FrameShards(root / "frames")
    return [shards.read(clip) for clip in shards.clips]


def ingest_again(root: Path, file: Path) -> Any:
    (root / "a.mp4").write_bytes(b"not a video")
    return ingest(file, root / "out", IngestSettings(), num_workers=0, max_failures=1.0)


def memo(root: Path) -> Path:
    (root / "x").write_bytes(b"content")
    made = DigestMemo(root / "memo")
    made.digest(root / "x")
    made.close()
    return root / "memo"


def read_memo(root: Path, file: Path) -> Any:
    found = DigestMemo(file)
    assert found.digest(root / "x") == digest_file(root / "x")
    found.recall("new", (1, 2, 3), lambda: "x")
    found.close()


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path, Path], Any]]] = {
    "manifest": (with_file("m.jsonl", MANIFEST), lambda root, file: read_manifest(file)),
    "manifest that ingest reads": (with_file("m.jsonl", MANIFEST), ingest_again),
    "earlier manifest": (with_file("out.jsonl", MANIFEST), lambda root, file: build_manifest(table(root), file)),
    "JSON Lines table": (with_file("t.jsonl", b'{"path": "a.mp4", "label": "x"}\n{"path": "b.mp4"}\n'), listing()),
    "CSV table": (with_file("t.csv", b"path,label,start,end\na.mp4,x,1,2\nb.mp4,y,,\n"), listing()),
    "Kinetics CSV": (with_file("k/k.csv", KINETICS), listing("k")),
    "UCF101 lists": (with_file("u/trainlist01.txt", b"A/a.avi 1\nB/b.avi 2\n"), listing("u")),
    "pictures": (pictures, read_pictures),
    "records": (records, read_records),
    "receipt": (frames("train-000000.json"), read_frames),
    "record": (frames("provenance.json"), read_frames),
    "raw shard": (frames("train-000000.tar"), read_frames),
    "png shard": (frames("train-000000.tar", "png"), read_frames),
    "memo of digests": (memo, read_memo),
}


def table(root: Path) -> Path:
    (root / "t.csv").write_text("path\na.mp4\n")
    return root / "t.csv"


def check(kind: str, edits: Edits) -> None:
    make, read = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        file = make(root)
        file.write_bytes(edited(file.read_bytes(), edits))
        message = refusal(lambda: read(root, file))
        if message is not None:
            assert "\n" not in message
            assert folder in message or "clips could be decoded" in message
            assert len(message) < 20_000


def refusal(action: Callable[[], Any]) -> str | None:
    """The message of the expected error, if there is one."""
    try:
        action()
    except LVTError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(edits=EDITS)
def test_any_content_is_read_or_refused_in_one_line(kind: str, edits: Edits) -> None:
    check(kind, edits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(edits=EDITS)
def test_any_content_is_read_or_refused_in_one_line_many_times(kind: str, edits: Edits) -> None:
    check(kind, edits)


@pytest.mark.parametrize("value", [None, True, 3, -1, 10**30, 0.5, "x", "", [], {}, [[1]], {"a": None}])
@pytest.mark.parametrize("name", ["id", "source", "split", "label", "start", "end", "kind", "record", "fps", "digest"])
def test_a_manifest_field_of_any_type_is_used_or_refused(tmp_path: Path, name: str, value: Any) -> None:
    entry = {"id": "a", "source": "a.mp4", "digest": "0" * 64, name: value}
    (tmp_path / "m.jsonl").write_text(json.dumps(entry) + "\n")
    message = refusal(lambda: read_manifest(tmp_path / "m.jsonl"))
    if message is None:
        assert all(clip.fingerprint for clip in read_manifest(tmp_path / "m.jsonl"))
    else:
        assert "m.jsonl" in message
        assert "\n" not in message

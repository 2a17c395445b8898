"""Generations: every reader can look at an older one, and what reads while an encode writes sees one of them whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.codes.upkeep.compaction import compact_store
from lvt_pipeline.codes.upkeep.maintenance import collect_garbage
from lvt_pipeline.errors import ChangedRunError, StoreError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.encode import encode_dataset
from lvt_pipeline.jobs.settings import EncodeSettings
from lvt_pipeline.runs.read import read_run
from lvt_pipeline.storage import read_json
from tests.toy_codes import FIVE, codes_of, files_of, planned, write
from tests.toy_work import ToyWork, make_codes, make_frames, make_prior, make_tokenizer

Lvt = Callable[..., tuple[int, str, str]]
ROOT = str(Path(__file__).parents[1])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    """Generation 1 has longer clips of "test/0" than generation 2; the frames are those of generation 2."""
    work = ToyWork(tmp_path_factory.mktemp("toy"))
    tokenizer = make_tokenizer(work.vqvae)
    make_codes(work.codes, make_frames(work.root / "older", {"test/0": 11}), tokenizer)
    make_codes(work.codes, make_frames(work.frames), tokenizer)
    make_prior(work.prior)
    return work


# --at -----------------------------------------------------------------------------------------------------------------


def test_sample_decode_and_evaluate_read_the_generation_they_are_told(work: ToyWork, tmp_path: Path, lvt: Lvt) -> None:
    old, new = open_codes(work.codes, 1), open_codes(work.codes)
    assert (len(old["test/0"]), len(new["test/0"])) == (11, 8)
    for at, expected in ((["--at", 1], old), ([], new)):
        out = tmp_path / str(bool(at))
        arguments = ["--frames", 6, "--num-clips", 1, "--priming-frames", 3, "--device", "cpu", *at]
        assert lvt("sample", "--prior", work.prior, "--codes", work.codes, "-o", out / "s.zarr", *arguments)[0] == 0
        assert open_codes(out / "s.zarr").provenance.inputs["codes"] == expected.fingerprint
        arguments = ["--format", "npy", "--clip", "test/0", "--device", "cpu", *at]
        assert lvt("decode", "--codes", work.codes, "--vqvae", work.vqvae, "-o", out / "v", *arguments)[0] == 0
        assert len(np.load(out / "v" / "test" / "0.npy")) == expected.clip("test/0").length
        arguments = ["--num-frames", 6, "--device", "cpu", *at]
        assert lvt("evaluate", "--codes", work.codes, "-o", out / "eval.json", *arguments)[0] == 0
        record = read_json(out / "eval.json.provenance.json")
        assert record["inputs"]["codes"] == expected.fingerprint


def test_training_pins_a_generation_and_records_it(work: ToyWork, tmp_path: Path, lvt: Lvt) -> None:
    tiny = [
        "model={frames=4, subscale=[4, 1, 1], kernel=[3, 1, 1], width=8, head_width=4, num_heads=2, embedding_width=4,"
        " encoder_layers=1, decoder_layers=1}",
        "training={max_steps=2, batch_size=2, log_every=1, eval_every=2, picture_every=2, checkpoint_every=1}",
    ]
    command = ["train-prior", "--codes", work.codes, "--device", "cpu", *(part for s in tiny for part in ("--set", s))]
    assert lvt(*command, "-o", tmp_path / "old", "--at", 1)[0] == 0
    assert lvt(*command, "-o", tmp_path / "new")[0] == 0
    for name, generation in (("old", 1), ("new", 2)):
        store, run = open_codes(work.codes, generation), read_run(tmp_path / name)
        assert run["inputs"] == {"codes": store.fingerprint}
        assert run["facts"]["generation"] == generation
        assert read_json(tmp_path / name / "provenance.json")["counts"]["generation"] == generation
    code, _, err = lvt(*command, "-o", tmp_path / "new", "--at", 1)
    assert (code, ChangedRunError.exit_code) == (1, 1)
    assert "was started on codes" in err
    longer = [*command, "-o", tmp_path / "old", "--max-steps", 3]
    code, _, err = lvt(*longer)  # finished, and the store has another current generation
    assert code == 1
    assert lvt(*longer, "--at", 1)[0] == 0


def test_inspect_lists_generations_and_tells_about_one(work: ToyWork, lvt: Lvt) -> None:
    code, out, _ = lvt("inspect", work.codes, "--json")
    facts = json.loads(out)["contents"]
    assert code == 0
    assert [(info["generation"], info["clips"], info["frames"]) for info in facts["history"]] == [
        (1, 8, 67),
        (2, 8, 64),
    ]
    assert facts["history"][1]["fingerprint"] == open_codes(work.codes).fingerprint
    code, out, _ = lvt("inspect", work.codes, "--at", 1)
    assert "frames         67" in out
    assert "generation 2   8 clips, 64 frames" in out
    for command in (
        ["inspect", work.codes],
        ["verify", work.codes],
        ["why", work.codes, "test/0", "--frames", work.frames],
    ):
        assert lvt(*command, "--at", 1)[0] == 0
        code, _, err = lvt(*command, "--at", 3)
        assert (code, err) == (1, f"lvt: {work.codes} has no generation 3; it has 1 and 2\n")
    code, _, err = lvt("inspect", work.vqvae, "--at", 1)
    assert (code, "is not a code store" in err) == (1, True)


def test_a_reencoded_store_keeps_the_old_codes_until_they_are_collected(work: ToyWork, tmp_path: Path) -> None:
    frames, path = FrameShards(work.frames), tmp_path / "s.zarr"
    settings = EncodeSettings(batch_size=8)
    encode_dataset(work.frames, work.vqvae, path, settings, device="cpu")
    before = {clip: open_codes(path)[clip] for clip in open_codes(path)}
    other = make_tokenizer(tmp_path / "other", seed=5)
    encode_dataset(work.frames, tmp_path / "other", path, settings, device="cpu", reencode=True)
    old, new = open_codes(path, 1), open_codes(path)
    assert old.tokenizer != new.tokenizer
    for clip in frames.clips:
        assert np.array_equal(old[clip.id], before[clip.id])
        assert np.array_equal(new[clip.id], other.encode(frames.read(clip)).numpy())
    assert compact_store(path).shards == ()
    del old
    collect_garbage(path)
    with pytest.raises(StoreError, match="lvt gc has removed it"):
        open_codes(path, 1)
    assert np.array_equal(open_codes(path)["val/0"], new["val/0"])


# Several processes ----------------------------------------------------------------------------------------------------

WRITER = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from lvt_pipeline.codes.writer import CodeStoreWriter
    from tests.toy_codes import FIVE, planned, write
    path = Path({path!r})
    real = CodeStoreWriter.write_shard
    def slowly(self, index, codes):
        real(self, index, codes)
        print("shard", flush=True)
        time.sleep({seconds})
    CodeStoreWriter.write_shard = slowly
    for number in range({generations}):
        write(path, [*FIVE, *(planned(f"new{{n}}", 100) for n in range(number + 1))])
"""


def start_writer(path: Path, seconds: float, generations: int) -> subprocess.Popen[str]:
    script = textwrap.dedent(WRITER).format(root=ROOT, path=str(path), seconds=seconds, generations=generations)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_second_encode_ends_with_one_line_until_the_first_is_dead(work: ToyWork, tmp_path: Path) -> None:
    path = tmp_path / "data.zarr"
    command = [sys.executable, "-c", "from lvt_pipeline.cli import main; main()"]
    command += ["encode-dataset", "--frames", str(work.frames), "--vqvae", str(work.vqvae), "-o", str(path)]
    command += ["--device", "cpu", "--overwrite"]
    first = start_writer(path, 60, 1)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "shard\n"
        second = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert second.returncode == 1
        assert second.stderr == (
            f"lvt: another process is writing {path}; wait for it to finish, or stop it and run this again\n"
        )
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    third = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)  # no lock is left behind
    assert third.returncode == 0, third.stderr
    assert set(open_codes(path)) == set(open_codes(work.codes))


def test_readers_during_an_encode_see_one_whole_generation(tmp_path: Path) -> None:
    path = tmp_path / "data.zarr"
    write(path, FIVE)
    pinned = open_codes(path)
    writer = start_writer(path, 0.0, 6)
    seen = []
    while writer.poll() is None or not seen:
        store = open_codes(path)
        expected = [*FIVE, *(planned(f"new{n}", 100) for n in range(store.generation - 1))]
        assert list(store) == [clip.id for clip in expected]
        for clip in (*expected[-2:], expected[0]):
            assert np.array_equal(store[clip.id], codes_of(clip))
        assert np.array_equal(pinned["b/c"], codes_of(FIVE[1]))
        assert list(pinned) == [clip.id for clip in FIVE]
        seen.append(store.generation)
    output = writer.communicate()
    assert writer.returncode == 0, output
    assert seen == sorted(seen)
    assert len(set(seen)) > 1, "the reader never saw a change, so it showed nothing"
    assert open_codes(path).generation == 7


# The card -------------------------------------------------------------------------------------------------------------


def test_the_card_tells_what_the_store_is_and_its_snippets_run(work: ToyWork, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (work.codes / "codes" / "README.md").read_text()
    store = open_codes(work.codes)
    for text in (
        "# 8 clips as codes",
        "| clips | train 4, val 1, test 3 |",
        "| frames | 64 |",
        "4 x 4 positions x 2 codebooks, integers in [0, 12)",
        store.tokenizer,
        store.fingerprint,
        f"| input: frames | `{FrameShards(work.frames).fingerprint}` |",
        "## Licence",
    ):
        assert text in card
    monkeypatch.chdir(work.codes)
    for snippet in card.split("```python\n")[1:]:
        names: dict[str, np.ndarray] = {}
        exec(snippet.partition("```")[0], names)
        assert np.array_equal(names["codes"], store[store.clips[0].id])


def test_the_card_is_the_same_wherever_and_whenever_the_store_is_made(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name / "data.zarr", FIVE)
        time.sleep(0.01)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert os.sep + "tmp" not in (tmp_path / "one/data.zarr/codes/README.md").read_text()

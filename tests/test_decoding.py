"""Stage `decode`: files that play, made once, and never out of codes of another tokenizer."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import ArtefactError, ConfigError, LVTError, MismatchError, Stopped, StoreError
from lvt_pipeline.jobs import decode as decoding
from lvt_pipeline.jobs.decode import FILES_NAME, decode_store
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.jobs.settings import DecodeSettings, SampleSettings
from lvt_pipeline.provenance import missing_outputs, read_record, short
from lvt_pipeline.runs.read import load_vqvae
from tests.listener import Listener
from tests.toy_work import FRAMES, SIZE, ToyWork, make_tokenizer, make_toy_work


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    return make_toy_work(tmp_path_factory.mktemp("work"))


def run(work: ToyWork, out: Path, settings: DecodeSettings | None = None, **options: object) -> object:
    settings = settings or DecodeSettings(split="test")
    return decode_store(work.codes, work.vqvae, out, settings, device="cpu", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def decoded(work: ToyWork, clip_id: str) -> np.ndarray:
    return load_vqvae(work.vqvae, device="cpu").decode(open_codes(work.codes)[clip_id]).numpy()


def test_npy_files_hold_exactly_what_the_tokenizer_decodes(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "v", DecodeSettings(format="npy", clips=("test/1", "val/0")))
    assert sorted(path.stem for path in (tmp_path / "v").rglob("*.npy")) == ["0", "1"]
    assert np.array_equal(np.load(tmp_path / "v" / "test" / "1.npy"), decoded(work, "test/1"))


def test_mp4_files_are_h264_of_the_right_size_rate_and_length(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "v")
    with av.open(str(tmp_path / "v" / "test" / "0.mp4")) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 5.0
    assert np.shape(frames) == (FRAMES + 2, 4 * SIZE, 4 * SIZE, 3)
    real = decoded(work, "test/0").repeat(4, axis=1).repeat(4, axis=2)
    assert np.abs(np.array(frames).astype(int) - real).mean() < 12  # yuv420p halves the colours' resolution


def test_gif_and_png_last_as_long_as_the_clip(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "gif", DecodeSettings(format="gif", clips=("test/0",), scale=1))
    run(work, tmp_path / "png", DecodeSettings(format="png", clips=("test/0",), scale=2))
    with Image.open(tmp_path / "gif" / "test" / "0.gif") as picture:
        # Equal neighbours become one picture that is shown longer.
        durations = [picture.seek(index) or picture.info["duration"] for index in range(picture.n_frames)]
        assert sum(durations) == (FRAMES + 2) * 200
    with Image.open(tmp_path / "png" / "test" / "0.png") as picture:
        assert picture.size == (2 * SIZE * (FRAMES + 2), 2 * SIZE)


def test_the_record_names_every_file_and_its_inputs(work: ToyWork, tmp_path: Path) -> None:
    record = run(work, tmp_path / "v")
    assert record == read_record(tmp_path / "v")
    assert record.inputs["codes"] == open_codes(work.codes).fingerprint
    assert sorted(record.outputs) == ["test/0.mp4", "test/1.mp4", "test/2.mp4"]
    assert missing_outputs(tmp_path / "v", record) == []


def test_decoding_again_changes_nothing(work: ToyWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(work, tmp_path / "v")
    before = contents(tmp_path / "v")
    monkeypatch.setattr(decoding, "write_video", lambda *arguments: pytest.fail("a finished file was written again"))
    run(work, tmp_path / "v")
    assert contents(tmp_path / "v") == before


def test_a_stopped_run_keeps_its_files_and_goes_on(
    work: ToyWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = decoding.write_video

    def write_then_stop(path: Path, *arguments: object) -> None:
        write(path, *arguments)
        written.append(path.name)
        if len(written) == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(decoding, "write_video", write_then_stop)
    with pytest.raises(Stopped, match="finished files are in"):
        run(work, tmp_path / "v")
    assert not (tmp_path / "v" / "provenance.json").exists()
    run(work, tmp_path / "v")
    assert written == ["0.mp4", "1.mp4", "2.mp4"]
    run(work, tmp_path / "whole")
    ours, whole = contents(tmp_path / "v"), contents(tmp_path / "whole")
    assert {name: data for name, data in ours.items() if name != "provenance.json"} == {
        name: data for name, data in whole.items() if name != "provenance.json"
    }
    resumed, uninterrupted = (read_record(tmp_path / name).to_json() for name in ("v", "whole"))
    for timed in ("seconds", "finished", "command"):
        resumed.pop(timed), uninterrupted.pop(timed)
    assert resumed == uninterrupted


def written_by(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by the name of each file that is written from now on."""
    written: list[str] = []
    write = decoding.write_video

    def write_and_note(path: Path, *arguments: object) -> None:
        written.append(path.name)
        write(path, *arguments)

    monkeypatch.setattr(decoding, "write_video", write_and_note)
    return written


def test_a_kill_in_the_middle_of_a_line_costs_one_file(
    work: ToyWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(work, tmp_path / "v")
    before = contents(tmp_path / "v")
    listed = tmp_path / "v" / FILES_NAME
    listed.write_bytes(listed.read_bytes()[:-20])
    (tmp_path / "v" / "provenance.json").unlink()
    written = written_by(monkeypatch)
    run(work, tmp_path / "v")
    assert len(written) == 1
    assert contents(tmp_path / "v")[FILES_NAME] == before[FILES_NAME]


def test_a_damaged_or_lost_file_is_made_again(work: ToyWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(work, tmp_path / "v")
    before = contents(tmp_path / "v")
    (tmp_path / "v" / "test" / "0.mp4").unlink()
    (tmp_path / "v" / "test" / "2.mp4").write_bytes(b"cut")
    written = written_by(monkeypatch)
    run(work, tmp_path / "v")
    assert sorted(written) == ["0.mp4", "2.mp4"]
    after = contents(tmp_path / "v")
    assert all(after[name] == before[name] for name in before if name.endswith(".mp4"))


def test_other_settings_replace_every_file_and_leave_no_old_one(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "v")
    run(work, tmp_path / "v", DecodeSettings(format="gif", clips=("val/0",)))
    assert sorted(contents(tmp_path / "v")) == [FILES_NAME, "provenance.json", "val/0.gif"]
    assert not (tmp_path / "v" / "test").exists()


def test_files_that_are_replaced_or_removed_are_reported(work: ToyWork, tmp_path: Path) -> None:
    out, listener = tmp_path / "v", Listener()
    decode_store(work.codes, work.vqvae, out, DecodeSettings(split="test"), device="cpu", progress=listener)
    assert listener.said == []
    gif = DecodeSettings(split="test", format="gif", clips=("test/0", "test/1"))
    decode_store(work.codes, work.vqvae, out, gif, device="cpu", progress=listener)
    assert listener.said == [
        f"{out}: 2 .mp4 files are replaced: their settings or inputs were others",
        f"{out}: 1 .mp4 files are removed: they are not asked for any more",
    ]


def test_overwrite_makes_every_file_again(work: ToyWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(work, tmp_path / "v")
    written = written_by(monkeypatch)
    run(work, tmp_path / "v", overwrite=True)
    assert len(written) == 3


def test_sampled_codes_decode_like_any_others(work: ToyWork, tmp_path: Path) -> None:
    settings = SampleSettings(frames=FRAMES, priming_frames=2, num_clips=1, samples_per_clip=2)
    sample_clips(work.prior, work.codes, tmp_path / "s.zarr", settings, device="cpu")
    decode_store(tmp_path / "s.zarr", work.vqvae, tmp_path / "v", device="cpu")
    assert (tmp_path / "v" / "test" / "0#1.mp4").stat().st_size > 500


def test_codes_of_another_tokenizer_are_refused_with_both_named(work: ToyWork, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "other", seed=3)
    other = read_record(tmp_path / "other").counts["tokenizer"]
    with pytest.raises(MismatchError) as caught:
        decode_store(work.codes, tmp_path / "other", tmp_path / "v", device="cpu")
    assert short(other) in str(caught.value)
    assert short(open_codes(work.codes).tokenizer) in str(caught.value)
    assert not (tmp_path / "v").exists()


def test_a_folder_with_other_things_is_left_alone(work: ToyWork, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "holiday.mp4").write_bytes(b"precious")
    with pytest.raises(ArtefactError, match="other things"):
        run(work, tmp_path / "v")
    assert sorted(contents(tmp_path / "v")) == ["holiday.mp4"]


def test_an_unknown_clip_is_refused_with_a_suggestion(work: ToyWork, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="did you mean test/1"):
        run(work, tmp_path / "v", DecodeSettings(clips=("tset/1",)))


def test_a_split_without_clips_is_refused(work: ToyWork, tmp_path: Path) -> None:
    with pytest.raises(LVTError, match="no clip to decode"):
        run(work, tmp_path / "v", DecodeSettings(split="train", clips=("test/1",)))


def test_a_misspelt_split_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="split='validation' is not one of train, val, test"):
        DecodeSettings(split="validation")  # type: ignore[arg-type]


def test_a_clip_id_cannot_lead_out_of_the_folder() -> None:
    for clip_id in ("../up", "a/../../up", "/etc/passwd"):
        with pytest.raises(LVTError, match="cannot be a file name"):
            decoding._file_name(clip_id, "mp4")


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="scale"):
        DecodeSettings(scale=0)
    with pytest.raises(ConfigError, match="mp4, gif, png, npy"):
        DecodeSettings(format="avi")


def test_the_list_of_files_is_readable_by_anyone(work: ToyWork, tmp_path: Path) -> None:
    run(work, tmp_path / "v")
    lines = [json.loads(line) for line in (tmp_path / "v" / FILES_NAME).read_text().splitlines()]
    assert [line["id"] for line in lines] == ["test/0", "test/1", "test/2"]
    assert all((tmp_path / "v" / line["file"]).stat().st_size == line["bytes"] for line in lines)

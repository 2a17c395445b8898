"""Import: folders of NumPy codes become a store with the same codes; what is no codes is refused before it begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import ArtefactError, ConfigError, LVTError, MismatchError, StoreError
from lvt_pipeline.jobs.export import export_codes
from lvt_pipeline.jobs.import_codes import import_codes
from lvt_pipeline.jobs.settings import ExportSettings, ImportSettings
from lvt_pipeline.models.vqvae.model import tokenizer_fingerprint
from tests.toy_codes import make_store
from tests.toy_work import BOOKS, CODES, make_tokenizer

Lvt = Callable[..., tuple[int, str, str]]


def released(folder: Path, frames: int = 4, shape: tuple[int, ...] = (2, 4, 3), first: int = 0, seed: int = 0) -> Any:
    """A clip as the released code keeps it; its codes as (T, h, w, n_c)."""
    codes = np.random.default_rng(seed).integers(0, 512, (frames, *shape))
    folder.mkdir(parents=True)
    for number, frame in enumerate(codes, start=first):
        np.save(folder / f"{number}.npy", frame)
    return codes.transpose(0, 2, 3, 1) if len(shape) == 3 else codes[..., None]


def import_all(folder: Path, out: Path, codebook_size: int | None = 512, **settings: Any) -> CodeStore:
    import_codes(folder, out, ImportSettings(codebook_size=codebook_size, **settings))
    return open_codes(out)


@pytest.mark.parametrize("file_format", ["npy", "npy-frames"])
@pytest.mark.parametrize(("codebook_size", "num_codebooks"), [(512, 2), (256, 1)])
def test_what_export_wrote_comes_back_code_for_code(
    tmp_path: Path, file_format: Any, codebook_size: int, num_codebooks: int
) -> None:
    store = make_store(tmp_path / "s", codebook_size=codebook_size, frame_shape=(4, 3, num_codebooks))
    export_codes(store.path, tmp_path / "out", ExportSettings(format=file_format))
    back = import_all(tmp_path / "out", tmp_path / "back", codebook_size=None)
    assert [(c.id, c.split, c.label, c.fps, c.length) for c in back.clips] == [
        (c.id, c.split, c.label, c.fps, c.length) for c in store.clips
    ]
    assert all(np.array_equal(back[clip_id], store[clip_id]) for clip_id in store)
    assert (back.tokenizer, back.codebook_size, back.dtype) == (store.tokenizer, codebook_size, store.dtype)


@pytest.mark.parametrize("file_format", ["npy", "npy-frames"])
def test_a_clip_whose_name_export_shortened_comes_back_under_its_id(tmp_path: Path, file_format: Any) -> None:
    ids = [f"train/{'ü' * 150}{end}" for end in ("a", "b")] + ["train/short"]
    store = make_store(tmp_path / "s", dict.fromkeys(ids, 5))
    export_codes(store.path, tmp_path / "out", ExportSettings(format=file_format))
    back = import_all(tmp_path / "out", tmp_path / "back", codebook_size=None)
    assert [clip.id for clip in back.clips] == [clip.id for clip in store.clips]
    assert all(np.array_equal(back[clip_id], store[clip_id]) for clip_id in ids)


def test_folders_of_the_released_layout_are_clips(tmp_path: Path) -> None:
    many = released(tmp_path / "in/train/robot/0001", frames=12)
    later = released(tmp_path / "in/test/0002", first=5, seed=1)
    store = import_all(tmp_path / "in", tmp_path / "s", fps=5.0)
    assert [(clip.id, clip.split, clip.fps) for clip in store.clips] == [
        ("test/0002", "test", 5.0),
        ("train/robot/0001", "train", 5.0),
    ]
    assert np.array_equal(store["train/robot/0001"], many)  # frame 10 comes after frame 9, not after frame 1
    assert np.array_equal(store["test/0002"], later)
    assert (store.grid, store.num_codebooks, store.codebook_size) == ((4, 3), 2, 512)


def test_frames_of_one_codebook_have_no_axis_for_it(tmp_path: Path) -> None:
    codes = released(tmp_path / "in/clip", shape=(4, 3))
    store = import_all(tmp_path / "in", tmp_path / "s", split="val")
    assert np.array_equal(store["clip"], codes)
    assert store.clips[0].split == "val"


def test_importing_again_writes_nothing_and_a_changed_file_is_a_changed_clip(tmp_path: Path) -> None:
    for number in range(3):
        released(tmp_path / "in" / str(number), seed=number)
    import_all(tmp_path / "in", tmp_path / "s")
    assert import_all(tmp_path / "in", tmp_path / "s").generation == 1
    frame = np.load(tmp_path / "in/1/2.npy")
    frame[0, 0, 0] = (frame[0, 0, 0] + 1) % 512
    np.save(tmp_path / "in/1/2.npy", frame)
    store = import_all(tmp_path / "in", tmp_path / "s")
    assert store.generation == 2
    assert store["1"][2, 0, 0, 0] == frame[0, 0, 0]
    scratch = import_all(tmp_path / "in", tmp_path / "scratch")
    assert store.fingerprint == scratch.fingerprint


def test_the_tokenizer_is_that_of_the_run(tmp_path: Path, lvt: Lvt) -> None:
    model = make_tokenizer(tmp_path / "run")
    codes = np.random.default_rng(0).integers(0, CODES, (3, BOOKS, 4, 4))
    (tmp_path / "in/a").mkdir(parents=True)
    for number, frame in enumerate(codes):
        np.save(tmp_path / f"in/a/{number}.npy", frame)
    command = ["import-codes", tmp_path / "in", "--codebook-size", CODES, "--tokenizer", tmp_path / "run"]
    assert lvt(*command, "-o", tmp_path / "s")[0] == 0
    assert open_codes(tmp_path / "s").tokenizer == tokenizer_fingerprint(model)
    assert lvt("decode", "--codes", tmp_path / "s", "--vqvae", tmp_path / "run", "-o", tmp_path / "videos")[0] == 0

    assert lvt("import-codes", tmp_path / "in", "--codebook-size", CODES, "-o", tmp_path / "unknown")[0] == 0
    code, _, error = lvt("decode", "--codes", tmp_path / "unknown", "--vqvae", tmp_path / "run", "-o", tmp_path / "v")
    assert (code, error.count("\n")) == (1, 1)
    assert "was made by tokenizer" in error

    with pytest.raises(MismatchError, match=f"K=512, n_c={BOOKS}, but .* makes K={CODES}"):
        import_codes(tmp_path / "in", tmp_path / "x", ImportSettings(codebook_size=512), tokenizer=tmp_path / "run")


def damaged(folder: Path, how: str) -> None:
    released(folder / "a")
    released(folder / "b", seed=1)
    frame = folder / "b" / "2.npy"
    match how:
        case "gap":
            (folder / "b/1.npy").unlink()
        case "name":
            frame.rename(folder / "b/last.npy")
        case "twice":
            np.save(folder / "b/02.npy", np.load(frame))
        case "text":
            frame.write_text("these are words")
        case "cut":
            frame.write_bytes(frame.read_bytes()[:150])
        case "pickle":
            np.save(frame, np.array([{}], object), allow_pickle=True)
        case "latents":
            for file in (folder / "b").iterdir():
                np.save(file, np.load(file).astype(np.float32))
        case "range":
            np.save(frame, np.full((2, 4, 3), 512))
        case "negative":
            np.save(frame, np.full((2, 4, 3), -1))
        case "shape":
            np.save(frame, np.zeros((2, 4, 4), int))
        case "grid":
            for file in (folder / "b").iterdir():
                np.save(file, np.zeros((2, 5, 5), int))
        case "axes":
            for file in (folder / "b").iterdir():
                np.save(file, np.zeros(5, int))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("gap", "has frames 0 to 3 but not 1; extract them again"),
        ("name", "last.npy is not named by a frame number"),
        ("twice", "are the same frame; remove one of them"),
        ("text", r"2.npy cannot be read as an array"),
        ("cut", r"2.npy cannot be read as an array"),
        ("pickle", r"2.npy cannot be read as an array"),
        ("latents", "b holds float32, codes are integers; these may be latents"),
        ("range", r"holds codes from \d+ to 512, outside of \[0, 512\); give the codebook size"),
        ("negative", r"holds codes from -1 to \d+, outside of \[0, 512\)"),
        ("shape", r"2.npy is int64 \(2, 4, 4\) but 0.npy is int64 \(2, 4, 3\)"),
        ("grid", r"frames of \(h, w, n_c\) = \(5, 5, 2\) but those of clip a have \(4, 3, 2\)"),
        ("axes", r"has 1 axes; a frame is \(n_c, h, w\) or \(h, w\), a clip \(frames, h, w, n_c\)"),
    ],
)
def test_what_is_no_codes_is_named_and_nothing_is_written(tmp_path: Path, how: str, words: str) -> None:
    damaged(tmp_path / "in", how)
    with pytest.raises(ArtefactError, match=words):
        import_all(tmp_path / "in", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_folders_and_settings_that_say_too_little_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is not a folder"):
        import_all(tmp_path / "nothing", tmp_path / "s")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=r"holds no \.npy file"):
        import_all(tmp_path / "empty", tmp_path / "s")
    released(tmp_path / "in")
    with pytest.raises(ArtefactError, match="is a frame without a folder of its own; give the parent of"):
        import_all(tmp_path / "in", tmp_path / "s")
    with pytest.raises(LVTError, match="give --codebook-size"):
        import_all(tmp_path / "in", tmp_path / "s", codebook_size=None)
    with pytest.raises(ConfigError, match=r"fps=0.0 must be above 0"):
        ImportSettings(fps=0.0)
    with pytest.raises(ConfigError, match="split='dev' is not one of train, val, test"):
        ImportSettings(split="dev")
    released(tmp_path / "whole/clip")
    with pytest.raises(StoreError, match="codebook_size=70000 is not within 1 to 65536"):
        import_all(tmp_path / "whole", tmp_path / "s", codebook_size=70000)


def test_a_list_of_clips_that_was_edited_badly_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    export_codes(store.path, tmp_path / "out", ExportSettings(format="npy"))
    lines = (tmp_path / "out/clips.jsonl").read_text()
    (tmp_path / "out/clips.jsonl").write_text(lines.replace('"split": "val"', '"split": "dev"'))
    with pytest.raises(ArtefactError, match=r"clips\.jsonl:3 does not have the id, split, label and fps"):
        import_all(tmp_path / "out", tmp_path / "back")

"""Damaged and hand-edited files of a run: everything that a guarantee depends on is found, and said in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import CheckpointError, ConfigError, LVTError, NotFiniteError, TrainingError
from lvt_pipeline.provenance import digest_file
from lvt_pipeline.runs.checkpoints import FILES_NAME, MODEL_NAME, STATE_NAME, find_checkpoint, load_state
from lvt_pipeline.runs.layout import read_sealed, write_sealed
from lvt_pipeline.runs.live import read_live_run
from lvt_pipeline.runs.read import load_prior, read_run, read_run_config, read_run_record, run_fingerprint
from lvt_pipeline.runs.trained_clips import find_trained_clips
from lvt_pipeline.training.prior import train_prior
from lvt_pipeline.training.vqvae import train_vqvae
from tests.test_prior_training import settings_of
from tests.test_training_options import Watched
from tests.test_vqvae_training import make_frames, tiny
from tests.toy_codes import make_store

STEPS = {"max_steps": 6, "log_every": 1, "eval_every": 2, "checkpoint_every": 3, "picture_every": 6}
LENGTHS = {f"train/{i}": 4 + i % 5 for i in range(11)} | {"val/a": 6, "test/a": 6}


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("codes") / "a.zarr", LENGTHS, codebook_size=8, frame_shape=(4, 4, 2)).path


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_frames(tmp_path_factory.mktemp("frames") / "frames")


@pytest.fixture(scope="module")
def trained(codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "prior"
    train_prior(codes, out, settings_of(**STEPS), device="cpu")
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run that the test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "prior"))


def edit_json(path: Path, **changes: Any) -> None:
    """As a person would with an editor: well-formed, and without a new seal."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def resume(codes: Path, run: Path, **changes: Any) -> Any:
    return train_prior(codes, run, settings_of(**{**STEPS, **changes}), device="cpu")


@pytest.mark.parametrize("damage", [lambda path: path.write_text(""), os.unlink])
def test_a_lost_list_of_training_clips_never_lets_an_evaluation_pass(
    run: Path, codes: Path, damage: Callable[[Path], Any]
) -> None:
    clips = list(open_codes(codes).clips)
    found = find_trained_clips(clips, run)
    assert [clip.split for clip in found] == ["train"] * 11
    damage(run / "trained_clips.txt")
    with pytest.raises(CheckpointError, match=r"trained_clips.txt .*so it is unknown which clips .*restores it"):
        find_trained_clips(clips, run)
    fingerprint = read_run_record(run).fingerprint  # type: ignore[union-attr]
    assert resume(codes, run).fingerprint == fingerprint
    assert find_trained_clips(clips, run) == found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'attention = "query-key"',
            'attention = "key-only"',
            "model.attention is 'key-only' but the run has 'query-key'",
        ),
        ("encoder_position = false", "encoder_position = true", "model.encoder_position is True but the run has False"),
        ('kernel_reach = "centred"', 'kernel_reach = "past"', "model.kernel_reach is 'past' but the run has 'centred'"),
        ("seed = 0", "seed = 1", "training.seed is 1 but the run has 0"),
        ("[training]", "[training]\nother = 2026-01-01", "training.other is datetime.date"),
    ],
)
def test_a_setting_edited_by_hand_is_named_and_refused(
    run: Path, codes: Path, old: str, new: str, message: str
) -> None:
    config = run / "config.toml"
    before = config.read_text()
    assert old in before
    config.write_text(before.replace(old, new))
    for use in (read_run_config, lambda run: load_prior(run, device="cpu")):
        with pytest.raises(CheckpointError) as caught:
            use(run)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    config.write_text("# a comment changes nothing\n" + before)
    load_prior(run, device="cpu")


def test_training_again_restores_an_edited_config(run: Path, codes: Path) -> None:
    config = run / "config.toml"
    before = config.read_text()
    config.write_text(before.replace("seed = 0", "seed = 1"))
    resume(codes, run)
    assert config.read_text() == before


@pytest.mark.parametrize(
    ("name", "changes", "use"),
    [
        ("run.json", {"facts": {"tokenizer": "0" * 64, "class_names": [], "generation": 1}}, read_run),
        ("run.json", {"step": 3}, read_live_run),
        ("provenance.json", {"fingerprint": "0" * 64}, run_fingerprint),
        ("provenance.json", {"counts": {"steps": 3, "tokenizer": "0" * 64}}, read_run_record),
        ("provenance.json", {"counts": {}}, load_prior),
        ("checkpoints/latest.json", {"step": 3}, load_prior),
        ("checkpoints/best.json", {"step": 3}, lambda run: load_prior(run, "best")),
        ("checkpoints/step-00000006/files.json", {"files": {}}, load_prior),
    ],
)
def test_facts_edited_by_hand_are_refused_in_one_line(
    run: Path, codes: Path, name: str, changes: dict[str, Any], use: Callable[[Path], Any]
) -> None:
    edit_json(run / name, **changes)
    with pytest.raises(LVTError, match=Path(name).name) as caught:
        use(run)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + 2 * len(str(run))


def test_overwrite_trains_again_whatever_the_description_holds(run: Path, codes: Path) -> None:
    fingerprint = run_fingerprint(run)
    (run / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="train again with --overwrite"):
        resume(codes, run)
    assert train_prior(codes, run, settings_of(**STEPS), device="cpu", overwrite=True).fingerprint == fingerprint


def test_a_file_given_for_a_run_leads_to_the_run(run: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"latest.json is a file; give the run directory {run}$"):
        read_run(run / "checkpoints" / "latest.json")
    with pytest.raises(CheckpointError, match=rf"is not a run directory \(no run.json\); give the whole run {run}$"):
        read_run(run / "checkpoints" / "step-00000006")


def test_only_a_half_written_last_line_leaves_the_log(run: Path, codes: Path) -> None:
    log = run / "metrics.jsonl"
    before = log.read_bytes().split(b"\n")[:-1]
    damaged = [before[2][:10] + b"\xff" + before[2][11:], b"[1]", b"\x00" * 20]
    log.write_bytes(b"\n".join([*before[:2], *damaged, *before[3:], b'{"step": 6, "spl']))
    (run / "provenance.json").unlink()
    lines = Watched()
    train_prior(codes, run, settings_of(**STEPS), device="cpu", progress=lines)
    assert log.read_bytes().split(b"\n")[:-1] == before[:2] + before[3:]
    assert (run / "metrics.damaged").read_bytes().split(b"\n")[:-1] == damaged
    assert any("has damaged lines (line 3, 4, 5), which were moved to metrics.damaged" in line for line in lines.said)
    # A second damage is added to the first.
    log.write_bytes(b"x\n" + log.read_bytes())
    (run / "provenance.json").unlink()
    resume(codes, run)
    assert (run / "metrics.damaged").read_bytes().split(b"\n")[:-1] == [*damaged, b"x"]


def test_leftovers_of_a_killed_process_go_at_the_next_start(run: Path, codes: Path) -> None:
    leftovers = [run / ".run.json.99.partial", run / "pictures" / ".step-00000006.png.99.partial"]
    for path in leftovers:
        path.write_text("half")
    (run / "checkpoints" / ".step-00000009.99.partial").mkdir()
    (run / ".breakdown.99.partial").mkdir()
    resume(codes, run)
    assert not list(run.rglob("*.partial"))


def rewrite(run: Path, name: str, write: Callable[[Path], None]) -> None:
    """Replace a file of the last checkpoint together with its digest."""
    checkpoint = find_checkpoint(run).path
    write(checkpoint / name)
    facts = read_sealed(checkpoint / FILES_NAME)
    facts["files"][name] = {"bytes": (checkpoint / name).stat().st_size, "sha256": digest_file(checkpoint / name)}
    write_sealed(checkpoint / FILES_NAME, facts)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_in_one_line(run: Path, value: float) -> None:
    def poison(path: Path) -> None:
        weights = load_file(path)
        weights[sorted(weights)[0]].view(-1)[0] = value
        save_file(weights, path)

    rewrite(run, MODEL_NAME, poison)
    with pytest.raises(NotFiniteError, match=r"its weights \S+ are not finite; use another checkpoint") as caught:
        load_prior(run, device="cpu")
    assert "\n" not in str(caught.value)


class Unsafe:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unsafe_state_was_executed",)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"step": Unsafe()}, "holds objects that are refused as unsafe"),
        ([1], "is not the state of a training"),
        ({"step": 6}, "is not the state of this training"),
        ({"optimizer": {"state": {}, "param_groups": []}, "step": "six"}, "is not the state of this training"),
    ],
)
def test_a_replaced_state_is_refused_in_one_line(run: Path, codes: Path, state: Any, message: str) -> None:
    rewrite(run, STATE_NAME, lambda path: torch.save(state, path))
    with pytest.raises(CheckpointError, match=f"state.pt {message}") as caught:
        resume(codes, run, max_steps=9)
    assert "\n" not in str(caught.value)
    assert not Path("unsafe_state_was_executed").exists()


def test_state_with_odd_values_is_refused_in_one_line(run: Path, codes: Path) -> None:
    def change(path: Path) -> None:
        state = load_state(find_checkpoint(run))
        torch.save({**state, "window": {"sums": 3}, "watch": None}, path)

    rewrite(run, STATE_NAME, change)
    with pytest.raises(CheckpointError, match="is not the state of this training; delete"):
        resume(codes, run, max_steps=9)


@pytest.mark.parametrize("due", ["eval_every", "picture_every", "checkpoint_every", "log_every"])
@pytest.mark.parametrize("rate", [1e10, 1e30])
def test_a_diverging_prior_ends_in_the_breakdown_message(tmp_path: Path, codes: Path, due: str, rate: float) -> None:
    seldom = dict.fromkeys(("eval_every", "picture_every", "checkpoint_every", "log_every"), 1000)
    values = {**STEPS, **seldom, due: 1, "learning_rate": rate, "max_steps": 20}
    with pytest.raises(TrainingError, match=r"training broke down: .* step \d+\. Its batch holds train/\d+ ") as caught:
        train_prior(codes, tmp_path / "run", settings_of(**values), device="cpu")
    assert "\n" not in str(caught.value)
    assert read_run(tmp_path / "run")["status"] == "failed"
    assert (tmp_path / "run" / "breakdown" / "breakdown.json").exists()


@pytest.mark.parametrize("due", ["eval_every", "picture_every", "checkpoint_every"])
def test_a_diverging_tokenizer_ends_in_the_breakdown_message(tmp_path: Path, frames: Path, due: str) -> None:
    seldom = dict.fromkeys(("eval_every", "picture_every", "checkpoint_every"), 1000)
    values = {**seldom, due: 1, "learning_rate": 1e30, "max_steps": 20}
    with pytest.raises(TrainingError, match=r"training broke down: .* step \d+\. Its batch holds clip\d+ "):
        train_vqvae(frames, tmp_path / "run", tiny(**values), device="cpu")


def test_a_time_limit_that_is_no_time_is_refused(tmp_path: Path, codes: Path) -> None:
    for value in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ConfigError, match=r"max_seconds=.* must be a (finite )?number of at least 0"):
            train_prior(codes, tmp_path / "run", settings_of(**STEPS), device="cpu", max_seconds=value)


# Fuzzing -------------------------------------------------------------------------------------------------------------

FILES = (
    *("run.json", "config.toml", "metrics.jsonl", "trained_clips.txt", "provenance.json"),
    *("checkpoints/latest.json", "checkpoints/best.json"),
    *(f"checkpoints/step-00000006/{name}" for name in (FILES_NAME, MODEL_NAME, STATE_NAME)),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A change of a file: bits flipped, cut, emptied, something put in, or a value of its JSON replaced."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "value", "nest", "digits"]))
    place = draw(st.floats(0, 1, exclude_max=True))
    junk = draw(st.binary(min_size=1, max_size=8))
    value = draw(VALUES)

    def change(data: bytes) -> bytes:
        at = int(place * len(data))
        if kind == "flip":
            return data[:at] + bytes([data[at] ^ (junk[0] or 1)]) + data[at + 1 :]
        if kind == "cut":
            return data[:at]
        if kind == "insert":
            return data[:at] + junk + data[at:]
        if kind == "nest":
            return b"[" * 100_000
        if kind == "digits":
            return b'{"step": ' + b"9" * 6000 + b"}"
        try:
            table = json.loads(data)
            key = sorted(table)[int(place * len(table))]
            return json.dumps({**table, key: value}).encode()
        except (ValueError, TypeError, IndexError):
            return data + junk

    return change


def require_one_line(error: LVTError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


def check_fuzzed(run: Path, codes: Path, pristine: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Every use of the run gives the same result as before, or one line."""
    target = run / name
    before = (pristine / name).read_bytes()
    clips = list(open_codes(codes).clips)
    uses: dict[str, Callable[[Path], Any]] = {
        "fingerprint": run_fingerprint,
        "config": read_run_config,
        "weights": lambda path: {key: value.sum().item() for key, value in load_prior(path).state_dict().items()},
        "clips": lambda path: len(find_trained_clips(clips, path)),
        "record": lambda path: read_run_record(path).to_json(),  # type: ignore[union-attr]
        "live": lambda path: read_live_run(path).step if name != "metrics.jsonl" else read_live_run(path) and 6,
    }
    target.write_bytes(change(before))
    try:
        for use in uses.values():
            try:
                found = use(run)
            except LVTError as error:
                require_one_line(error)
            else:
                assert found == use(pristine)
    finally:
        target.write_bytes(before)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=damages())
def test_any_damage_gives_the_right_result_or_one_line(
    name: str, change: Callable[[bytes], bytes], run: Path, trained: Path, codes: Path
) -> None:
    check_fuzzed(run, codes, trained, name, change)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=damages())
def test_any_of_many_damages_gives_the_right_result_or_one_line(
    name: str, change: Callable[[bytes], bytes], run: Path, trained: Path, codes: Path
) -> None:
    check_fuzzed(run, codes, trained, name, change)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=damages())
def test_training_on_after_any_damage_gives_the_right_result_or_one_line(
    name: str, change: Callable[[bytes], bytes], trained: Path, codes: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("fuzzed") / "prior"))
    whole = train_prior(codes, tmp_path_factory.mktemp("whole") / "prior", settings_of(**STEPS), device="cpu")
    (run / name).write_bytes(change((run / name).read_bytes()))
    try:
        record = resume(codes, run)
    except LVTError as error:
        require_one_line(error)
    else:
        assert record.fingerprint == whole.fingerprint

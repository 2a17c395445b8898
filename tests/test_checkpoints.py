"""Checkpoints: whole or not at all, never trusted when damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lvt_pipeline.errors import CheckpointError, LVTError
from lvt_pipeline.runs.checkpoints import (
    BEST_NAME,
    CHECKPOINTS_NAME,
    LATEST_NAME,
    MODEL_NAME,
    STATE_NAME,
    drop_checkpoints_after,
    find_checkpoint,
    list_checkpoints,
    load_all_weights,
    load_state,
    load_weights,
    save_checkpoint,
    verify_checkpoint,
    weights_digest,
)


def weights_of(step: int) -> dict[str, dict[str, Tensor]]:
    return {MODEL_NAME: {"a": torch.full((3, 2), float(step)), "count": torch.tensor(step)}}


def save(run: Path, step: int, **options: Any) -> None:
    save_checkpoint(run, step, weights_of(step), {"step": step, "optimizer": {"x": torch.ones(2)}}, **options)


def steps_of(run: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(run)]


def test_checkpoint_gives_back_weights_and_state(tmp_path: Path) -> None:
    save(tmp_path, 7)
    checkpoint = find_checkpoint(tmp_path)
    verify_checkpoint(checkpoint)
    assert checkpoint.step == 7
    torch.testing.assert_close(load_weights(checkpoint), weights_of(7)[MODEL_NAME], rtol=0, atol=0)
    state = load_state(checkpoint)
    assert state["step"] == 7
    assert torch.equal(state["optimizer"]["x"], torch.ones(2))


def test_state_file_opens_with_weights_only(tmp_path: Path) -> None:
    save(tmp_path, 1)
    state = torch.load(find_checkpoint(tmp_path).path / STATE_NAME, weights_only=True)
    assert state["step"] == 1


def test_tied_weights_are_saved_under_both_names(tmp_path: Path) -> None:
    shared = torch.randn(4, generator=torch.Generator().manual_seed(0))
    save_checkpoint(tmp_path, 1, {MODEL_NAME: {"in": shared, "out": shared}}, {})
    loaded = load_weights(find_checkpoint(tmp_path))
    assert torch.equal(loaded["in"], shared)
    assert torch.equal(loaded["out"], shared)


def test_only_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    best = None
    for step in range(1, 7):
        best = {"step": 2, "value": 0.5} if step >= 2 else None
        save(tmp_path, step, keep=2, best=best)
    assert steps_of(tmp_path) == [2, 5, 6]
    assert find_checkpoint(tmp_path, "best").step == 2
    assert find_checkpoint(tmp_path, 5).step == 5


def test_unknown_checkpoint_names_the_known_ones(tmp_path: Path) -> None:
    save(tmp_path, 3)
    with pytest.raises(CheckpointError, match=r"no checkpoint 9; known: latest, best, and the steps 3"):
        find_checkpoint(tmp_path, 9)
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        find_checkpoint(tmp_path, "best")


def test_run_without_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        find_checkpoint(tmp_path)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut_in_half, flip_a_byte, os.unlink])
@pytest.mark.parametrize("name", [MODEL_NAME, STATE_NAME])
def test_damaged_file_is_named_with_the_good_checkpoint_before_it(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(find_checkpoint(tmp_path).path / name)
    with pytest.raises(CheckpointError) as caught:
        verify_checkpoint(find_checkpoint(tmp_path))
    message = str(caught.value)
    assert f"step-00000002/{name}" in message
    assert "step 1" in message
    assert "delete" in message


def test_damage_without_another_checkpoint_says_to_train_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    cut_in_half(find_checkpoint(tmp_path).path / MODEL_NAME)
    with pytest.raises(CheckpointError, match=r"no other good checkpoint; train it again with --overwrite"):
        verify_checkpoint(find_checkpoint(tmp_path))


@pytest.mark.parametrize(("name", "loader"), [(MODEL_NAME, load_all_weights), (STATE_NAME, load_state)])
def test_unreadable_file_is_an_expected_error(tmp_path: Path, name: str, loader: Callable[..., Any]) -> None:
    save(tmp_path, 1)
    (find_checkpoint(tmp_path).path / name).write_bytes(b"not a checkpoint at all")
    with pytest.raises(CheckpointError, match=name):
        loader(find_checkpoint(tmp_path))


def test_deleting_the_damaged_checkpoint_goes_back_to_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    for file in find_checkpoint(tmp_path).path.iterdir():
        file.unlink()
    find_checkpoint(tmp_path).path.rmdir()
    assert find_checkpoint(tmp_path).step == 1


def test_pointer_decides_which_checkpoint_is_latest(tmp_path: Path) -> None:
    save(tmp_path, 1)
    pointer = (tmp_path / CHECKPOINTS_NAME / LATEST_NAME).read_bytes()
    save(tmp_path, 2)
    (tmp_path / CHECKPOINTS_NAME / LATEST_NAME).write_bytes(pointer)  # killed before the pointer moved
    assert find_checkpoint(tmp_path).step == 1
    drop_checkpoints_after(tmp_path, 1)
    assert steps_of(tmp_path) == [1]
    save(tmp_path, 2)
    assert find_checkpoint(tmp_path).step == 2


@pytest.mark.parametrize("failing_call", range(5))
def test_failure_while_saving_leaves_the_last_checkpoint_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    save(tmp_path, 1, best={"step": 1})
    calls = 0
    replace = os.replace

    def failing_replace(source: Any, target: Any) -> None:
        nonlocal calls
        if calls == failing_call:
            raise OSError(28, "No space left on device")
        calls += 1
        replace(source, target)

    monkeypatch.setattr("os.replace", failing_replace)
    # files.json, the directory, best.json, latest.json: four renames in this order.
    if failing_call < 4:
        with pytest.raises(LVTError, match="disk is full"):
            save(tmp_path, 2, best={"step": 1})
    else:
        save(tmp_path, 2, best={"step": 1})
    monkeypatch.undo()
    checkpoint = find_checkpoint(tmp_path)
    verify_checkpoint(checkpoint)
    assert checkpoint.step == (1 if failing_call < 4 else 2)
    assert (tmp_path / CHECKPOINTS_NAME / BEST_NAME).exists()
    save(tmp_path, 2)
    assert find_checkpoint(tmp_path).step == 2


def test_digest_sees_names_types_shapes_and_values() -> None:
    base = {MODEL_NAME: {"a": torch.zeros(2, 3)}}
    others = [
        {MODEL_NAME: {"b": torch.zeros(2, 3)}},
        {MODEL_NAME: {"a": torch.zeros(3, 2)}},
        {MODEL_NAME: {"a": torch.zeros(2, 3, dtype=torch.int32)}},
        {MODEL_NAME: {"a": torch.zeros(2, 3).index_fill(0, torch.tensor([1]), 1e-9)}},
        {"ema.safetensors": {"a": torch.zeros(2, 3)}},
    ]
    assert weights_digest(base) == weights_digest({MODEL_NAME: {"a": torch.zeros(3, 2).T}})
    assert len({weights_digest(weights) for weights in [base, *others]}) == 6

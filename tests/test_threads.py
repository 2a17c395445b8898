"""CPU threads: their number from the size of the work, what others leave, or as asked; and how long they wait."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from lvt_pipeline import machine
from lvt_pipeline.models import threads as threads_module
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.sampling.pixel_weights import pixel_seconds
from lvt_pipeline.models.threads import Threads, product_seconds, short_waits, waits_that_leave_room
from lvt_pipeline.training import session
from lvt_pipeline.training.prior import train_prior
from tests.test_prior_training import make_store, settings_of

LARGE = 1.0  # seconds


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine of four cores, of which torch may use all."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(machine, "num_cores", lambda: 4)
    monkeypatch.setattr(machine, "_chosen_threads", None)
    yield
    torch.set_num_threads(before)


def test_small_work_gets_one_thread_and_large_work_all_cores() -> None:
    for seconds, expected in ((0.0, 1), (60e-6, 1), (130e-6, 2), (LARGE, 4)):
        with Threads(seconds):
            assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 4


def test_fewer_threads_set_before_stay_fewer() -> None:
    torch.set_num_threads(2)
    with Threads(LARGE):
        assert torch.get_num_threads() == 2


def test_processes_started_together_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with Threads(LARGE):
        assert torch.get_num_threads() == 2


def test_a_number_that_was_asked_for_is_taken_as_it_is() -> None:
    machine.use_threads(3)
    with Threads(0.0, leaves_room=True) as threads:
        threads.leave_room()
        assert torch.get_num_threads() == 3


def test_the_option_counts_before_torch_loads() -> None:
    program = (
        "from lvt_pipeline.machine import use_threads; use_threads(1); import torch; print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_the_papers_prior_is_sampled_with_several_threads_and_a_tiny_one_with_one() -> None:
    with torch.device("meta"):
        paper = Prior(PriorConfig())
        tiny = Prior(PriorConfig(width=128, num_heads=4, head_width=32, encoder_layers=1, decoder_layers=1))
    assert pixel_seconds(paper, "float32") >= 2 * threads_module.SECONDS_PER_THREAD
    assert pixel_seconds(tiny, "float32") < 2 * threads_module.SECONDS_PER_THREAD
    assert product_seconds(tiny, 8) > 2 * threads_module.SECONDS_PER_THREAD  # training uses them all
    assert product_seconds(nn.Linear(4, 4), 1) < 2 * threads_module.SECONDS_PER_THREAD


def stat(root: Path, ticks: int) -> None:
    """A /proc/stat after so many hundredths of a second of work on each core."""
    (root / "proc").mkdir(exist_ok=True)
    cores = sorted(os.sched_getaffinity(0))
    lines = [f"cpu{core} {ticks} 0 0 1000 0 0 0 0 0 0" for core in cores]
    (root / "proc/stat").write_text("\n".join(["cpu  9 9 9 9 9 9 9 9 9 9", *lines, "intr 1 2 3"]))


def test_cores_that_others_keep_busy_are_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(machine, "num_cores", lambda: cores)
    now, own = [0.0], [0.0]
    monkeypatch.setattr(machine.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(machine.time, "process_time", lambda: own[0])
    stat(tmp_path, 0)
    load = machine.OtherLoad(tmp_path)
    now[0], own[0] = 1.0, float(cores)  # all of it is this process
    stat(tmp_path, 100)
    assert load.free_cores() == cores
    now[0] = 2.0  # and now all of it is others
    stat(tmp_path, 200)
    assert load.free_cores() == 1
    now[0] = 3.0
    assert load.free_cores() == cores
    assert machine.OtherLoad(tmp_path / "nothing").free_cores() == cores


def test_sampling_leaves_room_and_takes_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now, free = [0.0], [4]
    monkeypatch.setattr(threads_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(machine.OtherLoad, "free_cores", lambda self: free[0])
    with Threads(LARGE, leaves_room=True) as threads:
        assert torch.get_num_threads() == 1  # nothing is known yet
        for time, left, expected in ((1.0, 1, 1), (1.01, 4, 1), (2.0, 3, 3), (3.0, 9, 4)):
            now[0], free[0] = time, left
            threads.leave_room()
            assert torch.get_num_threads() == expected


def test_samples_are_the_same_bits_with_any_number_of_threads() -> None:
    torch.manual_seed(0)
    model = Prior(PriorConfig(frames=2, subscale=(2, 1, 1), encoder_layers=1, decoder_layers=1, num_codebooks=1)).eval()
    priming = torch.randint(0, 512, (2, 1, 16, 16, 1))
    found = []
    for count in (1, 2, 3):
        machine.use_threads(count)
        found.append(model.sample(priming))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_short_waits_add_sleeping_threads_and_leave_the_number_as_it_is() -> None:
    torch.ones(1 << 20).add_(1)
    before = set(os.listdir("/proc/self/task"))
    with short_waits():
        new = set(os.listdir("/proc/self/task")) - before
        assert len(new) >= machine.all_cores()
        assert torch.get_num_threads() == 4
    assert torch.get_num_threads() == 4
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 4


@pytest.mark.parametrize("count", [1, 4])
def test_waits_are_short_from_the_start_and_whenever_others_leave_too_few_cores(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []
    looks, is_over = iter((3.2, 2.0, 3.95, 4.0, 3.5, 4.0)), threading.Event()

    def look(_: object) -> float:
        free = next(looks, None)
        if free is None:
            is_over.set()
            return 4.0
        events.append(free)
        return free

    @contextmanager
    def recorded() -> Iterator[None]:
        events.append("short")
        yield
        events.append("long")

    monkeypatch.setattr(threads_module, "WATCH_SECONDS", 1e-4)
    monkeypatch.setattr(threads_module, "short_waits", recorded)
    monkeypatch.setattr(machine.OtherLoad, "free_cores", look)
    torch.set_num_threads(count)
    with waits_that_leave_room():
        assert is_over.wait(60)
    if count == 1:
        assert events == [3.2, 2.0, 3.95, 4.0, 3.5, 4.0]
    else:
        assert events == ["short", 3.2, 2.0, 3.95, "long", 4.0, 3.5, "short", 4.0, "long"]


def test_a_training_leaves_room_with_all_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    @contextmanager
    def recorded() -> Iterator[None]:
        found.append(torch.get_num_threads())
        yield

    monkeypatch.setattr(session, "waits_that_leave_room", recorded)
    machine.use_threads(3)
    train_prior(make_store(tmp_path / "data.zarr"), tmp_path / "run", settings_of(max_steps=1), device="cpu")
    assert found == [3]

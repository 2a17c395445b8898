"""Cores and memory are counted within every limit: control groups of both versions, nested, and `ulimit`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lvt_pipeline import machine
from lvt_pipeline.machine import available_memory, free_disk_bytes, num_cores, total_memory

MEMINFO = "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n"
GIB = 2**30


def _machine(root: Path, group: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": group, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)


def test_the_smallest_limit_of_nested_groups_decides(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/job/memory.max": str(4 * GIB),
        "sys/fs/cgroup/job/memory.current": str(3 * GIB),
        "sys/fs/cgroup/job/memory.stat": f"anon 5\ninactive_file {GIB}",
        "sys/fs/cgroup/job/cpu.max": "150000 100000",
        "sys/fs/cgroup/job/step/memory.max": "max",
        "sys/fs/cgroup/job/step/memory.current": "0",
        "sys/fs/cgroup/job/step/cpu.max": "max 100000",
    }
    root = _machine(tmp_path, "0::/job/step", files)
    assert total_memory(root) == 4 * GIB
    assert available_memory(root) == 2 * GIB  # cached files are given back when memory is needed
    assert num_cores(root) == 2


def test_limits_of_version_1_count(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(2 * GIB),
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(GIB),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096),
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "300000",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
    }
    root = _machine(tmp_path, "3:cpu,cpuacct:/job\n2:memory:/job", files)
    assert (total_memory(root), available_memory(root), num_cores(root)) == (2 * GIB, GIB, 3)


def test_a_container_that_sees_only_its_own_group_is_limited_by_it(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory.max": str(GIB), "sys/fs/cgroup/memory.current": "0"}
    root = _machine(tmp_path, "0::/../../host/name/of/the/container", files)
    assert total_memory(root) == GIB


@pytest.mark.parametrize("text", ["", "nonsense", "0::/nowhere"])
def test_a_machine_without_control_groups_has_what_the_kernel_says(tmp_path: Path, text: str) -> None:
    root = _machine(tmp_path, text, {})
    assert available_memory(root) == 32_000_000 * 1024
    assert num_cores(root) == 16


def test_ulimit_bounds_the_available_memory_and_is_never_raised() -> None:
    code = (
        "import resource; from lvt_pipeline.machine import *; "
        "limit_address_space(2**40); print(resource.getrlimit(resource.RLIMIT_AS)[0], available_memory())"
    )
    command = ["sh", "-c", f'ulimit -v 2000000; exec "{sys.executable}" -c "{code}"']
    limit, available = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(limit) == 2_000_000 * 1024
    assert int(available) < 2_000_000 * 1024


def test_room_is_that_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert free_disk_bytes(tmp_path / "not" / "there") > 0


@pytest.mark.parametrize("has_mallopt", [True, False])
def test_freed_memory_is_kept_in_the_block_and_returned_at_its_end_even_after_an_error(
    has_mallopt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, ...]] = []
    library = SimpleNamespace(malloc_trim=lambda kept: calls.append((kept,)))
    if has_mallopt:
        library.mallopt = lambda parameter, value: calls.append((parameter, value))
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: library)
    with pytest.raises(ZeroDivisionError), machine.kept_memory():
        inside = list(calls)
        raise ZeroDivisionError
    if not has_mallopt:
        assert calls == []
        return
    limits = dict(inside)
    assert limits[-1] > machine.TRIM_THRESHOLD[1]
    assert limits[-3] == machine.MMAP_THRESHOLD[1]
    assert calls[len(inside) :] == [machine.TRIM_THRESHOLD, (0,)]

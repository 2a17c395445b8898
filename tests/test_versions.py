"""The bounds of the dependencies, in fresh environments. Slow: packages are installed from the index."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests import version_matrix


def test_every_required_dependency_has_a_lower_bound() -> None:
    oldest = version_matrix.requirements("oldest")
    assert len(oldest) > 10
    assert all("==" in line for line in oldest)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("end", ["oldest", "newest"])
@pytest.mark.parametrize("python", [*version_matrix.find_pythons()] or [Path(sys.executable)], ids=str)
def test_every_stage_works_with_both_ends_of_the_bounds(python: Path, end: str, tmp_path: Path) -> None:
    # LVT_INSTALL_TORCH=1 also installs the oldest and newest torch, which takes gigabytes.
    borrow = not os.environ.get("LVT_INSTALL_TORCH")
    wheel = version_matrix.build_wheel(tmp_path)
    outcome = version_matrix.try_versions(python, end, wheel, tmp_path / "environment", borrow, [])
    assert outcome.is_ok, outcome.detail

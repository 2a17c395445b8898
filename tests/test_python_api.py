"""The public names: what the package exports, what the documentation lists and what type checkers see are the same."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lvt_pipeline as lvt
from lvt_pipeline.errors import ConfigError
from tests.conftest import moving_square

REPOSITORY = Path(__file__).parents[1]


def imports_for_type_checkers() -> dict[str, str]:
    tree = ast.parse((REPOSITORY / "lvt_pipeline" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_public_names_load_where_type_checkers_look_for_them() -> None:
    assert imports_for_type_checkers() == lvt._modules()
    assert sorted(lvt.__all__) == sorted(lvt._modules())
    for name in lvt.__all__:
        assert getattr(lvt, name).__module__.startswith("lvt_pipeline."), name


def test_the_documentation_lists_every_public_name() -> None:
    page = (REPOSITORY / "docs" / "python.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| (?:stage|data|model|settings|error) \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(lvt.__all__)
    assert len(listed) == len(set(listed))


def test_every_public_name_has_a_docstring_and_an_unknown_one_is_an_attribute_error() -> None:
    for name in lvt.__all__:
        assert inspect.getdoc(getattr(lvt, name)), name
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        lvt.no_such_name  # noqa: B018


def test_importing_the_package_loads_no_torch_and_no_numpy() -> None:
    code = "import sys, lvt_pipeline; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'zarr')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_video_is_read_as_ingest_stores_it_and_written_in_the_format_of_its_ending(tmp_path: Path) -> None:
    frames = moving_square(0, 6, 32, 32)
    for ending in ("mp4", "gif", "png", "npy"):
        lvt.write_video(tmp_path / f"clip.{ending}", frames, fps=10)
    found, fps = lvt.read_video(tmp_path / "clip.mp4", size=32)
    assert (found.shape, found.dtype, fps) == (frames.shape, np.uint8, 10.0)
    assert np.abs(found.astype(int) - frames).mean() < 12
    assert np.array_equal(np.load(tmp_path / "clip.npy"), frames)
    with pytest.raises(ConfigError, match=r"has the ending '\.avi'; give one of \.mp4, \.gif, \.png, \.npy"):
        lvt.write_video(tmp_path / "clip.avi", frames, fps=10)

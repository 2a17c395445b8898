"""Fingerprints: their values never change by accident, and the documentation says what each covers."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from lvt_pipeline import lineage

A, B = "a" * 64, "b" * 64
CONCEPTS = Path(__file__).parents[1] / "docs" / "concepts.md"
GEOMETRY = {"size": 64}
VALUES = {
    "clip": (lineage.clip_fingerprint(A, None, 2.5), "f142aba956b9af79"),
    "record": (
        lineage.clip_fingerprint(A, None, None, {"kind": "bair", "camera": "image_main", "fps": 10.0}),
        "7a720b50ed51d0e5",
    ),
    "manifest": (lineage.manifest_fingerprint([["x", A, "train", None]]), "8880d5e3149c19ab"),
    "frames of a clip": (lineage.clip_frames_fingerprint(A, GEOMETRY, "pyav 14", 3), "13b7c1fdc0a5100f"),
    "lossy frames": (
        lineage.clip_frames_fingerprint(A, GEOMETRY, "pyav 14", 3, {"codec": "jpeg 1"}),
        "05cdff25ee5b3ee5",
    ),
    "piece": (lineage.piece_frames_fingerprint(A, 1.5), "b1b28fb2aa6a81e4"),
    "array": (lineage.array_fingerprint(A, (2, 3)), "91c7a81d17e12b19"),
    "failed clip": (lineage.failed_clip_fingerprint(A, GEOMETRY, ["pyav 14"], 1, 3), "367e395b072f421f"),
    "frames": (lineage.frames_fingerprint([["x", "train", None, A]]), "4ec5416095f556e3"),
    "tokenizer": (lineage.tokenizer_fingerprint({"codebook_size": 8}, {"w": B}), "31f938cb6c14bfe7"),
    "bfloat16 tokenizer": (lineage.precise_tokenizer_fingerprint(A, "bfloat16"), "52937a11972b2370"),
    "tokenizer of imported codes": (lineage.foreign_tokenizer_fingerprint(8, (4, 4, 1)), "daafb399a3b2152d"),
    "run": (lineage.run_fingerprint({"model": {"w": ["float32", [2], B]}}), "9d08239dadb740d1"),
    "codes": (lineage.clip_codes_fingerprint(A, B), "c00637190c701b3c"),
    "codes with arrays": (lineage.clip_with_arrays_fingerprint(A, {"action": B, "state": None}), "c4eab62ebb200a79"),
    "imported codes": (lineage.foreign_codes_fingerprint(A, B), "fc87112f2b53ff11"),
    "store": (
        lineage.store_fingerprint(
            codebook_size=8, num_codebooks=1, grid=(4, 4), tokenizer=B, rows=[["x", "train", None, A, 5]]
        ),
        "60b6c1cf73db1828",
    ),
    "sample": (lineage.sample_fingerprint(1, {"prior": A, "clip": "x"}), "03d66e8b017f89e2"),
    "video": (
        lineage.video_fingerprint(1, codes=A, decoder=B, format="mp4", scale=4, fps=10.0),
        "7722bbb8b197999f",
    ),
    "videos": (lineage.videos_fingerprint([["x", A]]), "a22dc66e4dc26b5c"),
    "evaluation": (lineage.results_fingerprint({"bits": 1.5}), "ac40e4924a427ea4"),
}


@pytest.mark.parametrize("thing", VALUES)
def test_the_value_of_a_fingerprint_is_frozen(thing: str) -> None:
    value, expected = VALUES[thing]
    assert (value[:16], len(value)) == (expected, 64)


def test_every_fingerprint_is_in_the_table_and_has_a_frozen_value() -> None:
    functions = {
        function for name, function in vars(lineage).items() if inspect.isfunction(function)
        and name.endswith("_fingerprint") and function.__module__ == lineage.__name__
    }  # fmt: skip
    assert functions == set(lineage.TABLE.values())
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(Path(__file__).read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert {function.__name__ for function in functions} <= called


def test_the_documentation_lists_what_each_fingerprint_covers() -> None:
    text = CONCEPTS.read_text()
    table = text[text.index("| thing | its fingerprint covers |") :].split("\n\n")[0].splitlines()[2:]
    covered = [" ".join((function.__doc__ or "").split("\n\n")[0].split()) for function in lineage.TABLE.values()]
    rows = zip(lineage.TABLE, covered, strict=True)
    assert table == [f"| {thing} | {covers.removesuffix('.')} |" for thing, covers in rows]

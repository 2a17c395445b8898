"""A video above its codes and their changes (paper figures 6 to 8).

The first row is the video, given frames first. Then come the codes, one row for each codebook, in *indexed colour*:
every index has one fixed colour. Then masks, one row for each codebook, yellow where a code differs from the frame
before. Figures 7 and 8 show these rows twice, of the real video above those of the generated one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.report.figures.canvas import FigureFiles, figure_look, save_figure
from lvt_pipeline.report.figures.picture_rows import PictureRow, draw_picture_rows
from lvt_pipeline.report.figures.strips import CHANGED, UNCHANGED, draw_changes, draw_codes

BLOCK_SPACE = 0.07  # inches above each block of rows


def draw_code_rows(
    frames: NDArray[np.uint8],
    codes: NDArray[Any],
    codebook_size: int,
    priming_frames: int,
    out: Path,
    *,
    real_codes: NDArray[Any] | None = None,
    title: str = "",
) -> FigureFiles:
    """Draw figure 6 (1 + 2 n_c rows), or with `real_codes` figures 7 and 8 (1 + 4 n_c rows).

    The CSV has a line per video (real, generated), frame and codebook: `video`, `frame` (from 1), `kind` (given,
    generated or real), `codebook`, `changed_share` (of the codes against the frame before; empty in frame 1).

    Args:
        frames: the sampled video, uint8 (T, H, W, 3), its given frames first.
        codes: of the same frames, integers (T, h, w, n_c) in [0, K).
        codebook_size: K.
        priming_frames: how many frames were given.
        out: path of the files without an ending.
        real_codes: of the video that really happened, integers (T, h, w, n_c); it may end earlier.

    Raises:
        ShapeError: the arrays do not belong together.
        LVTError: matplotlib is not installed.
    """
    if codes.ndim != 4 or len(codes) != len(frames):
        raise ShapeError(f"codes of shape (T={len(frames)}, h, w, n_c) are needed, found {codes.shape}")
    if real_codes is not None and (real_codes.shape[1:] != codes.shape[1:] or len(real_codes) > len(codes)):
        raise ShapeError(f"real codes have shape {real_codes.shape} but the sampled ones {codes.shape}")
    for name, some in (("codes", codes), ("real codes", real_codes)):
        if some is not None and some.size and not 0 <= int(some.min()) <= int(some.max()) < codebook_size:
            raise ShapeError(f"{name} from {some.min()} to {some.max()} do not fit a codebook of {codebook_size}")
    blocks = [("generated", codes)] if real_codes is None else [("real", real_codes), ("generated", codes)]
    with figure_look():
        rows = [PictureRow("video", frames, num_given=priming_frames)]
        for name, some in blocks:
            num_given = priming_frames if name == "generated" else 0
            group = "" if real_codes is None else name
            rows += _block(some, codebook_size, num_given, group)
        legend = ((CHANGED, "code differs from the frame before"), (UNCHANGED, "stays the same"))
        drawn = draw_picture_rows(rows, priming_frames, title=title, legend=legend)
        header = ("video", "frame", "kind", "codebook", "changed_share")
        lines = [line for name, some in blocks for line in _numbers(name, some, priming_frames)]
        return save_figure(drawn.figure, out, header, lines, drawn.dots_per_inch)


def _block(codes: NDArray[Any], codebook_size: int, num_given: int, group: str) -> list[PictureRow]:
    """The rows of one video: n_c of codes, then n_c of changes."""
    books = range(codes.shape[-1])
    rows = []
    for kind in ("codes", "changed"):
        for book in books:
            some = codes[..., book]
            rows.append(
                PictureRow(
                    label=kind if len(books) == 1 else f"{kind} {book}",
                    tiles=draw_codes(some, codebook_size) if kind == "codes" else draw_changes(some),
                    num_given=num_given,
                    group=group,
                    space_above=BLOCK_SPACE if book == 0 else 0.0,
                )
            )
    return rows


def _numbers(name: str, codes: NDArray[Any], priming_frames: int) -> Iterator[tuple[str, int, str, int, float | None]]:
    changed = (codes[1:] != codes[:-1]).mean((1, 2))
    for frame in range(len(codes)):
        kind = "real" if name == "real" else "given" if frame < priming_frames else "generated"
        for book in range(codes.shape[-1]):
            yield name, frame + 1, kind, book, float(changed[frame - 1, book]) if frame else None

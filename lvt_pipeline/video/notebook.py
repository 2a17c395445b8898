"""How objects show themselves in a notebook: a clip as a small film, facts and rows as a table. Self-contained HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lvt_pipeline.video.geometry import Frames
from lvt_pipeline.video.write import mp4_bytes

SHOWN_PIXELS = 256  # height of a film on the page, about
SHOWN_ROWS = 10  # of a table of clips


class Film:
    """The frames of a clip. A notebook plays it; `repr` is one line.

    Attributes:
        frames: uint8 (T, H, W, 3).
        fps: frames per second.
        title: the clip's id, for people.
    """

    def __init__(self, frames: Frames, fps: float, title: str = "") -> None:
        self.frames, self.fps, self.title = frames, fps, title

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"Film({self.title!r}, {count} frames of {width}x{height} at {self.fps:g} fps)"

    def _repr_html_(self) -> str:
        scale = max(1, round(SHOWN_PIXELS / self.frames.shape[1]))
        source = data_uri(mp4_bytes(self.frames, self.fps, scale), "video/mp4")
        caption = html.escape(repr(self))
        return f'<figure><video src="{source}" controls loop muted></video><figcaption>{caption}</figcaption></figure>'


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as text that a page can use in place of an address."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def clips_html(title: str, rows: Sequence[Mapping[str, Any]], num_clips: int) -> str:
    """A collection of clips as HTML.

    Args:
        rows: facts about the first clips, with the same keys for each.
        num_clips: clips of the collection.
    """
    head = _row("th", rows[0]) if rows else ""
    body = "".join(_row("td", row.values()) for row in rows)
    more = f"<p>and {num_clips - len(rows):,} more clips</p>" if num_clips > len(rows) else ""
    return f"<p><b>{html.escape(title)}</b></p><table>{head}{body}</table>{more}"


def _row(tag: str, cells: Iterable[Any]) -> str:
    texts = ("" if cell is None else str(cell) for cell in cells)
    return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts) + "</tr>"

"""Where videos are, as an artefact keeps it: relative to its own folder, so that both can move together.

A dataset has a million clips in a few folders, so the results are remembered by folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lvt_pipeline.video.locations import absolute, is_url, relative_to

Translation = Callable[[str], str]


def kept_sources(artefact: Path) -> Translation:
    """What turns the path of a video into the one that the artefact at `artefact` keeps. Empty stays empty."""
    base = os.path.abspath(artefact)
    return _by_folder(lambda source: relative_to(source, Path(base)))


def opened_sources(artefact: Path) -> Translation:
    """The way back: what turns a kept path into one that can be opened. Empty stays empty."""
    base = os.path.abspath(artefact)
    return _by_folder(lambda source: absolute(base, source))


def _by_folder(translate: Translation) -> Translation:
    known: dict[str, str] = {}

    def translated(source: str) -> str:
        folder, slash, name = source.rpartition("/")
        if not slash or not folder or name in ("", ".", "..") or is_url(source):
            return translate(source) if source else ""
        if folder not in known:
            known[folder] = translate(folder)
        return name if known[folder] == "." else f"{known[folder]}/{name}"

    return translated

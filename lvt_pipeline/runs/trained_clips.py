"""The clips that a prior is trained on: listed in its run, so that an evaluation recognises them in any store.

`trained_clips.txt` has a line for each: the first 16 digits of the fingerprint of its codes, which names its content
and the tokenizer, not the file or the store it is in. `run.json` holds the digest of the list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.errors import CheckpointError
from lvt_pipeline.runs.layout import TRAINED_CLIPS_NAME
from lvt_pipeline.runs.read import read_run

DIGITS = 16  # two of a million clips agree by chance once in 10^7 datasets


def list_trained_clips(clips: Iterable[CodeClip], started_from: Path | None = None) -> bytes:
    """The content of `trained_clips.txt` for the clips of a training.

    Args:
        started_from: run whose weights it starts from; its clips count as well.
    """
    before = _read_list(started_from) if started_from is not None else set()
    lines = sorted({clip.codes_fingerprint[:DIGITS] for clip in clips} | before)
    return "".join(f"{line}\n" for line in lines).encode()


def find_trained_clips(clips: Sequence[CodeClip], run: Path | None) -> list[CodeClip]:
    """Those clips that were used for training: by their split, or because the run was trained on their content.

    Args:
        run: of a prior; None, or a run that was not trained here, leaves the splits.

    Raises:
        CheckpointError: the list of the run is missing or was changed.
    """
    trained = _read_list(run) if run is not None else set()
    return [clip for clip in clips if clip.split == "train" or clip.codes_fingerprint[:DIGITS] in trained]


def _read_list(run: Path) -> set[str]:
    expected = read_run(run)["digests"].get(TRAINED_CLIPS_NAME)
    if expected is None:
        return set()
    path = run / TRAINED_CLIPS_NAME
    content = path.read_bytes() if path.is_file() else None
    if content is None or hashlib.sha256(content).hexdigest() != expected:
        found = "is missing" if content is None else "was changed since the training wrote it"
        raise CheckpointError(
            f"{path} {found}, so it is unknown which clips {run} was trained on; put it back, or run its training "
            "command again, which restores it"
        )
    return set(content.decode().splitlines())

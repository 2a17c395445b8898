"""Where a command may write: never over one of its inputs, and never over what another command or a person made.

Every command that writes calls one of these functions before it changes anything. Links and relative spellings are
resolved, so the same place is recognised under any name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.provenance import ZARR_METADATA, Provenance, finished_record
from lvt_pipeline.storage import Place, StoreURL

MARK_BYTES = 4096  # at the beginning and at the end of a file, where its mark is looked for


def require_output_folder(output: Place, stage: str, inputs: Iterable[Place | None] = ()) -> None:
    """Refuse a folder that a command must not create, continue or replace.

    Args:
        output: the folder, which need not exist.
        stage: the command that is about to write, such as "encode-dataset".
        inputs: files and folders that the command reads; None stands for an input that was not given.

    Raises:
        LVTError: the output is an input, is inside one, or contains one.
        ArtefactError: it is a file, or another command made it.
    """
    for source in _given(inputs):
        _require_other_path(output, source, stage)
        if _is_inside(output, source):
            raise LVTError(f"the output {output} is inside the input {source}; choose an output outside of it")
        if _is_inside(source, output):
            raise LVTError(f"the output {output} contains the input {source}; choose another output folder")
    if isinstance(output, Path) and output.exists() and not output.is_dir():
        raise ArtefactError(f"{output} is a file; choose another output folder")
    _require_same_stage(output, stage, finished_record(output))


def require_output_file(output: Path, stage: str, inputs: Iterable[Place | None] = (), *, mark: bytes) -> None:
    """Refuse a file that a command must not create or replace.

    A file inside an input folder is allowed, such as an evaluation in the folder of its run, but not inside a code
    store, where zarr would take it for a part of the store.

    Args:
        output: the file, which need not exist.
        stage: the command that is about to write, such as "evaluate".
        inputs: files and folders that the command reads; None stands for an input that was not given.
        mark: bytes near the beginning or the end of every file of this command. They identify the file of a command
            that keeps no record, or was killed before it wrote it.

    Raises:
        LVTError: the output is an input, or inside a code store.
        ArtefactError: it is a folder, or something else than an earlier output of this command.
    """
    for source in _given(inputs):
        _require_other_path(output, source, stage)
        if _is_inside(output, source) and (Path(source) / ZARR_METADATA).exists():
            raise LVTError(f"the output {output} is inside the code store {source}; choose an output outside of it")
    if output.is_dir():
        raise ArtefactError(f"{output} is a folder; give the name of a file")
    if not output.exists():
        return
    record = finished_record(output)
    _require_same_stage(output, stage, record)
    if record is None and not _has_mark(output, mark):
        raise ArtefactError(
            f"{output} exists and lvt {stage} did not write it; choose another output, or delete the file first"
        )


def _given(inputs: Iterable[Place | None]) -> list[Place]:
    return [source for source in inputs if isinstance(source, StoreURL) or (source is not None and source.exists())]


def _require_other_path(output: Place, source: Place, stage: str) -> None:
    is_same = _resolved(output) == _resolved(source)
    if isinstance(output, Path) and isinstance(source, Path) and output.exists():
        is_same = is_same or output.samefile(source)
    if is_same:
        raise LVTError(f"{output} is both an input and the output of lvt {stage}; choose another output")


def _is_inside(place: Place, folder: Place) -> bool:
    return _resolved(folder) in _resolved(place).parents


def _resolved(place: Place) -> Place:
    return place.resolve() if isinstance(place, Path) else place


def _require_same_stage(output: Place, stage: str, record: Provenance | None) -> None:
    if record is not None and record.stage != stage:
        raise ArtefactError(
            f"{output} was made by lvt {record.stage}, and lvt {stage} does not change it; choose another output, or "
            "delete it first"
        )


def _has_mark(file: Path, mark: bytes) -> bool:
    if not file.is_file():
        return False
    with open(file, "rb") as stream:
        head = stream.read(MARK_BYTES)
        stream.seek(max(0, file.stat().st_size - MARK_BYTES))
        return mark in head or mark in stream.read(MARK_BYTES)

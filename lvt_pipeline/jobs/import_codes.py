"""Stage `import-codes`: folders of NumPy codes, such as those of the paper's released code, into a code store.

A folder is looked through once: every `.npy` is a frame (two or three axes, in a folder that is the clip, its name the
frame number) or a whole clip (four axes), as `codes.exchange.npy` writes them. Codes that are not what they should be
are refused before a store is begun.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline import lineage
from lvt_pipeline.codes.exchange.npy import CLIPS_NAME, from_released
from lvt_pipeline.codes.schema import SHARD_FRAMES, CodeSchema, PlannedClip
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import ArtefactError, LVTError, MismatchError
from lvt_pipeline.interrupts import stop_requested
from lvt_pipeline.jobs.export import KIND as EXPORT_KIND
from lvt_pipeline.jobs.settings import ImportSettings
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import RECORD_NAME, Provenance, fingerprint, read_record
from lvt_pipeline.runs.read import load_vqvae
from lvt_pipeline.video.clips import SPLITS

STAGE = "import-codes"
VERSION = 1
FRAME_AXES, CLIP_AXES = (2, 3), 4


@dataclass(frozen=True)
class _Found:
    """A clip in the folder: one file, or its frames in order."""

    id: str
    files: tuple[Path, ...]
    is_frames: bool

    def read(self) -> NDArray[Any]:
        """Its codes, (T, h, w, n_c), in the type of the files."""
        if not self.is_frames:
            return _load(self.files[0])
        frames = [_load(file) for file in self.files]
        for file, frame in zip(self.files, frames, strict=True):
            if frame.shape != frames[0].shape or frame.dtype != frames[0].dtype:
                raise ArtefactError(
                    f"{file} is {frame.dtype} {frame.shape} but {self.files[0].name} beside it is {frames[0].dtype} "
                    f"{frames[0].shape}; the frames of a clip have one shape and type"
                )
        return np.stack([from_released(frame) for frame in frames])


def import_codes(
    folder: Path,
    out: Path,
    settings: ImportSettings = ImportSettings(),
    *,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Provenance:
    """Make the code store at `out` hold exactly the clips of `folder`.

    Args:
        folder: one `.npy` per frame in a folder per clip, or one per clip; what `lvt export` wrote carries splits,
            labels, frame rates, K and the tokenizer with it.
        tokenizer: the VQ-VAE run that made the codes, if there is one; else they are of a tokenizer of their own, and
            `lvt decode` refuses them.
        overwrite: start the store anew.

    Raises:
        ArtefactError: a file holds no codes, a frame is missing, or shapes differ; it is named.
        MismatchError: the codes are not of that tokenizer.
        StoreError: `out` holds something else.
        Stopped: a signal came; finished shards are kept.
    """
    started = time.monotonic()
    require_output_folder(out, STAGE, (folder, tokenizer))
    exported = _export_record(folder)
    codebook_size = _codebook_size(settings, exported)
    found = list(find_clips(folder))
    if not found:
        raise ArtefactError(f"{folder} holds no .npy file; give the folder that the folders of frames are in")
    planned, frame_shape, content = _look_through(folder, found, codebook_size, settings, progress)
    schema = CodeSchema(
        codebook_size=codebook_size,
        num_codebooks=frame_shape[2],
        grid=frame_shape[:2],
        tokenizer=_tokenizer(tokenizer, folder, exported, codebook_size, frame_shape),
        shard_frames=SHARD_FRAMES,
    )
    planned = [
        replace(clip, fingerprint=lineage.foreign_codes_fingerprint(clip.fingerprint, schema.tokenizer))
        for clip in planned
    ]
    by_id = {clip.id: clip for clip in found}
    with (
        stop_requested() as stop,
        CodeStoreWriter.open(
            out, schema, planned, settings={"stage": STAGE, "version": VERSION}, overwrite=overwrite
        ) as writer,
    ):
        shards = writer.pending_shards()
        with progress.bar("import", sum(shard.num_frames for shard in shards), "frames") as bar:
            for number, shard in enumerate(shards):
                stop.raise_if_set(f"{number} of {len(shards)} shards are finished")
                parts = [by_id[part.clip_id].read()[part.start : part.stop] for part in shard.parts]
                writer.write_shard(shard.index, np.concatenate([part.astype(schema.dtype) for part in parts]))
                bar.advance(shard.num_frames)
        return writer.publish(
            Provenance(
                kind="codes",
                stage=STAGE,
                version=VERSION,
                settings=to_plain(settings),
                inputs={"files": content, "tokenizer": schema.tokenizer},
                fingerprint="",  # the writer knows it
                counts={"clips": len(planned), "frames": sum(clip.length for clip in planned)},
                seconds=round(time.monotonic() - started, 3),
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        )


def find_clips(folder: Path) -> Iterator[_Found]:
    """The clips below a folder, by their first file's number of axes, in order of their ids.

    Raises:
        ArtefactError: it does not exist, a file is no array, or the numbers of a clip's frames have a gap.
    """
    if not folder.is_dir():
        raise ArtefactError(f"{folder} is not a folder; give the folder that the folders of frames are in")
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = sorted(Path(parent, name) for name in names if name.endswith(".npy") and not name.startswith("."))
        if not files:
            continue
        axes = _axes(files[0])
        if axes == CLIP_AXES:
            for file in files:
                yield _Found(file.relative_to(folder).with_suffix("").as_posix(), (file,), is_frames=False)
        elif axes in FRAME_AXES:
            if Path(parent) == folder:
                raise ArtefactError(
                    f"{files[0]} is a frame that lies in no folder of its own; give the folder above {folder}"
                )
            yield _Found(Path(parent).relative_to(folder).as_posix(), _in_order(files), is_frames=True)
        else:
            raise ArtefactError(
                f"{files[0]} has {axes} axes; a frame is (n_c, h, w) or (h, w), a clip (frames, h, w, n_c)"
            )


def _in_order(files: Sequence[Path]) -> tuple[Path, ...]:
    """Frames by number. Where they begin is free, a gap is not."""
    numbers: dict[int, Path] = {}
    for file in files:
        if not file.stem.isdecimal():
            raise ArtefactError(f"{file} is not named by a frame number, as the frames of a clip are")
        if int(file.stem) in numbers:
            raise ArtefactError(f"{file} and {numbers[int(file.stem)].name} are the same frame; remove one of them")
        numbers[int(file.stem)] = file
    first, last = min(numbers), max(numbers)
    missing = next((number for number in range(first, last) if number not in numbers), None)
    if missing is not None:
        raise ArtefactError(f"{files[0].parent} has frames {first} to {last} but not {missing}; extract them again")
    return tuple(numbers[number] for number in range(first, last + 1))


def _axes(file: Path) -> int:
    return _open(file, memory_map=True).ndim


def _load(file: Path) -> NDArray[Any]:
    return _open(file, memory_map=False)


def _open(file: Path, *, memory_map: bool) -> NDArray[Any]:
    try:
        array = np.load(file, mmap_mode="r" if memory_map else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ArtefactError(f"{file} cannot be read as an array ({reason}); extract it again") from error
    if not isinstance(array, np.ndarray):
        raise ArtefactError(f"{file} is no single array; extract it again")
    return array


def _look_through(
    folder: Path, found: Sequence[_Found], codebook_size: int, settings: ImportSettings, progress: Progress
) -> tuple[list[PlannedClip], tuple[int, int, int], str]:
    """Every clip checked, with the digest of its codes for a fingerprint; the shape of a frame; the digest of all."""
    listed = _listed(folder)
    planned: list[PlannedClip] = []
    frame_shape: tuple[int, int, int] | None = None
    dtype = CodeSchema(codebook_size=codebook_size, num_codebooks=1, grid=(1, 1), tokenizer="").dtype
    with progress.bar("look through", len(found), "clips") as bar:
        for clip in found:
            codes = clip.read()
            _check(codes, clip, codebook_size)
            shape = (codes.shape[1], codes.shape[2], codes.shape[3])
            frame_shape = frame_shape or shape
            if shape != frame_shape:
                raise ArtefactError(
                    f"{clip.files[0]} has frames of (h, w, n_c) = {shape} but those of clip {found[0].id} have "
                    f"{frame_shape}; a store holds one shape"
                )
            about = listed.get(clip.id, {})
            digest = hashlib.sha256(codes.astype(dtype.newbyteorder("<")).tobytes()).hexdigest()
            planned.append(
                PlannedClip(
                    id=clip.id,
                    split=about.get("split", _split_of(clip.id, settings.split)),
                    label=about.get("label"),
                    length=len(codes),
                    fingerprint=lineage.array_fingerprint(digest, codes.shape),
                    fps=about.get("fps", settings.fps),
                    source="",
                )
            )
            bar.advance()
    assert frame_shape is not None
    order = {clip_id: number for number, clip_id in enumerate(listed)}
    planned.sort(key=lambda clip: order.get(clip.id, len(order)))  # as exported; others stay in order of their ids
    return planned, frame_shape, fingerprint([[clip.id, clip.fingerprint] for clip in planned])


def _check(codes: NDArray[Any], clip: _Found, codebook_size: int) -> None:
    """Refuse what cannot be codes of that codebook."""
    where = clip.files[0].parent if clip.is_frames else clip.files[0]
    if codes.ndim != CLIP_AXES or not codes.size:
        raise ArtefactError(f"{where} holds an array of shape {codes.shape}, codes are (frames, h, w, n_c)")
    if not np.issubdtype(codes.dtype, np.integer):
        raise ArtefactError(f"{where} holds {codes.dtype}, codes are integers; these may be latents, not codes")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= codebook_size:
        raise ArtefactError(
            f"{where} holds codes from {low} to {high}, outside of [0, {codebook_size}); give the codebook size they "
            f"were made with (--codebook-size)"
        )


def _split_of(clip_id: str, otherwise: str) -> str:
    first = PurePosixPath(clip_id).parts[0]
    return first if first in SPLITS else otherwise


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """What the list of an export says about each clip, by id; empty without one."""
    path = folder / CLIPS_NAME
    listed: dict[str, dict[str, Any]] = {}
    if path.exists():
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            try:
                row = json.loads(line)
                listed[row["id"]] = {
                    "split": row["split"] if row["split"] in SPLITS else _refuse_split(row["split"]),
                    "label": None if row["label"] is None else str(row["label"]),
                    "fps": float(row["fps"]),
                }
            except (ValueError, KeyError, TypeError) as error:
                raise ArtefactError(f"{path}:{number} is no line of a list of clips ({error}); export again") from error
    return listed


def _refuse_split(split: Any) -> str:
    raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")


def _export_record(folder: Path) -> Provenance | None:
    if not (folder / RECORD_NAME).is_file():
        return None
    record = read_record(folder)
    return record if record.kind == EXPORT_KIND else None


def _codebook_size(settings: ImportSettings, exported: Provenance | None) -> int:
    if settings.codebook_size is not None:
        return settings.codebook_size
    if exported is None:
        raise LVTError(
            "the codes do not say how many there are; give --codebook-size (512 in the paper's released code)"
        )
    return int(exported.counts["codebook_size"])


def _tokenizer(
    run: Path | None,
    folder: Path,
    exported: Provenance | None,
    codebook_size: int,
    frame_shape: tuple[int, int, int],
) -> str:
    """Fingerprint of what made the codes: that of the run, else what the export says, else one of their own."""
    if run is not None:
        from lvt_pipeline.models.vqvae.model import tokenizer_fingerprint

        model = load_vqvae(run, device="cpu")
        if (model.codebook_size, model.num_codebooks) != (codebook_size, frame_shape[2]):
            raise MismatchError(
                f"{folder} has codes with K={codebook_size}, n_c={frame_shape[2]}, but {run} makes "
                f"K={model.codebook_size}, n_c={model.num_codebooks}; give the run that made the codes"
            )
        return tokenizer_fingerprint(model)
    if exported is not None:
        return exported.inputs["tokenizer"]
    return lineage.foreign_tokenizer_fingerprint(codebook_size, frame_shape)

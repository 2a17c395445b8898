"""Stage `import-codes`: folders of NumPy codes, such as those of the paper's released code, into a code store.

The folder is examined once: every `.npy` is a frame (two or three axes, in a folder that is the clip, its name the
frame number) or a whole clip (four axes), as `codes.exchange.npy` writes them. Wrong codes are refused before a store
is begun.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline import lineage
from lvt_pipeline.codes.array import side_arrays_of
from lvt_pipeline.codes.exchange.npy import CLIPS_NAME, from_released, read_npy
from lvt_pipeline.codes.exchange.units import clip_path
from lvt_pipeline.codes.plan import ShardPlan
from lvt_pipeline.codes.schema import SHARD_FRAMES, CodeSchema, PlannedClip, clip_fingerprints
from lvt_pipeline.codes.store import published_arrays
from lvt_pipeline.codes.writer import CodeStoreWriter
from lvt_pipeline.errors import ArtefactError, LVTError, MismatchError
from lvt_pipeline.frames.records import ArrayFacts, stored_rows
from lvt_pipeline.interrupts import stop_requested
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.jobs.export import KIND as EXPORT_KIND
from lvt_pipeline.jobs.settings import LARGEST_FPS, ImportSettings
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import RECORD_NAME, Provenance, fingerprint, read_record
from lvt_pipeline.runs.read import load_vqvae
from lvt_pipeline.storage import Place, describe_os_error, has_line_break, read_json_lines
from lvt_pipeline.video.clips import SPLITS

STAGE = "import-codes"
VERSION = 1
JOB = Job(stage=STAGE, version=VERSION, kind="codes")
FRAME_AXES, CLIP_AXES = (2, 3), 4


@dataclass(frozen=True)
class _Found:
    """A clip in the folder: one file, or its frames in order; and the files of its side arrays by name."""

    id: str
    files: tuple[Path, ...]
    is_frames: bool
    arrays: Mapping[str, Path] = field(default_factory=dict)

    def read(self) -> NDArray[Any]:
        """Its codes, (T, h, w, n_c), in the type of the files."""
        if not self.is_frames:
            return read_npy(self.files[0])
        frames = [read_npy(file) for file in self.files]
        for file, frame in zip(self.files, frames, strict=True):
            if frame.shape != frames[0].shape or frame.dtype != frames[0].dtype:
                raise ArtefactError(
                    f"{file} is {frame.dtype} {frame.shape} but {self.files[0].name} is {frames[0].dtype} "
                    f"{frames[0].shape}; the frames of a clip have one shape and type"
                )
        return np.stack([from_released(frame) for frame in frames])

    def read_array(self, name: str, num_frames: int) -> NDArray[Any]:
        """The rows of a side array, (T, d)."""
        rows = read_npy(self.arrays[name])
        if not rows.ndim or len(rows) != num_frames or rows.dtype.kind not in "biuf":
            raise ArtefactError(
                f"{self.arrays[name]} holds {rows.dtype} {rows.shape}, not a row of numbers for each of {num_frames} "
                "frames"
            )
        return stored_rows(rows)


def import_codes(
    folder: Path,
    out: Place,
    settings: ImportSettings = ImportSettings(),
    *,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Provenance:
    """Make the code store at `out` hold exactly the clips of `folder`.

    Args:
        folder: one `.npy` per frame in a folder per clip, or one per clip; a folder from `lvt export` also holds
            splits, labels, frame rates, K and the tokenizer.
        tokenizer: the VQ-VAE run that made the codes, if there is one; otherwise they count as codes of an unknown
            tokenizer, and `lvt decode` refuses them.
        overwrite: start the store again.

    Raises:
        ArtefactError: a file holds no codes, a frame is missing, or shapes differ; it is named.
        MismatchError: the codes are not of that tokenizer.
        StoreError: `out` holds something else.
        Stopped: a signal came; finished shards are kept.
    """
    clock = Clock()
    require_output_folder(out, STAGE, (folder, tokenizer))
    exported = _export_record(folder)
    codebook_size = _codebook_size(settings, exported)
    listed = _listed(folder)
    found = _found(folder, listed)
    planned, frame_shape, facts = _examined(found, listed, codebook_size, settings, progress)
    schema = CodeSchema(
        arrays=side_arrays_of(facts.items(), () if overwrite else published_arrays(out), folder),
        codebook_size=codebook_size,
        num_codebooks=frame_shape[2],
        grid=frame_shape[:2],
        tokenizer=_tokenizer(tokenizer, folder, exported, codebook_size, frame_shape),
        shard_frames=SHARD_FRAMES,
    )
    content = fingerprint([[clip.id, clip.fingerprint, *map(asdict, facts[clip.id].values())] for clip in planned])
    planned = [_with_arrays(clip, facts[clip.id], schema) for clip in planned]
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
                writer.write_shard(shard.index, *_content_of(shard, schema, by_id))
                bar.advance(shard.num_frames)
        counts = {"clips": len(planned), "frames": sum(clip.length for clip in planned)}
        inputs = {"files": content, "tokenizer": schema.tokenizer}
        return writer.publish(JOB.recorder(settings, inputs, clock).new_record(counts=counts))


def _with_arrays(clip: PlannedClip, facts: Mapping[str, ArrayFacts], schema: CodeSchema) -> PlannedClip:
    """A clip, whose fingerprint was that of its codes alone, with those of the store."""
    codes = lineage.foreign_codes_fingerprint(clip.fingerprint, schema.tokenizer)
    made_of = clip_fingerprints(codes, facts, schema)
    return replace(clip, fingerprint=made_of["fingerprint"], codes=made_of.get("codes", ""))


def _content_of(
    shard: ShardPlan, schema: CodeSchema, clips: Mapping[str, _Found]
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """The codes of a shard, and its rows of each side array."""
    codes = [clips[part.clip_id].read()[part.start : part.stop].astype(schema.dtype) for part in shard.parts]
    rows: dict[str, list[NDArray[Any]]] = {array.name: [] for array in schema.arrays}
    for part, array in product(shard.parts, schema.arrays):
        of_clip, of_part = clips[part.clip_id].arrays, array.empty_rows(part.stop - part.start)
        if array.name in of_clip:
            of_part[:] = stored_rows(read_npy(of_clip[array.name]))[part.start : part.stop]
        rows[array.name].append(of_part)
    return np.concatenate(codes), {name: np.concatenate(parts) for name, parts in rows.items()}


def _found(folder: Path, listed: Collection[str]) -> list[_Found]:
    """The clips below a folder. Export shortens long names; the ids in its list replace them."""
    ids = {clip_path(clip_id): clip_id for clip_id in listed}
    found = [replace(clip, id=ids.get(clip.id, clip.id)) for clip in find_clips(folder)]
    if not found:
        raise ArtefactError(f"{folder} holds no .npy file; give the folder that the folders of frames are in")
    return found


def find_clips(folder: Path) -> Iterator[_Found]:
    """The clips below a folder, by their first file's number of axes, in order of their ids.

    Raises:
        ArtefactError: it does not exist, a file is not an array, a name breaks a line, or a frame number is missing.
    """
    if not folder.is_dir():
        raise ArtefactError(f"{folder} is not a folder; give the folder that the folders of frames are in")
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = sorted(Path(parent, name) for name in names if name.endswith(".npy") and not name.startswith("."))
        for file in files:
            if has_line_break(str(file)):
                raise ArtefactError(f"the name {str(file)!r} has a line break or control character in it; rename it")
        if files:
            yield from _clips_in(folder, Path(parent), files)


def _refuse(error: OSError) -> None:
    raise describe_os_error(error, f"reading {error.filename}")


def _clips_in(folder: Path, parent: Path, files: Sequence[Path]) -> Iterator[_Found]:
    """The clips that the files of one folder are: one of their frames, or one each."""
    arrays = _arrays_of(files)
    rows = {file for of_clip in arrays.values() for file in of_clip.values()}
    files = [file for file in files if file not in rows]
    axes = read_npy(files[0]).ndim
    if axes == CLIP_AXES:
        for file in files:
            clip_id = file.relative_to(folder).with_suffix("").as_posix()
            yield _Found(clip_id, (file,), is_frames=False, arrays=arrays.get(file, {}))
    elif axes in FRAME_AXES:
        if parent == folder:
            raise ArtefactError(f"{files[0]} is a frame without a folder of its own; give the parent of {folder}")
        yield _Found(parent.relative_to(folder).as_posix(), _in_order(files), is_frames=True)
    else:
        raise ArtefactError(f"{files[0]} has {axes} axes; a frame is (n_c, h, w) or (h, w), a clip (frames, h, w, n_c)")


def _arrays_of(files: Sequence[Path]) -> dict[Path, dict[str, Path]]:
    """The files of side arrays, `ID.NAME.npy` next to the clip `ID.npy`, by that file and by name."""
    found: dict[Path, dict[str, Path]] = {}
    known = {*files}
    for file in files:
        clip, _, name = file.stem.rpartition(".")
        of_clip = file.with_name(f"{clip}.npy")
        if of_clip in known and read_npy(file).ndim != CLIP_AXES:
            found.setdefault(of_clip, {})[name] = file
    return found


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


def _examined(
    found: Sequence[_Found],
    listed: Mapping[str, Mapping[str, Any]],
    codebook_size: int,
    settings: ImportSettings,
    progress: Progress,
) -> tuple[list[PlannedClip], tuple[int, int, int], dict[str, dict[str, ArrayFacts]]]:
    """Every clip checked, with the digest of its codes for a fingerprint; the shape of a frame; side arrays by clip."""
    planned: list[PlannedClip] = []
    facts: dict[str, dict[str, ArrayFacts]] = {}
    frame_shape: tuple[int, int, int] | None = None
    dtype = CodeSchema(codebook_size=codebook_size, num_codebooks=1, grid=(1, 1), tokenizer="").dtype
    with progress.bar("look through", len(found), "clips") as bar:
        for clip in found:
            codes = clip.read()
            _check(codes, clip, codebook_size)
            frame_shape = _shape_of_frames(codes, clip, found[0], frame_shape)
            facts[clip.id] = {name: ArrayFacts.of(clip.read_array(name, len(codes))) for name in clip.arrays}
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
    return planned, frame_shape, facts


def _shape_of_frames(
    codes: NDArray[Any], clip: _Found, first: _Found, known: tuple[int, int, int] | None
) -> tuple[int, int, int]:
    """(h, w, n_c) of the frames of a clip, which must be that of the first clip if it is known."""
    shape = (codes.shape[1], codes.shape[2], codes.shape[3])
    if shape != (known or shape):
        raise ArtefactError(
            f"{clip.files[0]} has frames of (h, w, n_c) = {shape} but those of clip {first.id} have {known}; a store "
            "holds one shape"
        )
    return shape


def _check(codes: NDArray[Any], clip: _Found, codebook_size: int) -> None:
    """Refuse what cannot be codes of that codebook."""
    where = clip.files[0].parent if clip.is_frames else clip.files[0]
    if codes.ndim != CLIP_AXES or not codes.size:
        raise ArtefactError(f"{where} holds an array of shape {codes.shape}, codes are (frames, h, w, n_c)")
    if codes.dtype.kind not in "iu":  # numpy counts time differences as integers
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
    """Split, label and frame rate of each clip in the list of an export, by id; empty without one."""
    path = folder / CLIPS_NAME
    listed: dict[str, dict[str, Any]] = {}
    for number, row in read_json_lines(path) if path.exists() else []:
        clip_id, split, label, fps = (row.get(name) for name in ("id", "split", "label", "fps"))
        is_clip = isinstance(clip_id, str) and isinstance(label, str | None) and split in SPLITS
        if not is_clip or type(fps) not in (int, float) or not 0 < cast("float", fps) <= LARGEST_FPS:
            raise ArtefactError(
                f"{path}:{number} does not have the id, split, label and fps of a clip; run lvt export again"
            )
        listed[str(clip_id)] = {"split": split, "label": label, "fps": float(cast("float", fps))}
    return listed


def _export_record(folder: Path) -> Provenance | None:
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    record = read_record(folder)
    if record.kind != EXPORT_KIND:
        return None
    if type(record.counts.get("codebook_size")) is not int or not isinstance(record.inputs.get("tokenizer"), str):
        raise ArtefactError(f"{path} does not hold the codebook size and the tokenizer; run lvt export again")
    return record


def _codebook_size(settings: ImportSettings, exported: Provenance | None) -> int:
    if settings.codebook_size is not None:
        return settings.codebook_size
    if exported is None:
        raise LVTError("the files do not hold the codebook size; give --codebook-size (512 in the released code)")
    return int(exported.counts["codebook_size"])


def _tokenizer(
    run: Path | None, folder: Path, exported: Provenance | None, codebook_size: int, frame_shape: tuple[int, int, int]
) -> str:
    """Fingerprint of what made the codes: that of the run, else that in the export, else one of their own."""
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

"""Stage `export`: a code store in the files of other tools (`codes.exchange`).

An export is a folder of units, files or folders that appear whole. `export.json` holds the fingerprint of each unit and
is written before the first of them. So a unit that exists is finished, and running the command again writes only units
that are missing, or that a changed store has changed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from lvt_pipeline.codes.exchange.memmap import memmap_units
from lvt_pipeline.codes.exchange.npy import clip_units, frame_units
from lvt_pipeline.codes.exchange.parquet import parquet_units
from lvt_pipeline.codes.exchange.tars import tar_units
from lvt_pipeline.codes.exchange.units import Unit
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.jobs.settings import ExportSettings
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import Provenance, fingerprint
from lvt_pipeline.storage import TEMPORARY_SUFFIX, Place, read_json, remove_leftovers, write_json

STAGE = "export"
VERSION = 1
KIND = "exported-codes"
JOB = Job(stage=STAGE, version=VERSION, kind=KIND)
PLAN_NAME = "export.json"


def export_codes(
    codes: Place,
    out: Path,
    settings: ExportSettings = ExportSettings(),
    *,
    generation: int | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Provenance:
    """Write the codes of a store into `out`, in another format.

    Args:
        codes: code store, of real or of sampled clips.
        out: new folder, or one this function made: files that are still right stay, others are replaced or removed.
        generation: which generation of the store, the current one by default.
        overwrite: write everything again.

    Raises:
        StoreError: the store cannot be read.
        ArtefactError: `out` holds other things.
        LVTError: the split is empty, an id cannot be the name of a file, or a package that the format needs is missing.
        Stopped: a signal came; finished files are kept.
    """
    clock = Clock()
    require_output_folder(out, STAGE, (codes,))
    store = open_codes(codes, generation)
    clips = [clip for clip in store.clips if settings.split in (None, clip.split)]
    if not clips:
        raise LVTError(f"{codes} has no clip in split {settings.split}; leave the split out for all")
    units = _units(store, clips, settings)
    wanted = {unit.name: unit.fingerprint for unit in units}
    inputs = {"codes": store.fingerprint, "tokenizer": store.tokenizer}
    with JOB.open_folder(out, settings, inputs, overwrite=overwrite, is_ours=_has_plan, clock=clock) as work:
        old = _plan_of(out)
        missing = [unit for unit in units if overwrite or not _is_there(out, unit, old, work.old)]
        if not missing and old == wanted and work.is_current:
            return work.record
        work.begin()
        _remove(out, [name for name in old if name not in wanted] + [unit.name for unit in missing])
        for folder in {out, *((out / name).parent for name in [*old, *wanted])}:
            remove_leftovers(folder)
        write_json(out / PLAN_NAME, {"format": settings.format, "units": wanted})
        num_frames = sum(unit.num_frames for unit in units)
        done = num_frames - sum(unit.num_frames for unit in missing)
        with progress.bar("export", num_frames, "frames", done=done) as bar:
            for unit in missing:
                work.stop.raise_if_set(f"finished files are in {out}")
                unit.write(out / unit.name)
                bar.advance(unit.num_frames)
        outputs = {name: (out / name).stat().st_size for name in [*wanted, PLAN_NAME] if (out / name).is_file()}
        counts = {
            "clips": len(clips),
            "frames": sum(clip.length for clip in clips),
            "codebook_size": store.codebook_size,
            "num_codebooks": store.num_codebooks,
            "generation": store.generation,
        }
        return work.finish(fingerprint(wanted), outputs, counts)


def _units(store: CodeStore, clips: Sequence[CodeClip], settings: ExportSettings) -> list[Unit]:
    match settings.format:
        case "npy":
            return list(clip_units(store, clips))
        case "npy-frames":
            return list(frame_units(store, clips))
        case "memmap":
            return list(memmap_units(store, clips))
        case "webdataset":
            return list(tar_units(store, clips, settings.clips_per_file))
        case "parquet":
            return list(parquet_units(store, clips, settings.clips_per_file))


def _has_plan(names: Set[str]) -> bool:
    return PLAN_NAME in names


def _plan_of(out: Path) -> Mapping[str, str]:
    """Fingerprint of each unit that an earlier run wrote or began to write, by name."""
    if not (out / PLAN_NAME).exists():
        return {}
    plan = read_json(out / PLAN_NAME)
    units = plan.get("units") if isinstance(plan, dict) else None
    if (
        not isinstance(units, dict)
        or not all(isinstance(made_of, str) for made_of in units.values())
        or any(Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name for name in units)
    ):
        raise ArtefactError(f"{out / PLAN_NAME} is damaged or was not written by lvt export; choose a new folder")
    return dict(units)


def _is_there(out: Path, unit: Unit, plan: Mapping[str, str], record: Provenance | None) -> bool:
    """Whether a unit is finished, of the same fingerprint, and of the size it was written with as far as known."""
    path = out / unit.name
    if plan.get(unit.name) != unit.fingerprint or not path.exists():
        return False
    size = record.outputs.get(unit.name) if record else None
    return size is None or path.stat().st_size == size


def _remove(out: Path, names: Sequence[str]) -> None:
    """Remove units of an earlier run, and folders that are empty then."""
    for name in names:
        path = out / name
        if path.is_dir():
            going = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
            os.replace(path, going)  # at no moment does half a folder look like a whole one
            shutil.rmtree(going)
        else:
            path.unlink(missing_ok=True)
        for folder in Path(name).parents:
            if folder.parts and (out / folder).is_dir() and not any((out / folder).iterdir()):
                (out / folder).rmdir()

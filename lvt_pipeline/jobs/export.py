"""Stage `export`: a code store in the files of other tools (`codes.exchange`).

An export is a folder of units, files or folders that appear whole. `export.json` says what each unit is made of, and is
there before the first of them. So a unit that lies there is finished, and running the command again writes only what is
missing, or what a changed store has changed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from lvt_pipeline.codes.exchange.memmap import memmap_units
from lvt_pipeline.codes.exchange.npy import clip_units, frame_units
from lvt_pipeline.codes.exchange.parquet import parquet_units
from lvt_pipeline.codes.exchange.tars import tar_units
from lvt_pipeline.codes.exchange.units import Unit
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import ArtefactError, LVTError
from lvt_pipeline.interrupts import stop_requested
from lvt_pipeline.jobs.settings import ExportSettings
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import RECORD_NAME, Provenance, differences, fingerprint, read_record, write_record
from lvt_pipeline.storage import TEMPORARY_SUFFIX, exclusive_lock, read_json, remove_leftovers, write_json

STAGE = "export"
VERSION = 1
KIND = "exported-codes"
PLAN_NAME = "export.json"


def export_codes(
    codes: Path,
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
        out: new folder, or one this function made: what is still right stays, the rest is replaced or removed.
        generation: which generation of the store, the current one by default.
        overwrite: write everything again.

    Raises:
        StoreError: the store cannot be read.
        ArtefactError: `out` holds other things.
        LVTError: the split is empty, an id is no name for a file, or a package that the format needs is missing.
        Stopped: a signal came; what is finished is kept.
    """
    started = time.monotonic()
    require_output_folder(out, STAGE, (codes,))
    store = open_codes(codes, generation)
    clips = [clip for clip in store.clips if settings.split in (None, clip.split)]
    if not clips:
        raise LVTError(f"{codes} has no clip in split {settings.split}; leave the split out for all")
    units = _units(store, clips, settings)
    inputs = {"codes": store.fingerprint, "tokenizer": store.tokenizer}
    with exclusive_lock(out), stop_requested() as stop:
        old, record = _plan_of(out), _record_of(out)
        wanted = {unit.name: unit.fingerprint for unit in units}
        missing = [unit for unit in units if overwrite or not _is_there(out, unit, old, record)]
        is_complete = not missing and old == wanted
        if record is not None and is_complete and not differences(record, VERSION, to_plain(settings), inputs):
            return record
        (out / RECORD_NAME).unlink(missing_ok=True)  # until this run has finished, the folder is not
        _remove(out, [name for name in old if name not in wanted] + [unit.name for unit in missing])
        for folder in {out, *((out / name).parent for name in [*old, *wanted])}:
            remove_leftovers(folder)
        write_json(out / PLAN_NAME, {"format": settings.format, "units": wanted})
        num_frames = sum(unit.num_frames for unit in units)
        done = num_frames - sum(unit.num_frames for unit in missing)
        with progress.bar("export", num_frames, "frames", done=done) as bar:
            for unit in missing:
                stop.raise_if_set(f"what is finished is in {out}")
                unit.write(out / unit.name)
                bar.advance(unit.num_frames)
        outputs = {name: (out / name).stat().st_size for name in [*wanted, PLAN_NAME] if (out / name).is_file()}
        record = Provenance(
            kind=KIND,
            stage=STAGE,
            version=VERSION,
            settings=to_plain(settings),
            inputs=inputs,
            fingerprint=fingerprint(wanted),
            outputs=outputs,
            counts={
                "clips": len(clips),
                "frames": sum(clip.length for clip in clips),
                "codebook_size": store.codebook_size,
                "num_codebooks": store.num_codebooks,
                "generation": store.generation,
                "written": len(missing),
            },
            seconds=round(time.monotonic() - started, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_record(out, record)
    return record


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


def _plan_of(out: Path) -> Mapping[str, str]:
    """What an earlier run wrote, or began to write: fingerprint of each unit by name.

    Raises:
        ArtefactError: the folder is not empty and not ours.
    """
    if (out / PLAN_NAME).exists():
        plan = read_json(out / PLAN_NAME)
        units = plan.get("units") if isinstance(plan, dict) else None
        if isinstance(units, dict) and not any(Path(name).is_absolute() or ".." in Path(name).parts for name in units):
            return {str(name): str(made_of) for name, made_of in units.items()}
    remove_leftovers(out)
    if any(out.iterdir()):
        raise ArtefactError(f"{out} is a folder with other things in it; choose a new folder for the export")
    return {}


def _record_of(out: Path) -> Provenance | None:
    return read_record(out) if (out / RECORD_NAME).exists() else None


def _is_there(out: Path, unit: Unit, plan: Mapping[str, str], record: Provenance | None) -> bool:
    """Whether a unit lies there, made of the same things, with the size it was written with as far as that is known."""
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

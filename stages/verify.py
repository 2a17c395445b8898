"""lvt verify: check every byte of a code store or of frames, and whether the codes are those of the frames."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lvt_pipeline.progress import count_of, format_seconds
from lvt_pipeline.settings import setting
from lvt_pipeline.storage import Place
from stages.command import stage_command
from stages.console import Console, Result
from stages.options import AT, DEVICE, WORKERS

if TYPE_CHECKING:
    from lvt_pipeline.evaluation.recheck_codes import DecodeReport


@stage_command("verify")
def command(
    store: Place,
    *,
    num_clips: int | None = setting(
        None, "Number of random clips to encode and decode again.", at_least=1, option="--decode"
    ),
    vqvae: Path | None = setting(None, "VQ-VAE run that made the codes; for --decode."),
    frames: Place | None = setting(None, "Frame folder that was encoded; for --decode."),
    repair: bool = setting(
        False,
        "Repair. Code store: rebuild damaged metadata from its other files first. Frames: make damaged shards again.",
    ),
    manifest: Path | None = setting(None, "Manifest that the frames were made from; to repair frames."),
    workers: int | None = WORKERS,
    seed: int = setting(0, "Random seed of the choice of clips.", at_least=0),
    at: int | None = AT,
    device: str = DEVICE,
) -> Result:
    """Compare every file of a code store with its checksum, its clip tables with the array, and its codes with K.

    Given a folder of frames instead, compare every frame shard with its receipt.

    Prints one line per problem, with the clips it touches; exit code 1 when there is one. --repair restores metadata;
    damaged codes are made again by the command that made the store (`lvt encode-dataset --repair`), and damaged frames
    from their videos (--repair with --manifest).

    Example: lvt verify data.zarr --decode 8 --vqvae runs/vqvae --frames frames

    Example: lvt verify frames --repair --manifest clips.jsonl
    """
    from lvt_pipeline.frames.verify import is_frames_folder

    if is_frames_folder(store):
        if repair and manifest is None:
            raise click.UsageError("--repair of frames needs --manifest")
        return _verify_frames(store, manifest if repair else None, workers)
    decode: Callable[[], DecodeReport] | None = None
    if num_clips is not None:
        if vqvae is None or frames is None:
            raise click.UsageError("--decode needs --vqvae and --frames")
        decode = partial(_decode, store, frames, vqvae, num_clips, seed, at, device)
    return _verify_store(store, repair, at, decode)


def _decode(
    store: Place, frames: Place, vqvae: Path, num_clips: int, seed: int, at: int | None, device: str
) -> DecodeReport:
    from lvt_pipeline.evaluation.recheck_codes import verify_codes

    return verify_codes(store, frames, vqvae, num_clips, seed=seed, generation=at, device=device, progress=Console())


def _verify_store(store: Place, repair: bool, at: int | None, decode: Callable[[], DecodeReport] | None) -> Result:
    """Check a code store; if its files are sound, `decode`, where there is one, checks its codes."""
    from lvt_pipeline.codes.upkeep.repair import repair_store
    from lvt_pipeline.codes.verify import verify_store
    from lvt_pipeline.errors import StoreError

    started = time.monotonic()
    repaired = repair_store(store) if repair else []
    report = verify_store(store, at, progress=Console())
    problems = list(report.problems)
    facts: dict[str, Any] = {**report.to_json(), "repaired": repaired}
    decoded = None if problems or decode is None else decode()
    if decoded is not None:
        problems += decoded.problems
        facts["decoded"] = decoded.to_json()
    facts["problems"] = [
        {"file": problem.file, "message": problem.message, "clips": problem.clips} for problem in problems
    ]
    facts["seconds"] = round(time.monotonic() - started, 3)
    read = f"{count_of(report.files, 'file')}, {report.bytes / 2**20:,.1f} MiB, {count_of(report.clips, 'clip')}"
    if problems:
        lines = [*(problem.line() for problem in problems), *report.notes]
        touched = len({clip for problem in problems for clip in problem.clips})
        count = f"{count_of(len(problems), 'problem')} touching {count_of(touched, 'clip')}"
        return Result(facts, "\n".join(lines), StoreError(f"{store} has {count} ({read} checked)"))
    lines = [*(f"repaired {name}" for name in repaired), *report.notes]
    lines.append(f"{store} is sound: {read}{_decoded_facts(decoded)}, in {format_seconds(facts['seconds'])}")
    return Result(facts, "\n".join(lines))


def _verify_frames(root: Place, manifest: Path | None, workers: int | None) -> Result:
    """Check frames; with a manifest, make damaged shards again."""
    from lvt_pipeline.errors import ArtefactError
    from lvt_pipeline.frames.verify import verify_frames
    from lvt_pipeline.jobs.ingest.repair import repair_frames

    if manifest is None:
        report = verify_frames(root, progress=Console())
    else:
        report = repair_frames(root, manifest, num_workers=workers, progress=Console())
    lines = [f"{problem.shard}: {problem.message}" for problem in report.problems]
    read = f"{count_of(report.shards, 'shard')}, {report.num_bytes / 2**20:,.1f} MiB, {count_of(report.clips, 'clip')}"
    if manifest is not None and lines:
        lines.append(f"{root} is sound again: {len(report.problems)} of {report.shards} shards were made again")
    elif not lines:
        lines.append(f"{root} is sound: {read}")
    facts = {**asdict(report), "repaired": manifest is not None and bool(report.problems)}
    error = None
    if report.problems and manifest is None:
        touched = len({clip for problem in report.problems for clip in problem.clips})
        error = ArtefactError(
            f"{root} has {count_of(len(report.problems), 'damaged shard')} touching {count_of(touched, 'clip')} "
            f"({read} checked); repair with `lvt verify {root} --repair --manifest CLIPS.jsonl`"
        )
    return Result(facts, "\n".join(lines), error)


def _decoded_facts(decoded: DecodeReport | None) -> str:
    if decoded is None:
        return ""
    parts = [f"{count_of(len(decoded.checked), 'clip')} decoded again"]
    if decoded.same_codes is not None:
        parts.append(f"{decoded.same_codes:.4%} of their codes equal")
    if decoded.psnr is not None:
        parts.append(f"{decoded.psnr:.2f} dB PSNR")
    if decoded.skipped:
        parts.append(f"{len(decoded.skipped)} skipped because their frames have changed")
    return "; " + ", ".join(parts)

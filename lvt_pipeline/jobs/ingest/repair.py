"""Repair of damaged frame shards from their videos. A shard is replaced in one step, once its successor is whole."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.config import build
from lvt_pipeline.errors import ArtefactError, MismatchError
from lvt_pipeline.frames.verify import FramesReport, verify_frames
from lvt_pipeline.jobs.ingest.ingest import ingest
from lvt_pipeline.jobs.ingest.settings import STAGE, IngestSettings
from lvt_pipeline.manifest.manifest import manifest_fingerprint, read_manifest
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import read_record, short
from lvt_pipeline.storage import Place


def repair_frames(
    root: Place, manifest: Path, *, num_workers: int | None = None, progress: Progress = SILENT
) -> FramesReport:
    """Check a folder of frames and make its damaged shards again, with the settings it was made with.

    Args:
        manifest: the manifest that the frames were made from.
        num_workers: decoding processes, as for `ingest`.

    Returns:
        The report of the check before the repair.

    Raises:
        ArtefactError: the frames were not made by `lvt ingest`, or a shard is damaged still.
        MismatchError: the frames were made from another manifest.
    """
    report = verify_frames(root, progress=progress)
    if not report.problems:
        return report
    record = read_record(root)
    if record.stage != STAGE:
        raise ArtefactError(f"{root} was made by lvt {record.stage}, not from videos; make it again with that command")
    listed = manifest_fingerprint(read_manifest(manifest))
    if listed != record.inputs.get("manifest"):
        raise MismatchError(
            f"{root} was made from manifest {short(record.inputs.get('manifest', 'unknown'))} but {manifest} is "
            f"{short(listed)}; give the right manifest, or bring the frames up to date with `lvt ingest`"
        )
    settings = build(IngestSettings, dict(record.settings), where=str(root))
    damaged = frozenset(problem.shard for problem in report.problems)
    ingest(manifest, root, settings, num_workers=num_workers, max_failures=1.0, damaged=damaged, progress=progress)
    left = verify_frames(root, progress=progress).problems
    if left:
        raise ArtefactError(f"{root / left[0].shard} is still damaged after the repair: {left[0].message}")
    return report

"""lvt compact: move live clips out of partly dead shards, so that `lvt gc` can delete those."""

from __future__ import annotations

from lvt_pipeline.progress import count_of
from lvt_pipeline.settings import setting
from lvt_pipeline.storage import Place
from stages.command import stage_command
from stages.console import Console, Result


@stage_command("compact")
def command(
    store: Place,
    *,
    min_dead: float = setting(0.0, "Skip shards whose dead fraction is at most this.", at_least=0, at_most=1),
    dry_run: bool = setting(False, "Print the clips that would be moved, and stop."),
) -> Result:
    """Copy the live codes of partly dead shards into new shards and publish a generation. Other shards are not touched.

    Older generations stay readable, and keep their space, until `lvt gc --apply`. Run again after an interruption.

    Example: lvt compact data.zarr
    """
    from lvt_pipeline.codes.upkeep.compaction import compact_store

    report = compact_store(store, min_dead=min_dead, dry_run=dry_run, progress=Console())
    if not report.shards:
        line = f"{store} has no shard worth moving"
    else:
        done = "would move" if dry_run else "moved"
        after = "" if dry_run else f" -> generation {report.generation}; lvt gc {store} --apply deletes the old shards"
        line = (
            f"{done} {count_of(report.clips, 'clip')} ({count_of(report.frames, 'frame')}) out of "
            f"{count_of(len(report.shards), 'shard')} with "
            f"{count_of(report.dead_frames, 'dead frame')}{after}"
        )
    return Result(report.to_json(), line)

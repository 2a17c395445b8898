"""What a path is, what made it and what is in it: `lvt inspect`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lvt_pipeline.data.codes import is_unfinished, root_attributes
from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.provenance import ZARR_METADATA, Provenance, missing_outputs, read_record, record_path, short
from lvt_pipeline.runs import METRICS_NAME, RUN_NAME, read_run

INSPECTABLE = "give a manifest, frames, a run, a code store, videos or a work directory"


def inspect_artefact(path: Path) -> dict[str, Any]:
    """Facts about any artefact of the pipeline.

    Returns:
        kind, path, is_finished, `made_by` (the provenance record, if there is one), `contents` (by kind), `problems`.

    Raises:
        ArtefactError: the path does not exist or is nothing that lvt makes.
    """
    if not path.exists():
        raise ArtefactError(f"{path} does not exist; {INSPECTABLE}")
    record = _record(path)
    kind = record.kind if record else _guess(path)
    reader = _READERS.get(kind)
    if reader is None:
        raise ArtefactError(f"{path} is nothing that lvt makes; {INSPECTABLE}")
    problems = [f"{name} is missing or has another size" for name in missing_outputs(path, record)] if record else []
    return {
        "kind": kind,
        "path": str(path),
        "is_finished": record is not None or kind == "work-dir",
        "made_by": record.to_json() if record else None,
        "contents": reader(path, record),
        "problems": problems,
    }


def describe(facts: dict[str, Any]) -> str:
    """The facts as a page of text for people."""
    lines = [f"{facts['path']}: {facts['kind']}" + ("" if facts["is_finished"] else " (unfinished)")]
    lines += _table(facts["contents"])
    made_by = facts["made_by"]
    if made_by:
        lines.append(f"made by lvt {made_by['stage']} (lvt {made_by['lvt_version']}), {made_by['finished']}, "
                     f"{made_by['seconds']:.1f} s")  # fmt: skip
        lines.append(f"  fingerprint  {short(made_by['fingerprint'])}")
        lines += [f"  input        {role} {short(value)}" for role, value in made_by["inputs"].items()]
        lines += [f"  setting      {name} = {value}" for name, value in _flat(made_by["settings"])]
    lines += [f"PROBLEM: {problem}" for problem in facts["problems"]]
    return "\n".join(lines)


def _record(path: Path) -> Provenance | None:
    if not (path / ZARR_METADATA).exists() and not record_path(path).exists():
        return None
    try:
        return read_record(path)
    except ArtefactError:
        if (path / ZARR_METADATA).exists():
            return None
        raise


def _guess(path: Path) -> str:
    """The kind of an output that has no record (unfinished, or written by hand)."""
    if path.is_file():
        return "manifest" if path.suffix == ".jsonl" else "unknown"
    if (path / "pipeline.toml").exists():
        return "work-dir"
    if (path / ZARR_METADATA).exists():
        root_attributes(path)  # names what is wrong with it
        return "codes"
    if is_unfinished(path):
        return "codes"
    if (path / RUN_NAME).exists():
        return str(read_run(path)["kind"])
    if any(path.glob("*-[0-9][0-9][0-9][0-9][0-9][0-9].json")):
        return "frames"
    return "unknown"


def _manifest(path: Path, record: Provenance | None) -> dict[str, Any]:
    from lvt_pipeline.data.manifest import read_manifest

    clips = read_manifest(path)
    return {
        "clips": len(clips),
        "splits": dict(Counter(clip.split for clip in clips)),
        "labels": len({clip.label for clip in clips} - {None}),
        "first": clips[0].id,
    }


def _frames(path: Path, record: Provenance | None) -> dict[str, Any]:
    from lvt_pipeline.data.frames import FrameShards

    if record is None:
        return {"finished_shards": len(list(path.glob("*-[0-9][0-9][0-9][0-9][0-9][0-9].json")))}
    shards = FrameShards(path)
    first = shards.clips[0] if shards.clips else None
    return {
        "clips": len(shards.clips),
        "frames": shards.num_frames,
        "frame_shape": [first.height, first.width, 3] if first else None,
        "codec": first.codec if first else None,
        "splits": dict(Counter(clip.split for clip in shards.clips)),
        "decoders": dict(Counter(clip.decoder for clip in shards.clips)),
        "failures": dict(Counter(failure.reason for failure in shards.failures)),
        "bytes": sum(file.stat().st_size for file in path.glob("*.tar")),
    }


def _codes(path: Path, record: Provenance | None) -> dict[str, Any]:
    from lvt_pipeline.data.codes import open_codes

    if record is None:
        return {"generation": 0, "pending": (path / "pending").exists()}
    store = open_codes(path)
    stored = sum(file.stat().st_size for file in (path / "codes" / "c").rglob("*") if file.is_file())
    num_codes = store.num_frames * store.grid[0] * store.grid[1] * store.num_codebooks
    lengths = [clip.length for clip in store.clips]
    return {
        "clips": len(store.clips),
        "frames": store.num_frames,
        "array": [store.array_frames, *store.grid, store.num_codebooks],
        "dtype": str(store.dtype),
        "codebook_size": store.codebook_size,
        "tokenizer": short(store.tokenizer),
        "clip_frames": {"shortest": min(lengths), "longest": max(lengths)} if lengths else {},
        "splits": dict(Counter(clip.split for clip in store.clips)),
        "generation": store.generation,
        "generations": store.generations,
        "bytes": stored,
        "bits_per_code": round(8 * stored / num_codes, 3) if num_codes else None,
    }


def _run(path: Path, record: Provenance | None) -> dict[str, Any]:
    from lvt_pipeline.engine.checkpoints import list_checkpoints

    state = read_run(path)
    facts = {name: state[name] for name in ("status", "step", "max_steps", "started", "updated")}
    facts["checkpoints"] = [checkpoint.step for checkpoint in list_checkpoints(path)]
    metrics = path / METRICS_NAME
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    facts["last_metrics"] = json.loads(lines[-1]) if lines else None
    return {**facts, **(dict(record.counts) if record else {})}


def _videos(path: Path, record: Provenance | None) -> dict[str, Any]:
    return dict(record.counts) if record else {}


def _work_dir(path: Path, record: Provenance | None) -> dict[str, Any]:
    from lvt_pipeline.pipeline import open_pipeline

    return {state.name: state.state for state in open_pipeline(path).states()}


_READERS: dict[str, Callable[[Path, Provenance | None], dict[str, Any]]] = {
    "manifest": _manifest,
    "frames": _frames,
    "codes": _codes,
    "vqvae-run": _run,
    "prior-run": _run,
    "videos": _videos,
    "evaluation": _videos,
    "report": _videos,
    "work-dir": _work_dir,
}


def _table(contents: dict[str, Any]) -> list[str]:
    return [f"  {name.replace('_', ' '):14} {value}" for name, value in _flat(contents)]


def _flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows

"""The kind, the origin and the contents of a path: `lvt inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvt_pipeline.codes.layout import PENDING_FILE, has_file, read_root
from lvt_pipeline.codes.store import is_unfinished
from lvt_pipeline.config import flat
from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.frames.records import receipts_in
from lvt_pipeline.progress import count_of
from lvt_pipeline.provenance import (
    ZARR_METADATA,
    Provenance,
    finished_record,
    missing_outputs,
    read_record,
    record_path,
    short,
)
from lvt_pipeline.runs.layout import METRICS_NAME, RUN_NAME
from lvt_pipeline.runs.read import read_run, read_run_record
from lvt_pipeline.storage import Place, StoreURL, json_log, open_storage
from lvt_pipeline.workspace.states import work_dir_states

if TYPE_CHECKING:
    from lvt_pipeline.codes.store import CodeStore

INSPECTABLE = "give a manifest, frames, a run, a code store, a folder from `lvt decode` or a work directory"


def inspect_artefact(path: Place, generation: int | None = None) -> dict[str, Any]:
    """Facts about any artefact of the pipeline.

    Args:
        generation: of a code store, which generation to describe; the current one by default.

    Returns:
        kind, path, is_finished, `made_by` (the provenance record, if there is one), `contents` (by kind), `problems`.

    Raises:
        ArtefactError: the path does not exist, was not made by lvt, or has no such generation.
    """
    kind = kind_of(path)
    record = _record(path)
    reader = _READERS.get(kind) if isinstance(path, Path) or kind in ("codes", "frames") else None
    if reader is None:
        raise ArtefactError(f"{path} was not made by lvt; {INSPECTABLE}")
    problems = [f"{name} is missing or has another size" for name in missing_outputs(path, record)] if record else []
    if generation is not None:
        store = _generation(path, kind, generation)
        record, contents = store.provenance, _facts_of_store(store)
        problems = [f"shard {index} {problem}" for index, problem in store.problems(store.shards()).items()]
    else:
        contents = reader(path, record)
    return {
        "kind": kind,
        "path": str(path),
        "is_finished": record is not None or kind == "work-dir",
        "made_by": record.to_json() if record else None,
        "contents": contents,
        "problems": problems,
    }


def _generation(path: Place, kind: str, generation: int) -> CodeStore:
    from lvt_pipeline.codes.store import open_codes

    if kind != "codes":
        raise ArtefactError(f"{path} is not a code store and has no generation {generation}; leave out --at")
    return open_codes(path, generation)


def kind_of(path: Place) -> str:
    """The kind of the artefact at a path: "frames", "codes", ... or "unknown".

    Raises:
        ArtefactError: there is nothing.
    """
    if open_storage(path).members() is None if isinstance(path, StoreURL) else not path.exists():
        raise ArtefactError(f"{path} does not exist; {INSPECTABLE}")
    record = _record(path)
    return record.kind if record else _guess(path)


def describe(facts: dict[str, Any]) -> str:
    """The facts as a page of text for people."""
    lines = [f"{facts['path']}: {facts['kind']}" + ("" if facts["is_finished"] else " (unfinished)")]
    history = facts["contents"].get("history", [])
    contents = {name: value for name, value in facts["contents"].items() if name != "history"}
    lines += [f"  {name.replace('_', ' '):14} {value}" for name, value in flat(contents).items()]
    for info in history:
        when = info["finished"] or "at a time that was not recorded"
        size = f"{count_of(info['clips'], 'clip')}, {count_of(info['frames'], 'frame')}"
        lines.append(f"  generation {info['generation']:<3} {size}, "
                     f"{short(info['fingerprint'])}, by lvt {info['stage']} {when}")  # fmt: skip
    made_by = facts["made_by"]
    if made_by:
        lines.append(f"made by lvt {made_by['stage']} (lvt {made_by['lvt_version']}), {made_by['finished']}, "
                     f"{made_by['seconds']:.1f} s")  # fmt: skip
        lines.append(f"  fingerprint  {short(made_by['fingerprint'])}")
        lines += [f"  input        {role} {short(value)}" for role, value in made_by["inputs"].items()]
        lines += [f"  setting      {name} = {value}" for name, value in flat(made_by["settings"]).items()]
    lines += [f"PROBLEM: {problem}" for problem in facts["problems"]]
    return "\n".join(lines)


def _record(path: Place) -> Provenance | None:
    if isinstance(path, StoreURL):
        return finished_record(path)
    if not (path / ZARR_METADATA).exists() and not record_path(path).exists():
        return None
    try:
        return read_run_record(path) if (path / RUN_NAME).exists() else read_record(path)
    except ArtefactError:
        if (path / ZARR_METADATA).exists():
            return None
        raise


def _guess(path: Place) -> str:
    """The kind of an output that has no record (unfinished, or written by hand)."""
    if isinstance(path, StoreURL):
        return "codes" if is_unfinished(path) or read_root(path) else "frames" if receipts_in(path) else "unknown"
    if path.is_file():
        return "manifest" if path.suffix == ".jsonl" else "unknown"
    if (path / "pipeline.toml").exists():
        return "work-dir"
    if (path / ZARR_METADATA).exists():
        read_root(path)  # its error names the problem
        return "codes"
    if is_unfinished(path):
        return "codes"
    if (path / RUN_NAME).exists():
        return str(read_run(path)["kind"])
    if receipts_in(path):
        return "frames"
    return "unknown"


def _manifest(path: Path, record: Provenance | None) -> dict[str, Any]:
    from lvt_pipeline.manifest.manifest import read_manifest

    clips = read_manifest(path)
    return {
        "clips": len(clips),
        "splits": dict(Counter(clip.split for clip in clips)),
        "labels": len({clip.label for clip in clips} - {None}),
        "first": clips[0].id,
    }


def _frames(path: Place, record: Provenance | None) -> dict[str, Any]:
    from lvt_pipeline.frames.shards import FrameShards

    if record is None:
        return {"finished_shards": len(receipts_in(path))}
    shards = FrameShards(path)
    first = shards.clips[0] if shards.clips else None
    arrays = {name: facts for clip in shards.clips for name, facts in (clip.array_facts or {}).items()}
    return {
        "clips": len(shards.clips),
        "frames": shards.num_frames,
        "frame_shape": [first.height, first.width, 3] if first else None,
        "codec": first.codec if first else None,
        **({"arrays": {name: f"{arrays[name].dimension} x {arrays[name].dtype}" for name in arrays}} if arrays else {}),
        "splits": dict(Counter(clip.split for clip in shards.clips)),
        "decoders": dict(Counter(clip.decoder for clip in shards.clips)),
        "failures": dict(Counter(failure.reason for failure in shards.failures)),
        "bytes": sum(size for name, size in record.outputs.items() if name.endswith(".tar")),
    }


def _codes(path: Place, record: Provenance | None) -> dict[str, Any]:
    from lvt_pipeline.codes.store import open_codes

    if record is None:
        return {"generation": 0, "pending": has_file(path, PENDING_FILE)}
    return _facts_of_store(open_codes(path))


def _facts_of_store(store: CodeStore) -> dict[str, Any]:
    from lvt_pipeline.codes.layout import shard_files
    from lvt_pipeline.codes.schema import shard_name

    needed = {shard_name(index) for index in store.shards()}
    stored = sum(entry.size for entry in shard_files(store.path) if entry.name in needed)
    num_codes = store.num_frames * store.grid[0] * store.grid[1] * store.num_codebooks
    lengths = [clip.length for clip in store.clips]
    arrays = {array.name: f"{array.dimension} x {array.dtype}" for array in store.schema.arrays}
    return {
        "clips": len(store.clips),
        "frames": store.num_frames,
        "array": [store.array_frames, *store.grid, store.num_codebooks],
        "dtype": str(store.dtype),
        **({"arrays": arrays} if arrays else {}),
        "codebook_size": store.codebook_size,
        "tokenizer": short(store.tokenizer),
        "clip_frames": {"shortest": min(lengths), "longest": max(lengths)} if lengths else {},
        "splits": dict(Counter(clip.split for clip in store.clips)),
        "generation": store.generation,
        "generations": store.generations,
        "history": [asdict(info) for info in store.root.generations],
        "bytes": stored,
        "bits_per_code": round(8 * stored / num_codes, 3) if num_codes else None,
    }


def _run(path: Path, record: Provenance | None) -> dict[str, Any]:
    from lvt_pipeline.runs.checkpoints import list_checkpoints

    state = read_run(path)
    facts = {name: state[name] for name in ("status", "step", "max_steps", "started", "updated")}
    facts["checkpoints"] = [checkpoint.step for checkpoint in list_checkpoints(path)]
    metrics = path / METRICS_NAME
    lines = list(json_log(metrics.read_bytes())) if metrics.exists() else []
    facts["last_metrics"] = lines[-1] if lines else None
    return {**facts, **(dict(record.counts) if record else {})}


def _videos(path: Path, record: Provenance | None) -> dict[str, Any]:
    return dict(record.counts) if record else {}


def _work_dir(path: Path, record: Provenance | None) -> dict[str, Any]:
    return {state.name: state.state for state in work_dir_states(path)}


_READERS: dict[str, Callable[[Any, Provenance | None], dict[str, Any]]] = {
    "manifest": _manifest,
    "frames": _frames,
    "codes": _codes,
    "vqvae-run": _run,
    "prior-run": _run,
    "videos": _videos,
    "evaluation": _videos,
    "report": _videos,
    "figures": _videos,
    "work-dir": _work_dir,
}

"""Mending the metadata of a code store, as far as it follows from what is left.

Shards are mended by encoding them again (`code_writer`); what lies around them follows from other files:

- the root from the clip tables, each of which carries its own seal;
- the array's metadata and the card from the root and the current clip table;
- the first clip table from the clips themselves. A later one says where in the array older encodes put each clip, which
  nothing else knows: it cannot be rebuilt.

Call these functions while holding the lock of the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvt_pipeline.codes.card import card_bytes
from lvt_pipeline.codes.files import commit_root, remove_temporary_files, replace_file, with_digests, write_group
from lvt_pipeline.codes.layout import (
    ARRAY,
    ARRAY_METADATA,
    CARD,
    GENERATIONS,
    PENDING,
    DamagedRootError,
    GenerationInfo,
    StoreRoot,
    digest_bytes,
    group_metadata,
    is_sealed,
    read_attributes,
    read_root,
    short_shards,
    table_name,
)
from lvt_pipeline.codes.plan import PlannedClip, plan_first, table_attributes
from lvt_pipeline.codes.shard_file import is_sound
from lvt_pipeline.codes.store import CodeSchema, array_metadata, clips_from_columns, read_table, shard_name, shards_of
from lvt_pipeline.errors import ArtefactError, StoreError
from lvt_pipeline.provenance import ZARR_METADATA, Provenance, digest_file


def mend_metadata(path: Path, schema: CodeSchema, clips: Sequence[PlannedClip]) -> list[str]:
    """Put the metadata of a store right, and give a store of format 1 the digests it lacks.

    Args:
        schema, clips: what the store is about to hold; a damaged first clip table is rebuilt from them.

    Returns:
        names of the files that were written again, relative to the store; [] when there is no store or nothing to mend.

    Raises:
        StoreError: something cannot be rebuilt; the line says what is left to do.
    """
    if not (path / ZARR_METADATA).exists() and not _tables(path):
        return []
    (path / ARRAY).mkdir(exist_ok=True)
    remove_temporary_files(path)
    mended = []
    try:
        root = read_root(path)
    except DamagedRootError:
        root = None
    if root is None:
        if (path / PENDING).exists() and not (path / ZARR_METADATA).exists():
            return []  # a first encode that was interrupted before its commit
        root = _rebuilt_root(path)
        mended.append(ZARR_METADATA)
    mended += _mend_table(path, root, schema, clips)
    table = read_table(path, root, root.generation)
    rows = clips_from_columns(table["clips"], path)

    if not root.has_digests:
        commit_root(path, with_digests(path, root), rows)
        return [*mended, ZARR_METADATA]
    layout = CodeSchema.from_json(root.about)
    expected = {
        ARRAY_METADATA: array_metadata(int(table["array_frames"]), layout, layout.frames_per_chunk),
        f"{GENERATIONS}/{ZARR_METADATA}": group_metadata({}),
        CARD: card_bytes(root, rows),
    }
    digests = dict(root.files)
    for name, data in expected.items():
        found = digest_file(path / name) if (path / name).exists() else ""
        if found not in (root.files.get(name), digest_bytes(data)) and not (path / PENDING).exists():
            replace_file(path, name, data)
            mended.append(name)
            found = digest_bytes(data)
        digests[name] = found
    if digests != root.files:
        commit_root(path, replace(root, files=digests), rows)
    return mended


def _tables(path: Path) -> dict[int, dict[str, Any]]:
    """Clip tables that are whole, by generation."""
    found = {}
    for file in sorted((path / GENERATIONS).glob(f"[0-9]*/{ZARR_METADATA}")):
        if file.parent.name.isdecimal() and is_sealed(file.read_bytes()):
            found[int(file.parent.name)] = read_attributes(file.parent)
    return found


def _rebuilt_root(path: Path) -> StoreRoot:
    tables = _tables(path)
    with suppress(ArtefactError, KeyError):
        tables.pop(int(read_attributes(path / PENDING)["generation"]), None)  # it was never published
    if not tables:
        raise StoreError(
            f"{path / ZARR_METADATA} is damaged and no clip table is left to rebuild it from; restore it from a copy, "
            "or start the store again with --overwrite"
        )
    current = max(tables)
    table = tables[current]
    schema = CodeSchema.from_json(table["lvt"])
    files = {table_name(number): digest_file(path / table_name(number)) for number in tables}
    short: dict[int, int] = {}
    infos = []
    for number, attributes in tables.items():
        short |= short_shards(attributes["first_frame"], attributes["array_frames"], schema.shard_frames)
        clips = clips_from_columns(attributes["clips"], path)
        for name in map(shard_name, shards_of(clips, schema.shard_frames)):
            if name not in files and (path / name).exists() and is_sound(path / name, schema):
                files[name] = digest_file(path / name)
        infos.append(
            GenerationInfo(
                generation=number,
                fingerprint=attributes["fingerprint"],
                clips=len(clips),
                frames=sum(clip.length for clip in clips),
                stage=attributes["stage"],
            )
        )
    record = Provenance.from_json(table["provenance"], path / table_name(current))
    outputs = {**record.outputs, table_name(current): (path / table_name(current)).stat().st_size}
    return StoreRoot(
        about=table["lvt"],
        generations=tuple(infos),
        provenance=replace(record, outputs=outputs).to_json(),
        files=files,
        short_shards=short,
    )


def _mend_table(path: Path, root: StoreRoot, schema: CodeSchema, clips: Sequence[PlannedClip]) -> list[str]:
    """Write the current clip table again if it is damaged.

    Raises:
        StoreError: it does not follow from the clips.
    """
    name = table_name(root.generation)
    try:
        read_table(path, root, root.generation)
        return []
    except StoreError as error:
        rebuilt = None
        if root.generation == 1 and root.has_digests:
            layout = CodeSchema.from_json(root.about)
            plan = plan_first(
                replace(schema, shard_frames=layout.shard_frames, chunk_frames=layout.chunk_frames), clips
            )
            record = Provenance.from_json(root.provenance, path / ZARR_METADATA)
            outputs = {file: size for file, size in record.outputs.items() if file != name}
            timeless = replace(record, seconds=0.0, finished="", command=[], outputs=outputs)
            rebuilt = group_metadata(table_attributes(path, plan, timeless, root.generations[-1].stage), indent=None)
        if rebuilt is None or digest_bytes(rebuilt) != root.files[name]:
            others = [number for number in root.numbers if number != root.generation]
            older = f"; older generations can still be read with --at ({', '.join(map(str, others))})" if others else ""
            raise StoreError(
                f"{path / name} is damaged and cannot be rebuilt; restore it from a copy, or start the store again "
                f"with --overwrite{older}"
            ) from error
        (path / name).parent.mkdir(exist_ok=True)
        write_group(path, (path / name).parent, rebuilt)
        return [name]

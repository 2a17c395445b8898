"""Repair a code store's metadata where it can be derived from the remaining files.

Shards are repaired by encoding them again (`writer`). The files around them follow from other files:

- the root from the clip tables, each of which carries its own seal;
- the array's metadata and the card from the root and the current clip table;
- the first clip table from the clips themselves. A later one has the positions of clips of older encodes, which
  nothing else records: it cannot be rebuilt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from lvt_pipeline.codes import layout
from lvt_pipeline.codes.checks import read_pending
from lvt_pipeline.codes.clip_table import ClipTable, is_as_written, page_files, read_generation
from lvt_pipeline.codes.commit import card_bytes, commit_root
from lvt_pipeline.codes.layout import ARRAYS, CARD, GENERATIONS, SHARDS, StoreRoot
from lvt_pipeline.codes.plan import make_plan, table_attributes
from lvt_pipeline.codes.schema import CodeSchema, PlannedClip, index_of, metadata_name, shard_name
from lvt_pipeline.codes.shard_file import array_metadata, damaged_frames
from lvt_pipeline.codes.store import is_ours, is_published, open_codes
from lvt_pipeline.errors import StoreError
from lvt_pipeline.provenance import ZARR_METADATA, Provenance
from lvt_pipeline.storage import Place


def repair_store(path: Place) -> list[str]:
    """Repair the metadata of a store of any command; its shards stay as they are.

    Returns:
        names of the files that were written again, relative to the store.

    Raises:
        StoreError: there is no store at `path`, or something cannot be rebuilt; the message gives the remedy.
        BusyError: another process is writing it.
    """
    if not is_published(path) and not is_ours(path):
        open_codes(path)  # its error names what it found
    with layout.storage_of(path).exclusive():
        return repair_metadata(path)


def repair_metadata(path: Place, schema: CodeSchema | None = None, clips: Sequence[PlannedClip] = ()) -> list[str]:
    """Repair the metadata of a store. Call it while holding the lock of the store.

    Args:
        schema, clips: the next content of the store; a damaged first clip table is rebuilt from them.

    Returns:
        names of the files that were written again, relative to the store; [] when there is no store or no damage.

    Raises:
        StoreError: something cannot be rebuilt; the line names the remedy.
    """
    damaged = layout.read_file(path / ZARR_METADATA)
    if damaged is None and not _tables(path):
        return []
    repaired = []
    try:
        root = layout.read_root(path)
    except layout.DamagedRootError:
        root = None
    if root is None:
        if layout.has_file(path, layout.PENDING_FILE) and damaged is None:
            return []  # a first encode that was interrupted before its commit
        root = _rebuilt_root(path)
        used = _used_shards(path, root, damaged or b"")
        root = replace(root, read_from=layout.digest_bytes(damaged) if damaged is not None else "", used_shards=used)
        repaired.append(ZARR_METADATA)
    repaired += _repair_table(path, root, schema, clips)
    attributes = read_generation(path, root, root.generation)
    table = ClipTable.read(path, attributes)
    schema_of_root = CodeSchema.from_json(root.about)
    expected = {
        **({f"{ARRAYS}/{ZARR_METADATA}": layout.group_metadata({})} if schema_of_root.arrays else {}),
        **{metadata_name(a): array_metadata(int(attributes["array_frames"]), a) for a in schema_of_root.every_array},
        f"{GENERATIONS}/{ZARR_METADATA}": layout.group_metadata({}),
        CARD: card_bytes(root, table),
    }
    digests = dict(root.files)
    for name, data in expected.items():
        found = layout.digest_bytes(layout.read_file(path / name) or b"")
        is_right = found in (root.files.get(name), layout.digest_bytes(data))
        if not is_right and not layout.has_file(path, layout.PENDING_FILE):
            layout.storage_of(path).replace(name, data)
            repaired.append(name)
            found = layout.digest_bytes(data)
        digests[name] = found
    if digests != root.files:
        commit_root(path, replace(root, files=digests), table)
    return repaired


def _tables(path: Place) -> dict[int, bytes]:
    """Clip tables that are whole, with all of their pages, as they were written, by generation."""
    found = {}
    for number in sorted(set(layout.generations_in(layout.storage_of(path)))):
        data = layout.table_without_additions(layout.read_file(path / layout.table_name(number)) or b"")
        pages = layout.attributes_in(data, path).get("pages", []) if data is not None else []
        if data is not None and all(is_as_written(path, layout.page_name(page), page) for page in pages):
            found[number] = data
    return found


def _rebuilt_root(path: Place) -> StoreRoot:
    tables = _tables(path)
    pending = read_pending(path)
    if pending is not None:
        tables.pop(pending.generation, None)  # it was never published
    if not tables:
        raise StoreError(
            f"{path / ZARR_METADATA} is damaged and no clip table is left to rebuild it from; restore it from a copy, "
            "or start the store again with --overwrite"
        )
    try:
        return _root_of(path, tables)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{path / ZARR_METADATA} is damaged and the clip tables are not ours; restore it from a copy, or start the "
            "store again with --overwrite"
        ) from error


def _used_shards(path: Place, root: StoreRoot, damaged: bytes) -> int:
    """`StoreRoot.used_shards`, as far as the damaged root, shards and a plan that was not published still show it."""
    pending = read_pending(path)
    noted = [int(number) for number in re.findall(rb'"used_shards": (\d{1,9}),', damaged)]
    present = [index_of(entry.name) + 1 for entry in layout.shard_files(path)]
    used = max(0, *noted, *present, pending.end_shard if pending else 0)
    table = read_generation(path, root, root.generation)
    return used if used > -(-table["array_frames"] // root.about["shard_frames"]) else 0


def _root_of(path: Place, tables: Mapping[int, bytes]) -> StoreRoot:
    """The root of a store with these clip tables."""
    files = {layout.table_name(number): layout.digest_bytes(data) for number, data in tables.items()}
    attributes = {number: layout.attributes_in(data, path) for number, data in tables.items()}
    current = max(tables)
    schema = CodeSchema.from_json(attributes[current]["lvt"])
    short: dict[int, int] = {}
    infos = []
    for number, table in attributes.items():
        short |= layout.short_shards(table["first_frame"], table["array_frames"], schema.shard_frames)
        clips = ClipTable.read(path, table)
        num_shards = sum(name.startswith(f"{SHARDS}/") for name in table["provenance"]["outputs"])
        clips.require_places(table["array_frames"], num_shards, schema.shard_frames)
        arrays = CodeSchema.from_json(table["lvt"]).every_array
        for index, array in product(clips.shards(schema.shard_frames), arrays):
            name = shard_name(index, array)
            data = layout.read_file(path / name) if name not in files else None
            if data is not None and not any(damaged_frames(data, array)):
                files[name] = layout.digest_bytes(data)
        infos.append(
            layout.GenerationInfo(
                generation=number,
                fingerprint=table["fingerprint"],
                clips=len(clips),
                frames=clips.num_frames,
                stage=table["stage"],
            )
        )
    record = Provenance.from_json(attributes[current]["provenance"], path / layout.table_name(current))
    sizes = {entry.name: entry.size for entry in layout.storage_of(path).list(GENERATIONS)}
    names = [layout.table_name(current), *map(layout.page_name, attributes[current].get("pages", []))]
    outputs = {**record.outputs, **{name: sizes[name] for name in names}}
    return StoreRoot(
        about={**attributes[current]["lvt"], "schema": max(table["lvt"]["schema"] for table in attributes.values())},
        generations=tuple(infos),
        provenance=replace(record, outputs=outputs).to_json(),
        files=files,
        short_shards=short,
    )


def _repair_table(path: Place, root: StoreRoot, schema: CodeSchema | None, clips: Sequence[PlannedClip]) -> list[str]:
    """Write the current clip table and its pages again where they are damaged."""
    table = layout.table_name(root.generation)
    parts, repaired = [(table, root.files[table])], []
    rebuilt: dict[str, bytes] = {}
    for name, digest in parts:  # the pages follow when the table is known
        if not is_as_written(path, name, digest):
            if not rebuilt and schema is not None:
                rebuilt = _first_table(path, root, schema, clips)
            if layout.digest_bytes(rebuilt.get(name, b"")) != digest:
                others = ", ".join(str(number) for number in root.numbers if number != root.generation)
                older = f"; older generations can still be read with --at ({others})" if others else ""
                may_help = schema is None and root.stage == "encode-dataset" and (name != table or root.generation == 1)
                remedy = "run lvt encode-dataset --repair, " if may_help else ""
                raise StoreError(
                    f"{path / name} is damaged and cannot be rebuilt; {remedy}restore it from a copy, or start the "
                    f"store again with --overwrite{older}"
                )
            layout.storage_of(path).replace(name, rebuilt[name])
            repaired.append(name)
        if name == table:
            pages = read_generation(path, root, root.generation).get("pages", [])
            parts += [(layout.page_name(page), page) for page in pages]
    return repaired


def _first_table(path: Place, root: StoreRoot, schema: CodeSchema, clips: Sequence[PlannedClip]) -> dict[str, bytes]:
    """The clip table of a store that was made from these clips at once, and its pages, by name of the file."""
    schema_of_root = CodeSchema.from_json(root.about)
    schema = replace(schema, shard_frames=schema_of_root.shard_frames, chunk_frames=schema_of_root.chunk_frames)
    record = Provenance.from_json(root.provenance, path / ZARR_METADATA)
    first = min((index_of(name) for name in record.outputs if index_of(name) >= 0), default=0)
    plan = make_plan(None, schema, clips, reencode=False, first_shard=first)
    outputs = {file: size for file, size in record.outputs.items() if index_of(file) >= 0}
    timeless = replace(record, seconds=0.0, finished="", command=[], outputs=outputs)
    files = {page: data or b"" for page, data in page_files(path, plan.table)}
    attributes = table_attributes(path, plan, timeless, root.generations[-1].stage, [*files])
    pages = {layout.page_name(page.digest): data for page, data in files.items()}
    return {**pages, layout.table_name(1): layout.group_metadata(attributes, indent=None)}

"""The commit of a generation: the root of the store is replaced, then its card, `codes/README.md`.

The card describes the store for people. It follows from the root and the clip table alone, so the same store has the
same card. It is next to the array's own files: zarr warns about a plain file in a group whenever somebody lists the
group's members, and never looks for members inside an array.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from itertools import product
from typing import Any

from lvt_pipeline.codes import layout
from lvt_pipeline.codes.checks import read_pending
from lvt_pipeline.codes.clip_table import ClipTable, Page
from lvt_pipeline.codes.layout import CARD, GENERATIONS, StoreRoot, digest_bytes, generation_name, read_file, storage_of
from lvt_pipeline.codes.plan import CodePlan
from lvt_pipeline.codes.schema import CodeSchema, metadata_names, shard_name, shard_names
from lvt_pipeline.codes.shard_file import require_sound
from lvt_pipeline.errors import BusyError
from lvt_pipeline.provenance import ZARR_METADATA
from lvt_pipeline.storage import Place

# Read at once: a process that may read nothing later still writes stores.
_CARD = resources.files(__package__).joinpath("card.md").read_text("utf-8")
_MADE_OF = {
    "encode-dataset": "Every frame of the clips, once through the encoder of a frame VQ-VAE.",
    "sample": "Continuations of real clips that a video transformer drew in code space.",
}


_ONE_PIECE = 'clips = group["{table}"].attrs["clips"]'
_FIRST_PAGE = """\
table = group["{table}"].attrs  # of very many clips: the rows of all "pages", then those in "clips"
clips = group["generations/page-" + table["pages"][0]].attrs["clips"]"""
NO_ROOT = StoreRoot(about={"schema": layout.SCHEMA_VERSION}, generations=(), provenance={}, files={})


def next_root(path: Place, root: StoreRoot, plan: CodePlan, files: Mapping[str, str], *, is_paged: bool) -> StoreRoot:
    """The root with the generation that a plan makes, but for the history and the record.

    Args:
        root: of the store that the plan starts from, `NO_ROOT` for none.
        files: digests of all files that the generations need.
        is_paged: whether the clip table is in pages.
    """
    version = layout.PAGED_VERSION if is_paged else root.about["schema"]
    short = dict(root.short_shards)
    if plan.shards:
        short |= layout.short_shards(plan.first_frame, plan.array_frames, plan.schema.shard_frames)
    return replace(
        root,
        about={**plan.schema.to_json(), "schema": version, "generation": plan.generation},
        files=files,
        short_shards=short,
        used_shards=used_shards(path, root, plan),
    )


def used_shards(path: Place, root: StoreRoot, plan: CodePlan) -> int:
    """`StoreRoot.used_shards` with the numbers of the pending plan, 0 where the length of the array says enough."""
    pending = read_pending(path)
    used = max(root.used_shards, pending.end_shard if pending else 0)
    return used if used > -(-plan.array_frames // plan.schema.shard_frames) else 0


def new_digests(path: Place, plan: CodePlan, known: Mapping[str, str]) -> dict[str, str]:
    """Digests of the files that a plan has made or changed, but for the root and the card.

    Args:
        known: those of shards. The others are read.

    Raises:
        StoreError: a shard is not one.
    """
    names = [*metadata_names(plan.schema), f"{GENERATIONS}/{ZARR_METADATA}", layout.table_name(plan.generation)]
    digests = {name: digest_bytes(read_file(path / name) or b"") for name in names}
    for shard, array in product([*plan.repairs, *plan.shards], plan.schema.every_array):
        name = shard_name(shard.index, array)
        if name not in known:
            data = read_file(path / name) or b""
            require_sound(path / name, data, array)
            digests[name] = digest_bytes(data)
    return {**known, **digests}


def output_sizes(path: Place, plan: CodePlan, pages: Sequence[Page] | None = None) -> dict[str, int]:
    """Sizes of the files of all shards of a generation; with `pages`, also of its clip table and these pages."""
    indices = plan.table.shards(plan.schema.shard_frames)
    names = [name for index in indices for name in shard_names(index, plan.schema)]
    entries = layout.shard_files(path)
    if pages is not None:
        names += [layout.table_name(plan.generation), *(layout.page_name(page.digest) for page in pages)]
        entries += storage_of(path).list(GENERATIONS)
    sizes = {entry.name: entry.size for entry in entries}
    return {name: sizes[name] for name in names}


def restore_card(path: Place, root: StoreRoot, table: ClipTable) -> None:
    """Write the card of the current generation, which a run killed right after its commit did not."""
    if digest_bytes(read_file(path / CARD) or b"") != root.files.get(CARD):
        storage_of(path).replace(CARD, card_bytes(root, table))


def card_bytes(root: StoreRoot, table: ClipTable) -> bytes:
    """The card of a store's current generation.

    Args:
        table: its clip table.
    """
    about, record = root.about, root.provenance
    is_paged = any(name.startswith(layout.PAGES) for name in record["outputs"])
    splits = Counter(table.columns["split"])
    labels = {*table.columns["label"]} - {None}
    rates = sorted({*table.columns["fps"]})
    height, width = about["grid"]
    text = _CARD.format(
        made_of=_MADE_OF.get(record["stage"], "Frames of video as codes of a frame VQ-VAE."),
        clips=len(table),
        splits=", ".join(f"{name} {count:,}" for name, count in sorted(splits.items(), key=_split_order)),
        frames=table.num_frames,
        height=height,
        width=width,
        books=about["num_codebooks"],
        codebook_size=about["codebook_size"],
        arrays=_arrays_row(CodeSchema.from_json(about)),
        labels=f"{len(labels):,}" if labels else "none",
        fps=f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}",
        tokenizer=about["tokenizer"],
        geometry=_as_text(about["frames_geometry"]) or "not recorded",
        generation=about["generation"],
        fingerprint=record["fingerprint"],
        clips_of_table=(_FIRST_PAGE if is_paged else _ONE_PIECE).format(table=generation_name(about["generation"])),
        stage=record["stage"],
        lvt_version=record["lvt_version"],
        version=record["version"],
        inputs="".join(f"| input: {role} | `{value}` |\n" for role, value in sorted(record["inputs"].items())),
        settings="".join(
            f"| setting: {name} | {json.dumps(value)} |\n" for name, value in sorted(record["settings"].items())
        ),
    )
    return text.encode()


def commit_root(path: Place, root: StoreRoot, table: ClipTable) -> StoreRoot:
    """Make this the root of a store, then renew the card, which describes the same.

    Args:
        root: with the digests of all files but the card. It replaces the one that it was `read_from`, and no other.
        table: the clip table of its current generation.

    Returns:
        the root as it is in the store.

    Raises:
        BusyError: another command has committed meanwhile.
    """
    card = card_bytes(root, table)
    root = replace(root, files={**root.files, CARD: digest_bytes(card)})
    storage, data = storage_of(path), root.to_bytes()
    found = storage.read(ZARR_METADATA) if root.read_from else None
    if found is not None and digest_bytes(found.data) == root.read_from:
        is_done = storage.replace(ZARR_METADATA, data, found.tag)
    else:
        is_done = not root.read_from and storage.create(ZARR_METADATA, data)
    if not is_done:
        raise BusyError(f"another command has changed {path} meanwhile; run this again")
    storage.replace(CARD, card)
    return replace(root, read_from=digest_bytes(data))


def _arrays_row(schema: CodeSchema) -> str:
    return f"| side arrays | {', '.join(map(str, schema.arrays))}, in `arrays/` |\n" if schema.arrays else ""


def _split_order(item: tuple[str, int]) -> tuple[int, str]:
    usual = ("train", "val", "test")
    return (usual.index(item[0]) if item[0] in usual else len(usual), item[0])


def _as_text(geometry: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in geometry.items() if value is not None)

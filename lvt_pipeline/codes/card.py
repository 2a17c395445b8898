"""The card of a code store: `codes/README.md`, a description of the store for people.

It follows from the root and the clip table alone, so the same store has the same card. It is next to the array's own
files: zarr warns about a plain file in a group whenever somebody lists the group's members, and never looks for members
inside an array.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

from lvt_pipeline.codes.layout import CARD, StoreRoot, digest_bytes, generation_name, storage_of
from lvt_pipeline.codes.schema import CodeClip, CodeSchema
from lvt_pipeline.errors import BusyError
from lvt_pipeline.provenance import ZARR_METADATA
from lvt_pipeline.storage import Place

# Read at once: a process that may read nothing later still writes stores.
_CARD = resources.files(__package__).joinpath("card.md").read_text("utf-8")
_MADE_OF = {
    "encode-dataset": "Every frame of the clips, once through the encoder of a frame VQ-VAE.",
    "sample": "Continuations of real clips that a video transformer drew in code space.",
}


def card_bytes(root: StoreRoot, clips: Sequence[CodeClip]) -> bytes:
    """The card of a store's current generation.

    Args:
        clips: its clip table.
    """
    about, record = root.about, root.provenance
    splits = Counter(clip.split for clip in clips)
    labels = {clip.label for clip in clips} - {None}
    rates = sorted({clip.fps for clip in clips})
    height, width = about["grid"]
    text = _CARD.format(
        made_of=_MADE_OF.get(record["stage"], "Frames of video as codes of a frame VQ-VAE."),
        clips=len(clips),
        splits=", ".join(f"{name} {count:,}" for name, count in sorted(splits.items(), key=_split_order)),
        frames=sum(clip.length for clip in clips),
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
        table=generation_name(about["generation"]),
        stage=record["stage"],
        lvt_version=record["lvt_version"],
        version=record["version"],
        inputs="".join(f"| input: {role} | `{value}` |\n" for role, value in sorted(record["inputs"].items())),
        settings="".join(
            f"| setting: {name} | {json.dumps(value)} |\n" for name, value in sorted(record["settings"].items())
        ),
    )
    return text.encode()


def commit_root(path: Place, root: StoreRoot, clips: Sequence[CodeClip]) -> StoreRoot:
    """Make this the root of a store, then renew the card, which describes the same.

    Args:
        root: with the digests of all files but the card. It replaces the one that it was `read_from`, and no other.
        clips: the clip table of its current generation.

    Returns:
        the root as it is in the store.

    Raises:
        BusyError: another command has committed meanwhile.
    """
    card = card_bytes(root, clips)
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

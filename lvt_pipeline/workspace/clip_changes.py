"""How a list of clips has changed, in words: "3 clips added, 1 changed, 2 removed"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvt_pipeline.codes.schema import clip_fingerprints, codes_of_frames
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import LVTError
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.manifest.digests import ContentDigests
from lvt_pipeline.manifest.manifest import MEMO, ManifestSettings, own_files, read_manifest
from lvt_pipeline.manifest.sources import list_source, location_of, recognise
from lvt_pipeline.manifest.sources.walk import LeftOut
from lvt_pipeline.progress import count_of
from lvt_pipeline.provenance import DigestMemo
from lvt_pipeline.video.clips import Clip
from lvt_pipeline.video.locations import is_url

HASHED_BYTES = 2**28  # of new or touched videos that are read to compare them; more would no longer be a quick look


@dataclass(frozen=True)
class ClipChanges:
    """Numbers of clips that were added, changed and removed."""

    added: int = 0
    changed: int = 0
    removed: int = 0

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def __str__(self) -> str:
        """The numbers that are not zero, such as "3 clips added, 1 changed"; "" without a change."""
        parts = [(self.added, "added"), (self.changed, "changed"), (self.removed, "removed")]
        parts = [(count, what) for count, what in parts if count]
        numbers = [f"{count:,}" if number else count_of(count, "clip") for number, (count, _) in enumerate(parts)]
        return ", ".join(f"{number} {what}" for number, (_, what) in zip(numbers, parts, strict=True))


def compare(old: Mapping[str, str], new: Mapping[str, str]) -> ClipChanges:
    """The changes between two lists of clips.

    Args:
        old, new: what a clip is made of, by id.
    """
    changed = sum(old[clip_id] != made_of for clip_id, made_of in new.items() if clip_id in old)
    return ClipChanges(len(new.keys() - old.keys()), changed, len(old.keys() - new.keys()))


def changes_of_frames(manifest: Path, frames: Path) -> str:
    """How a manifest differs from the folder of frames made of an earlier one.

    Raises:
        ArtefactError: one of them cannot be read.
    """
    shards = FrameShards(frames)
    wanted = {clip.id: clip.digest for clip in read_manifest(manifest)}
    made = {clip.part.of if clip.part else clip.id: clip.digest for clip in shards.clips}
    failed = {failure.id: wanted.get(failure.id, "") for failure in shards.failures}
    return str(compare({**failed, **made}, wanted))


def changes_of_codes(frames: Path, codes: Path) -> str:
    """How a folder of frames differs from the code store made of an earlier one.

    Raises:
        ArtefactError: one of them cannot be read.
    """
    store = open_codes(codes)
    shards = FrameShards(frames)
    wanted = {
        clip.id: clip_fingerprints(
            codes_of_frames(clip, store.tokenizer), shards.array_facts(clip) if store.arrays else {}, store.schema
        )["fingerprint"]
        for clip in shards.clips
    }
    return str(compare({clip.id: clip.fingerprint for clip in store.clips}, wanted))


def changes_since_training(codes: Path, trained_on: str) -> str:
    """How a code store differs from its generation that a prior was trained on; "" if that one is gone.

    Raises:
        ArtefactError: the store cannot be read.
    """
    store = open_codes(codes)
    number = next(
        (info.generation for info in reversed(store.root.generations) if info.fingerprint == trained_on), None
    )
    if number is None:
        return ""
    old = open_codes(codes, number)
    rows = [{clip.id: clip.fingerprint for clip in each.clips} for each in (old, store)]
    return str(compare(*rows))


class _KnownDigests(DigestMemo):
    """Digests that are remembered, and those of a few new files; "" for the rest. Nothing is saved."""

    def __init__(self, database: Path) -> None:
        super().__init__(database)
        self._budget = HASHED_BYTES

    def recall(self, name: str, seen: tuple[int, int, int], compute: Callable[[], str]) -> str:
        def affordable() -> str:
            self._budget -= seen[0]
            return compute() if self._budget >= 0 else ""

        return super().recall(name, seen, affordable)

    def close(self) -> None:
        """Save nothing: a look changes nothing on disk."""


def changes_of_videos(
    source: str, manifest: Path, settings: ManifestSettings, media: str | None = None
) -> ClipChanges | None:
    """How a source of clips differs from the manifest made of it, without reading unchanged files.

    Without a manifest every clip counts as added.

    Args:
        source, media: as for `build_manifest`.

    Returns:
        None when there is nothing to look at: the source is gone, or at a URL, where a look would not be quick.
    """
    drafts = None if _is_remote(source, media) else _listed(source, manifest, settings, media)
    if drafts is None:
        return None
    digests = ContentDigests(_KnownDigests(manifest.absolute().parent / MEMO))
    listed = {clip.id: clip for clip in read_manifest(manifest)} if manifest.exists() else {}
    found = {draft.id: (draft, digests.of(draft)) for draft in drafts}
    dropped = settings.missing == "drop"
    contents = {_content(clip) for clip in listed.values() if clip.id in found}
    new: dict[str, str] = {}
    for clip_id, (draft, digests_of_clip) in found.items():
        content = (*digests_of_clip, draft.start, draft.end)
        is_copy = clip_id not in listed and content in contents and content[0] != ""  # left out by the manifest
        if not is_copy and not (dropped and {draft.source, draft.id} & digests.problems.keys()):
            new[clip_id] = repr(content)
    return compare({clip.id: repr(_content(clip)) for clip in listed.values()}, new)


def _content(clip: Clip) -> tuple[str, str | None, float | None, float | None]:
    return clip.digest, clip.more_digest, clip.start, clip.end


def has_videos(source: str, manifest: Path, settings: ManifestSettings, media: str | None = None) -> bool:
    """Whether a source still lists a file that exists. One at a URL is taken to; `build_manifest` finds out."""
    if _is_remote(source, media):
        return True
    drafts = _listed(source, manifest, settings, media) or ()
    return any(is_url(draft.source) or Path(draft.source).exists() for draft in drafts)


def _is_remote(source: str, media: str | None) -> bool:
    return is_url(location_of(source)) or (media is not None and is_url(media))


def _listed(source: str, manifest: Path, settings: ManifestSettings, media: str | None) -> Sequence[Clip] | None:
    """The clips of a source on this machine; None when it cannot be listed."""
    location = location_of(source)
    try:
        kind = settings.kind or recognise(location)
        left_out = LeftOut(ignored=own_files(manifest))
        return list_source(location, kind, None if media is None else location_of(media), settings, left_out).drafts
    except LVTError:
        return None

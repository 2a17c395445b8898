"""The list of clips: one JSON object per line, made from any source of videos, read by every later stage.

A clip is a video or a time range of one. Its fingerprint is that of the content and the range, never of the path, so
renaming or moving a file invalidates nothing. Which files a source lists is in `sources`, which split a clip gets
in `splits`; both are decided here, once.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvt_pipeline import lineage
from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import ArtefactError, ManifestError
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.manifest.digests import ContentDigests
from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.manifest.sources import KIND_NAMES, list_source, location_of, recognise
from lvt_pipeline.manifest.sources.draft import arrays_of, some
from lvt_pipeline.manifest.sources.walk import LeftOut, describe_left_out
from lvt_pipeline.manifest.splits import Earlier, assign_splits, separate_copies
from lvt_pipeline.outputs import require_output_file
from lvt_pipeline.progress import SILENT, Progress
from lvt_pipeline.provenance import DigestMemo, Provenance, read_record, record_path, write_record
from lvt_pipeline.storage import printable, read_json_lines, write_bytes
from lvt_pipeline.video.clips import SPLITS, Clip, require_clip
from lvt_pipeline.video.locations import absolute, is_url

__all__ = ["STAGE", "VERSION", "Clip", "ManifestSettings", "build_manifest", "manifest_fingerprint", "read_manifest"]

STAGE = "manifest"
VERSION = 1
JOB = Job(stage=STAGE, version=VERSION, kind="manifest")

_DEFAULTS = ManifestSettings()
MEMO = Path(".lvt") / "digests.sqlite"
_REMARKS_OF_A_KIND = 5  # beyond these, remarks of a kind are counted and not printed
_MOVED = "moved_into_empty_splits"


def manifest_fingerprint(clips: Iterable[Clip]) -> str:
    """Hash of a list of clips, in order: ids, contents, splits and labels."""
    return lineage.manifest_fingerprint([clip.id, clip.fingerprint, clip.split, clip.label] for clip in clips)


# Reading -----------------------------------------------------------------------------------------------------------


def read_manifest(path: Path) -> list[Clip]:
    """Parse a manifest. `id` and `source` are needed; `split` is train and the digest is computed when absent.

    Raises:
        ManifestError: it is missing, empty, or a line cannot be used; the line is named.
    """
    if not path.exists():
        raise ManifestError(f"{path} does not exist; `lvt manifest build` makes one")
    clips: list[Clip] = []
    seen: dict[str, int] = {}
    for number, entry in read_json_lines(path, error=ManifestError):
        clip = _parse_line(entry, path.parent, where=f"{path}:{number}")
        if clip.id in seen:
            raise ManifestError(f"{path}:{number}: the id {clip.id!r} is already used in line {seen[clip.id]}")
        seen[clip.id] = number
        clips.append(clip)
    if not clips:
        raise ManifestError(f"{path} lists no clip")
    return clips


def _parse_line(entry: dict[str, Any], folder: Path, where: str) -> Clip:
    for name in ("id", "source"):
        if not isinstance(entry.get(name), str) or not entry[name]:
            raise ManifestError(f"{where}: {name!r} is missing or not a text")
    split, label, metadata = entry.get("split", "train"), entry.get("label"), entry.get("metadata", {})
    if split not in SPLITS:
        raise ManifestError(f"{where}: split {split!r} is not one of {', '.join(SPLITS)}")
    if not isinstance(label, str | None):
        raise ManifestError(f"{where}: the label {label!r} is not a text")
    if not isinstance(metadata, dict):
        raise ManifestError(f"{where}: the metadata {metadata!r} are not a JSON object")
    clip = Clip(
        id=entry["id"],
        source=absolute(folder, entry["source"]),
        split=split,
        label=label,
        start=entry.get("start"),
        end=entry.get("end"),
        metadata=metadata,
        kind=entry.get("kind", "video"),
        record=entry.get("record"),
        camera=entry.get("camera"),
        fps=entry.get("fps"),
        arrays=arrays_of(entry, str(folder), where),
        digest=str(entry.get("digest") or ""),
        more_digest=entry.get("more_digest"),
        split_by="content" if entry.get("split_by") == "content" else None,
    )
    require_clip(clip, where)
    if clip.digest and (clip.more_digest or not clip.arrays):
        return clip
    digest, more = ContentDigests(None).of(clip)
    return replace(clip, digest=digest, more_digest=more)


# Building ----------------------------------------------------------------------------------------------------------


def build_manifest(
    source: Path | str,
    out: Path,
    settings: ManifestSettings = _DEFAULTS,
    *,
    media: Path | str | None = None,
    progress: Progress = SILENT,
) -> Provenance:
    """List the clips of a source and write the manifest.

    The same videos and settings give the same bytes; an unchanged manifest is left untouched. A manifest that grows
    moves no clip to another split.

    Args:
        source: a folder, searched with its subfolders; a pattern such as `videos/**/*.mp4`; a CSV or JSON Lines with a
            column `path`; Kinetics CSVs; tfrecords of BAIR and RLDS; LeRobot folders; class folders with UCF101's
            lists; folders of pictures. Videos, CSVs and JSON Lines may be at a URL. `settings.kind` is the kind; by
            default it is recognised.
        out: the manifest, such as `clips.jsonl`.
        media: folder or URL of the videos that a list names; by default the folder of the list.

    Raises:
        ManifestError: the source is missing or lists no clip, or two rows are the same clip.
    """
    clock = Clock()
    require_output_file(out, STAGE, (Path(source), Path(media) if media else None), mark=b'"digest": "')
    left_out = LeftOut(ignored=own_files(out))
    kind, drafts = _drafts(source, settings, media, left_out, progress)
    clips, problems = _with_content(drafts, out, settings, progress)
    clips = _report_missing(clips, problems, settings, progress)
    clips, moved = assign_splits(clips, settings, _earlier(out, settings))
    clips, num_copies = _report_copies(clips, progress)
    if left_out.counts:
        progress.say(f"{source}: {describe_left_out(left_out.to_json())}")
    data = "".join(_line(clip, out.absolute().parent) for clip in clips).encode()
    counts = _counts(clips, kind) | {"left_out": num_copies, _MOVED: moved, "not_listed": left_out.to_json()}
    record = JOB.recorder(settings, {}, clock).new_record(manifest_fingerprint(clips), {out.name: len(data)}, counts)
    unchanged = _unchanged_record(out, data, record)
    if unchanged is not None:
        return unchanged
    write_bytes(out, data)
    write_record(out, record)
    return record


def _drafts(
    source: Path | str, settings: ManifestSettings, media: Path | str | None, left_out: LeftOut, progress: Progress
) -> tuple[str, Sequence[Clip]]:
    """The kind of a source and the clips that it lists; its remarks are reported."""
    location = location_of(source)
    kind = settings.kind or recognise(location)
    if settings.kind is None:
        progress.say(f"{source}: recognised as {KIND_NAMES[kind]}")
    listing = list_source(location, kind, None if media is None else location_of(media), settings, left_out)
    for remark in listing.remarks:
        progress.say(f"{source}: {remark}")
    return kind, listing.drafts


def _with_content(
    drafts: Sequence[Clip], out: Path, settings: ManifestSettings, progress: Progress
) -> tuple[list[Clip], dict[str, str]]:
    """The clips with the digests of their contents, and why a source has none."""
    seen: set[str] = set()
    for draft in drafts:
        require_clip(draft, where=printable(draft.source))
        if draft.id in seen:
            raise ManifestError(f"two clips have the id {draft.id!r}; give them different ids or time ranges")
        seen.add(draft.id)
    memo = DigestMemo(out.absolute().parent / MEMO)
    digests = ContentDigests(memo)
    try:
        found = digests.of_all(drafts, progress)
        if settings.label != "none":
            drafts = [
                replace(draft, label=draft.label or digests.instruction(draft)) if draft.kind == "rlds" else draft
                for draft in drafts
            ]
    finally:
        memo.close()
    clips = [replace(one, digest=digest, more_digest=more) for one, (digest, more) in zip(drafts, found, strict=True)]
    return clips, digests.problems


def own_files(out: Path) -> set[str]:
    """The manifest and its record, which may be in the folder that is listed."""
    return {str(path.absolute()) for path in (out, record_path(out))}


def _report_missing(
    clips: list[Clip], problems: Mapping[str, str], settings: ManifestSettings, progress: Progress
) -> list[Clip]:
    """Report the clips whose source cannot be read; leave them out if that is asked for."""
    missing = [clip for clip in clips if not clip.digest]
    outcome = "left out" if settings.missing == "drop" else "recorded as missing (--missing drop leaves it out)"
    if len(missing) > _REMARKS_OF_A_KIND:
        examples = some([clip.id for clip in missing])
        progress.say(
            f"{len(missing):,} of {len(clips):,} clips have no readable file, each will be {outcome}: {examples}"
        )
    else:
        for clip in missing:
            problem = problems.get(clip.id) or problems.get(clip.source, "does not exist")
            progress.say(f"{clip.source} {problem}; its clip {clip.id} will be {outcome}")
    if settings.missing != "drop":
        return clips
    if len(missing) == len(clips):
        raise ManifestError(f"none of the {len(clips):,} clips has a file, for example {missing[0].source}")
    return [clip for clip in clips if clip.digest]


def _earlier(out: Path, settings: ManifestSettings) -> Earlier:
    """The decisions of the manifest that is about to be replaced, if it followed the same rule."""
    try:
        record = read_record(out)
        digests = [entry["digest"] for _, entry in read_json_lines(out)]
        rule = to_plain(settings)
        if all(record.settings[name] == rule[name] for name in ("split", "val_share", "test_share")):
            return Earlier(frozenset(digests), dict(record.counts.get(_MOVED, {})))
    except (ArtefactError, OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or it was written by hand
    return Earlier()


def _report_copies(clips: Sequence[Clip], progress: Progress) -> tuple[list[Clip], int]:
    """Report which clips show the same; leave out those that would put one content into two splits."""
    kept, left_out = separate_copies(clips)
    for clip, other in left_out:
        same = "has the same content as" if clip.fingerprint == other.fingerprint else "overlaps"
        progress.say(f"{clip.id} {same} {other.id} and is left out: one is {clip.split}, the other {other.split}")
    lines = []
    first: dict[str, Clip] = {}
    for clip in kept:
        if clip.digest and clip.fingerprint in first:
            lines.append(f"{clip.id} has the same content as {first[clip.fingerprint].id}")
        first.setdefault(clip.fingerprint, clip)
    for line in lines[:_REMARKS_OF_A_KIND]:
        progress.say(line)
    if len(lines) > _REMARKS_OF_A_KIND:
        progress.say(f"{len(lines):,} clips have the same content as another of their split")
    return kept, len(left_out)


def _line(clip: Clip, folder: Path) -> str:
    entry = {
        "id": clip.id,
        "source": _portable(clip.source, folder),
        "split": clip.split,
        "split_by": clip.split_by,
        "label": clip.label,
        "start": clip.start,
        "end": clip.end,
        "kind": None if clip.kind == "video" else clip.kind,
        "record": clip.record,
        "camera": clip.camera,
        "fps": clip.fps,
        "digest": clip.digest,
        "more_digest": clip.more_digest,
        "arrays": {name: _portable(source, folder) for name, source in clip.arrays.items()} or None,
        "metadata": dict(clip.metadata) or None,
    }
    return json.dumps({key: value for key, value in entry.items() if value is not None}, ensure_ascii=False) + "\n"


def _portable(source: str, folder: Path) -> str:
    """The path relative to the manifest's folder, so both can move together; absolute if they share only the root."""
    if is_url(source) or os.path.commonpath([source, folder]) == os.path.sep:
        return source
    return Path(os.path.relpath(source, folder)).as_posix()


def _counts(clips: Sequence[Clip], kind: str) -> dict[str, Any]:
    splits = Counter(clip.split for clip in clips)
    return {
        "source": kind,
        "clips": len(clips),
        "splits": {split: splits[split] for split in SPLITS},
        "labels": len({clip.label for clip in clips} - {None}),
        "missing": sum(not clip.digest for clip in clips),
    }


def _unchanged_record(out: Path, data: bytes, record: Provenance) -> Provenance | None:
    """The record of an existing manifest that is the same as the one about to be written."""
    try:
        old = read_record(out)
        if out.read_bytes() == data and (old.recipe, old.fingerprint) == (record.recipe, record.fingerprint):
            if old.counts == record.counts:
                return old
            write_record(out, record)  # the same clips, but other things were passed over
            return record
    except (ArtefactError, OSError):
        pass
    return None

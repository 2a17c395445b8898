"""Which clips are for training, validation and testing: the source decides, else the content itself.

The hash of a clip's content decides where nothing else does. It depends on nothing but the content, so a growing
dataset keeps its splits and copies stay together. No content is ever in two splits.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lvt_pipeline.manifest.settings import ManifestSettings
from lvt_pipeline.video.clips import SPLITS, Clip

# Where copies ask for different splits: the clips that results are measured on stay as their authors chose them.
_FIRST = ("test", "val", "train")


@dataclass(frozen=True)
class Earlier:
    """Decisions of an older version of the same manifest.

    Attributes:
        contents: every content it lists.
        moved: the contents that it moved into a split that would have stayed empty, with that split.
    """

    contents: frozenset[str] = frozenset()
    moved: Mapping[str, str] = field(default_factory=dict)


def content_key(clip: Clip) -> str:
    """The key that decides a clip's split: all ranges of a video and all cameras of a record share it."""
    return clip.digest or hashlib.sha256(clip.id.encode()).hexdigest()


def assign_splits(
    clips: Sequence[Clip], settings: ManifestSettings, earlier: Earlier = Earlier()
) -> tuple[list[Clip], dict[str, str]]:
    """Fill in the splits that the source leaves open.

    Returns:
        the clips, and the contents that were moved into a split that would have stayed empty, with that split.
    """
    if settings.split == "none":
        return [replace(clip, split=clip.split or "train") for clip in clips], {}
    undecided = {content_key(clip) for clip in clips if not clip.split}
    # The same content stays together even if only one of its copies is in a named folder.
    decided = {content_key(clip): clip.split for clip in clips if clip.split}
    by_content, moved = split_by_content(undecided - decided.keys(), set(decided.values()), settings, earlier)
    assigned = {**by_content, **decided}
    return [clip if clip.split else _decided(clip, assigned, decided) for clip in clips], moved


def _decided(clip: Clip, assigned: Mapping[str, str], by_source: Collection[str]) -> Clip:
    key = content_key(clip)
    return replace(clip, split=assigned[key], split_by=None if key in by_source else "content")


def fill_empty_splits(
    clips: Sequence[Clip], failed: Collection[str], earlier: Earlier = Earlier()
) -> tuple[list[Clip], dict[str, str]]:
    """Move clips into splits of which no clip could be decoded.

    Only contents whose split nothing but the content decided are moved, never the last one of a split, and none that an
    earlier version of the frames holds already; contents that were moved once stay. Which one is moved depends
    on the contents alone, so equal clips and failures give equal splits.

    Args:
        failed: ids of the clips that gave no frames.

    Returns:
        the clips, and the contents that were moved, with their split.
    """
    free = {content_key(clip) for clip in clips if clip.split_by == "content"}
    splits = {content_key(clip): clip.split for clip in clips}
    moved = {key: split for key, split in earlier.moved.items() if key in free}
    splits.update(moved)
    decoded = {content_key(clip) for clip in clips if clip.id not in failed}
    for split in SPLITS:
        if split not in {clip.split for clip in clips} or any(splits[key] == split for key in decoded):
            continue
        sizes = Counter(splits[key] for key in decoded)
        spare = [key for key in decoded & free if sizes[splits[key]] > 1 and key not in earlier.contents]
        if spare:
            chosen = min(spare, key=lambda key: hashlib.sha256(f"{split} {key}".encode()).digest())
            splits[chosen] = moved[chosen] = split
    return [replace(clip, split=splits[key]) if (key := content_key(clip)) in moved else clip for clip in clips], moved


def split_by_content(
    digests: set[str], filled: set[str], settings: ManifestSettings, earlier: Earlier = Earlier()
) -> tuple[dict[str, str], dict[str, str]]:
    """Assign contents to splits by where their digest falls between 0 and 1.

    Only a small dataset is adjusted: with three contents or more no wanted split stays empty; the content nearest to
    its interval moves in, and stays there in later versions of the manifest. What an earlier one lists never moves.

    Args:
        filled: splits that hold clips already.

    Returns:
        the split of every content, and those that were moved.
    """
    test, val = settings.test_share, settings.val_share
    intervals = {"test": (0.0, test), "val": (test, test + val), "train": (test + val, 1.0)}
    wanted = [split for split, (low, high) in intervals.items() if high > low]
    place = {digest: int(digest[:16], 16) / 2**64 for digest in sorted(digests)}
    splits = {
        digest: next(split for split in wanted if intervals[split][0] <= x < intervals[split][1] or split == wanted[-1])
        for digest, x in place.items()
    }
    moved = {digest: split for digest, split in earlier.moved.items() if digest in splits}
    splits.update(moved)
    if len(digests) < 3:
        return splits, moved
    for split in wanted:
        if split in filled or split in splits.values():
            continue
        low, high = intervals[split]
        sizes = Counter(splits.values())
        spare = [digest for digest in splits if sizes[splits[digest]] > 1 and digest not in earlier.contents]
        if spare:
            nearest = min(spare, key=lambda digest: max(low - place[digest], place[digest] - high))
            splits[nearest] = moved[nearest] = split
    return splits, moved


def separate_copies(clips: Sequence[Clip]) -> tuple[list[Clip], list[tuple[Clip, Clip]]]:
    """Make sure that no content is in two splits.

    Where a source puts the same content (or overlapping ranges of the same video) into different splits, it stays in
    the test split, else in the validation split: those are what results are compared on. Copies elsewhere are left out.

    Returns:
        the clips that stay, in order; and each clip that is left out with the one it repeats.
    """
    splits: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        if clip.digest:
            splits[clip.digest].add(clip.split)
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        if len(splits.get(clip.digest, ())) > 1:
            groups[clip.digest].append(clip)
    left_out: list[tuple[Clip, Clip]] = []
    for group in groups.values():
        kept: list[Clip] = []
        for clip in sorted(group, key=lambda clip: _FIRST.index(clip.split)):
            rival = next((other for other in kept if other.split != clip.split and _overlap(clip, other)), None)
            if rival is None:
                kept.append(clip)
            else:
                left_out.append((clip, rival))
    gone = {clip.id for clip, _ in left_out}
    return [clip for clip in clips if clip.id not in gone], left_out


def _overlap(one: Clip, other: Clip) -> bool:
    starts = max(one.start or 0.0, other.start or 0.0)
    return starts < min(math.inf if clip.end is None else clip.end for clip in (one, other))

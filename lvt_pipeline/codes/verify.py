"""Verify that a code store has, byte for byte, its original content, and that its content makes sense.

Every file is compared with the digest that the root recorded when it was published, and the root with its own. Then the
content: clip tables against the array, codes against K. Damage is narrowed down to chunks, and so to clips.

Other processes may write the store at the same time. The generations that are checked are held (`readers`), and
problems that may be changes in between are looked at again before they are reported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lvt_pipeline.codes import layout
from lvt_pipeline.codes.checks import read_pending
from lvt_pipeline.codes.clip_table import is_as_written, read_generation
from lvt_pipeline.codes.layout import ARRAYS, CARD, GENERATIONS, DamagedRootError, StoreRoot
from lvt_pipeline.codes.loading.cache import cache_folder, is_sound, map_file
from lvt_pipeline.codes.schema import CodeClip, CodeSchema, FrameArray, index_of, metadata_name, shard_name
from lvt_pipeline.codes.shard_file import array_metadata, chunks_of, damaged_frames, decode_chunk
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import ArtefactError, StoreError
from lvt_pipeline.progress import SILENT, Progress, count_of
from lvt_pipeline.provenance import ZARR_METADATA
from lvt_pipeline.storage import Place, as_place, is_locked, parse_json

WORKERS = 4  # threads; hashing, decompressing and reading all leave Python's lock
ATTEMPTS = 5  # at a store that changes at the same time
NAMED_CLIPS = 3  # clips that a line names before it only counts


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is wrong with a store.

    Attributes:
        file: path relative to the store, or of a cache next to it.
        message: the rest of the sentence that begins with the name of the file.
        clips: ids of the clips, of any generation, that cannot be trusted because of it.
    """

    file: str
    message: str
    clips: tuple[str, ...] = ()

    def line(self) -> str:
        """One line for people."""
        if not self.clips:
            return f"{self.file} {self.message}"
        named = ", ".join(self.clips[:NAMED_CLIPS])
        more = f" and {len(self.clips) - NAMED_CLIPS} more" if len(self.clips) > NAMED_CLIPS else ""
        count = f"{len(self.clips)} clip{'s' if len(self.clips) > 1 else ''}"
        return f"{self.file} {self.message}: {count} affected ({named}{more})"


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        problems: empty for a sound store.
        notes: remarks that are not about damage.
        generations: those that were checked.
        clips: in the current generation, or the one that was asked for.
        files, bytes: read.
        damaged_shards: indices, for repair.
    """

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    generations: tuple[int, ...]
    clips: int
    files: int
    bytes: int
    damaged_shards: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def verify_store(path: Place, generation: int | None = None, *, progress: Progress = SILENT) -> VerifyReport:
    """Check every byte of a store.

    Args:
        generation: only this generation and its files; all that can be read by default.

    Raises:
        StoreError: there is no store at `path`, or no such generation.
        LVTError: the operating system refused to read a file, which is not damage.
    """
    path = as_place(path).absolute()
    previous: VerifyReport | None = None
    for _ in range(ATTEMPTS):
        before, is_busy = _state(path), is_locked(path)
        report = _verify(path, generation, progress)
        is_quiet = not is_busy and not is_locked(path) and _state(path) == before
        if not report.problems or is_quiet or (previous and previous.problems == report.problems):
            return report
        previous = report
    return report


def _state(path: Place) -> tuple[bytes | None, bytes | None]:
    """Everything that states which files belong to a store: the root, and the plan of unfinished work."""
    return layout.read_file(path / ZARR_METADATA), layout.read_file(path / layout.PENDING_FILE)


def _verify(path: Place, generation: int | None, progress: Progress) -> VerifyReport:
    try:
        root = layout.read_root(path)
    except DamagedRootError as error:
        problem = Problem(file=ZARR_METADATA, message=f"cannot be trusted, so nothing else can be checked ({error})")
        return VerifyReport(problems=(problem,), notes=(), generations=(), clips=0, files=1, bytes=0, damaged_shards=())
    if root is None:
        open_codes(path)  # its error names what it found
        raise AssertionError("a store without a root does not open")
    if generation is not None and generation not in root.numbers:
        open_codes(path, generation)  # its error lists the generations
    chosen = root.numbers if generation is None else [generation]
    return _Verification(path, root, chosen, is_whole=generation is None).run(progress)


def find_damaged_shards(path: Place) -> tuple[int, ...]:
    """Indices of the shards of the current generation whose bytes have changed since they were written.

    Raises:
        StoreError: there is no store at `path`, or its metadata is damaged.
    """
    store = open_codes(path)
    check = _Verification(path, store.root, [store.generation], is_whole=False)
    check.stores = [store]
    with ThreadPoolExecutor(WORKERS, "verify") as workers:
        list(workers.map(check.check_file, check.shard_files))
    return tuple(sorted(check.damaged))


class _Verification:
    """One pass over a store. `check_shard` may be called by several threads at once."""

    def __init__(self, path: Place, root: StoreRoot, generations: Sequence[int], *, is_whole: bool) -> None:
        self.path = path
        self.root = root
        self.generations = generations
        self.is_whole = is_whole
        self.stores: list[CodeStore] = []
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.damaged: set[int] = set()
        self.num_files = self.num_bytes = 0
        self._parts: dict[str, bool] = {}  # of clip tables: whether each is as it was written
        self._is_pending = layout.has_file(path, layout.PENDING_FILE)

    def run(self, progress: Progress) -> VerifyReport:
        """Check the generations that were asked for."""
        self._read(ZARR_METADATA)  # the root has been checked
        self._open_generations()
        self._check_metadata()
        files = self.shard_files
        with ThreadPoolExecutor(WORKERS, "verify") as workers, progress.bar("verify", len(files), "shards") as bar:
            for _ in workers.map(self.check_file, files):
                bar.advance()
        for store in self.stores:
            self.problems += _table_problems(store)
        if self.is_whole:
            self.problems += self._unclaimed({shard_name(*file) for file in files})
            self._check_caches()
        if not self.stores:
            self.notes.append("no clip table can be used, so no shard was checked")
        if self.root.foreign:
            self.notes.append(f"the root has attributes that lvt did not write: {', '.join(self.root.foreign)}")
        if self._is_pending:
            self.notes.append("an interrupted command left unfinished work; run it again, or see lvt gc")
        return VerifyReport(
            problems=tuple(sorted(self.problems, key=lambda problem: problem.file)),
            notes=tuple(self.notes),
            generations=tuple(self.generations),
            clips=len(self.stores[-1].clips) if self.stores else 0,
            files=self.num_files,
            bytes=self.num_bytes,
            damaged_shards=tuple(sorted(self.damaged)),
        )

    @property
    def shard_files(self) -> list[tuple[int, FrameArray]]:
        """Index and array of every file of a shard that a generation needs, in order of the indices."""
        found = {
            (index, array.folder): (index, array)
            for store in self.stores
            for index in store.shards()
            for array in store.schema.every_array
        }
        return [found[key] for key in sorted(found)]

    def check_file(self, file: tuple[int, FrameArray]) -> None:
        """Compare a file of a shard with its digest, decode it, and compare its codes with K."""
        index, array = file
        name = shard_name(index, array)
        data = self._read(name)
        if data is None:
            self.damaged.add(index)
            self._report(name, "is missing", self._clips_in(index))
            return
        expected = self.root.files.get(name)
        is_right = expected is not None and layout.digest_bytes(data) == expected
        damage = [] if is_right else list(damaged_frames(data, array))
        if damage:
            clips = [clip for first, stop, _ in damage for clip in self._clips_in(index, first, stop)]
            self._report(name, "; ".join(message for _, _, message in damage), dict.fromkeys(clips))
        elif expected is not None and not is_right:
            self._report(name, "is not what was written, though all its codes can be read", self._clips_in(index))
        elif expected is None:
            self._report(name, "has no digest in the root", self._clips_in(index))
        else:
            if isinstance(array, CodeSchema):
                self._check_codes(index, data, array)
            return
        self.damaged.add(index)

    def _check_codes(self, index: int, data: bytes, schema: CodeSchema) -> None:
        view = memoryview(data)
        for chunk in chunks_of(data, schema):
            codes = decode_chunk(view[chunk.offset : chunk.offset + chunk.size], chunk, schema, is_trusted=True)
            if int(codes.max()) >= schema.codebook_size:
                clips = self._clips_in(index, chunk.first_frame, chunk.first_frame + schema.frames_per_chunk)
                self.damaged.add(index)
                self._report(
                    shard_name(index),
                    f"holds the code {int(codes.max())}, which is not in [0, {schema.codebook_size})",
                    clips,
                )

    def _check_metadata(self) -> None:
        tables = {layout.table_name(number) for number in self.root.numbers}
        for name in [name for name in self.root.files if index_of(name) < 0 and name not in tables]:
            data = self._read(name)
            if data is None:
                self._report(name, "is missing")
            elif not self._is_explained(name, data) and layout.read_file(self.path / name) == data:
                self._report(name, "is not what was written")  # and was not replaced at this moment
        data = self._read(layout.PENDING_FILE)
        self._is_pending = data is not None
        if data is not None and not layout.is_sealed(data):
            self._report(layout.PENDING_FILE, "does not match its digest")

    def _is_explained(self, name: str, data: bytes) -> bool:
        """Whether a file is right, or differs for a good reason: unfinished work, or additions of others."""
        if layout.digest_bytes(data) == self.root.files.get(name):
            return True
        if name == CARD:
            return layout.has_file(self.path, layout.PENDING_FILE)
        if name in (f"{GENERATIONS}/{ZARR_METADATA}", f"{ARRAYS}/{ZARR_METADATA}"):
            ours = layout.without_additions(data, ())
            return ours is not None and layout.digest_bytes(ours) == self.root.files.get(name)
        pending = read_pending(self.path)
        if pending is not None and layout.digest_bytes(data) == pending.array:
            return True  # it has grown already
        arrays = self.stores[-1].schema.every_array if self.stores else ()
        array = next((array for array in arrays if metadata_name(array) == name), None)
        if array is None:
            return False
        try:
            found = parse_json(data, self.path / name)
            grown = found["shape"][0] if pending is not None else 0
        except (ArtefactError, KeyError, TypeError, IndexError):
            return False
        if type(grown) is int and grown > 0 and data == array_metadata(grown, array):
            return True
        ours = array_metadata(self.stores[-1].array_frames, array)
        is_same = isinstance(found, dict) and {**found, "attributes": {}} == parse_json(ours, self.path / name)
        return is_same and layout.digest_bytes(ours) == self.root.files.get(name)

    def _open_generations(self) -> None:
        for number in self.generations:
            name = layout.table_name(number)
            if not self._has_part(name, self.root.files.get(name, "")):
                continue
            try:
                pages = read_generation(self.path, self.root, number).get("pages", [])
                whole = [self._has_part(layout.page_name(digest), digest) for digest in pages]  # reports all of them
                if all(whole):
                    self.stores.append(open_codes(self.path, number))
            except ArtefactError as error:
                if str(self.path / GENERATIONS) in str(error):  # an array is reported by itself
                    self._report(name, f"cannot be used ({error})")

    def _has_part(self, name: str, digest: str) -> bool:
        """Whether a clip table, or a page of one, is as it was written. Each is read and reported once."""
        if name not in self._parts:
            problem = "is missing" if self._read(name) is None else "is not what was written"
            self._parts[name] = is_as_written(self.path, name, digest)
            if not self._parts[name]:
                self._report(name, f"{problem}: its generation cannot be read")
        return self._parts[name]

    def _unclaimed(self, used: Collection[str]) -> Iterator[Problem]:
        """Files that the root names but no generation uses, and files that nothing names."""
        others = 0
        for name in [entry.name for entry in layout.shard_files(self.path)]:
            if name in used:
                continue
            others += 1
            data, expected = self._read(name), self.root.files.get(name)
            if expected is not None and data is not None and layout.digest_bytes(data) != expected:
                yield Problem(file=name, message="is not what was written (no clip uses it)")
        if others:
            self.notes.append(f"{count_of(others, 'shard file')} without a generation; lvt gc shows them")

    def _check_caches(self) -> None:
        """Memory-mapped copies of a split must hold the codes they are named after."""
        by_fingerprint = {store.fingerprint: store for store in self.stores}
        for file in sorted(cache_folder(self.path).glob("*.npy")):
            split, _, fingerprint = file.stem.rpartition("-")
            store = by_fingerprint.get(fingerprint)
            if store is None:
                continue
            self.num_files += 1
            self.num_bytes += file.stat().st_size
            wrong = _wrong_in_cache(file, store, *split.partition(".")[::2])
            if wrong is not None and file.exists():  # otherwise it was removed meanwhile
                self._report(str(file), "is not a copy of the store; delete it, it is made again", wrong)

    def _clips_in(self, index: int, first: int = 0, stop: int | None = None) -> list[str]:
        """Ids of the clips in frames [first, stop) of a shard, in any generation that is checked."""
        size = self.stores[0].schema.shard_frames
        start, end = index * size + first, index * size + (size if stop is None else stop)
        return list(
            dict.fromkeys(
                clip.id
                for store in reversed(self.stores)
                for clip in store.clips
                if clip.offset < end and clip.offset + clip.length > start
            )
        )

    def _read(self, name: str) -> bytes | None:
        data = layout.read_file(self.path / name)
        if data is not None:
            self.num_files += 1
            self.num_bytes += len(data)
        return data

    def _report(self, file: str, message: str, clips: Iterable[str] = ()) -> None:
        self.problems.append(Problem(file=file, message=message, clips=tuple(clips)))


def _table_problems(store: CodeStore) -> Iterator[Problem]:
    """Problems of a clip table by itself, and against the array."""
    name = layout.table_name(store.generation)
    clips = store.clips
    if store.fingerprint != store.table.fingerprint(store.schema):
        yield Problem(file=name, message="does not match the fingerprint of its generation")
    if len({clip.id for clip in clips}) != len(clips):
        yield Problem(file=name, message="names a clip twice")
    overlapping: list[str] = []
    last: CodeClip | None = None
    for clip in sorted(clips, key=lambda clip: (clip.offset, clip.length)):
        is_twin = last is not None and (clip.offset, clip.length, clip.fingerprint) == (
            last.offset,
            last.length,
            last.fingerprint,
        )
        if last is not None and clip.offset < _end(last) and not is_twin:
            overlapping += [last.id, clip.id]
        last = clip if last is None or _end(clip) > _end(last) else last
    if overlapping:
        yield Problem(file=name, message="has clips that overlap", clips=tuple(dict.fromkeys(overlapping)))
    counted = store.provenance.counts.get("frames")
    if counted is not None and counted != store.num_frames:
        yield Problem(file=name, message=f"has {store.num_frames} frames, its record counts {counted}")


def _end(clip: CodeClip) -> int:
    return clip.offset + clip.length


def _wrong_in_cache(file: Path, store: CodeStore, split: str, name: str) -> list[str] | None:
    """Ids of clips that a cache file of codes, or of the side array `name`, has wrong, [] when it is not a cache file,
    None when it is right.
    """
    clips, array = store.split(split), store.array(name).array if name in store.arrays else store.codes
    values = map_file(file, (sum(clip.length for clip in clips), *array.layout.frame_shape), array.layout.dtype)
    if values is None:
        return []
    wrong, start = [], 0
    for clip in clips:
        try:
            if values[start : start + clip.length].tobytes() != array.read(*clip.place()).tobytes():
                wrong.append(clip.id)
        except StoreError:
            pass  # the shard has been reported
        start += clip.length
    return wrong or (None if is_sound(file) else [])

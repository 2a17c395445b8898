"""Stage `decode`: codes of any code store to files that people open (paper, sections 3.1 and 4.1).

One file per clip. `files.jsonl` in the output folder records the input of each finished file, so a run that was
stopped, or a store that grew, costs only the clips that are missing or changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from lvt_pipeline import lineage
from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import LVTError
from lvt_pipeline.job import Clock, Job, report_replaced
from lvt_pipeline.jobs.runner import LOCAL, Elsewhere, Plan, Runner
from lvt_pipeline.jobs.settings import DecodeSettings
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import SILENT, Bar, Progress
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.compatibility import require_own_tokenizer
from lvt_pipeline.runs.read import load_vqvae, run_fingerprint
from lvt_pipeline.storage import Place, clip_file, describe_os_error, json_log, remove_leftovers, write_bytes
from lvt_pipeline.video.write import write_video

if TYPE_CHECKING:
    from lvt_pipeline.models.vqvae.model import VQVAE

STAGE = "decode"
VERSION = 1
JOB = Job(stage=STAGE, version=VERSION, kind="videos")
FILES_NAME = "files.jsonl"


@dataclass(frozen=True)
class _File:
    """One line of `files.jsonl`: a finished file, and the fingerprint of its input."""

    id: str
    file: str
    fingerprint: str
    bytes: int


def decode_store(
    codes: Place,
    vqvae: Path,
    out: Path,
    settings: DecodeSettings = DecodeSettings(),
    *,
    generation: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    runner: Runner = LOCAL,
    progress: Progress = SILENT,
) -> Provenance:
    """Decode clips into `out/<clip id>.<format>`; ids with slashes become folders.

    Args:
        codes: code store, of real or of sampled clips.
        vqvae: run directory of the tokenizer that made the codes.
        out: new folder, or one this function made: files that are still right stay as they are, others are replaced,
            and those no longer asked for are removed.
        generation: which generation of `codes` is read; the current one by default.
        overwrite: make every file again.

    Raises:
        MismatchError: the codes are of another tokenizer; both are named.
        ArtefactError: `out` holds other things.
        Stopped: a signal came; finished files are kept.
    """
    clock = Clock()
    require_output_folder(out, STAGE, (codes, vqvae))
    store = open_codes(codes, generation)
    model = load_vqvae(vqvae, device=device if runner.is_local else "cpu")
    require_own_tokenizer(store, vqvae, model)
    inputs = {"codes": store.fingerprint, "vqvae": run_fingerprint(vqvae)}
    clips = _chosen(store, settings)
    wanted = {clip.id: _made_of(clip, inputs["vqvae"], settings) for clip in clips}
    with JOB.open_folder(out, settings, inputs, overwrite=overwrite, is_ours=_has_list, clock=clock) as work:
        if work.is_current:
            return work.record
        done = {} if overwrite else _finished_files(out)
        missing = [clip for clip in clips if clip.id not in done or done[clip.id].fingerprint != wanted[clip.id]]
        kinds = ", ".join(sorted({PurePosixPath(file.file).suffix for file in done.values()}))
        replaced, removed = sum(clip.id in done for clip in missing), len(done.keys() - wanted.keys())
        report_replaced(out, f"{kinds} files", replaced, removed, progress)
        work.begin()
        _append(out)
        _remove_leftovers(out, missing, settings)
        here = VideoWorker(store, model, out, settings)
        places = store.path, vqvae.absolute(), out.absolute()
        elsewhere = Elsewhere(partial(_start, *places, store.generation, settings), places, device)
        plans = [Plan(f"clip {clip.id}", (clip, wanted[clip.id])) for clip in missing]
        with progress.bar("decode", len(clips), "clips", done=len(clips) - len(missing)) as bar:
            for file in runner.make((here, elsewhere), plans, bar, work.stop, lambda _: f"finished files are in {out}"):
                done[file.id] = file
                _append(out, file)
        files = [done[clip.id] for clip in clips]
        _tidy(out, files)
        outputs = {file.file: file.bytes for file in files}
        counts = {"clips": len(files), "frames": sum(clip.length for clip in clips), "bytes": sum(outputs.values())}
        made_of = [[file.id, file.fingerprint] for file in files]
        return work.finish(lineage.videos_fingerprint(made_of), outputs, counts)


def _remove_leftovers(out: Path, clips: Sequence[CodeClip], settings: DecodeSettings) -> None:
    for folder in {(out / _file_name(clip.id, settings.format)).parent for clip in clips}:
        remove_leftovers(folder)


def _has_list(names: Set[str]) -> bool:
    return FILES_NAME in names


def _start(codes: Place, vqvae: Path, out: Path, generation: int, settings: DecodeSettings, device: str) -> VideoWorker:
    store, model = open_codes(codes, generation), load_vqvae(vqvae, device=device)
    return VideoWorker(store, model, out, settings)


@dataclass(frozen=True)
class VideoWorker:
    """Decodes clips to files one after another."""

    store: CodeStore
    model: VQVAE
    out: Path
    settings: DecodeSettings

    def __call__(
        self, clips: Sequence[tuple[CodeClip, str]], bar: Bar, should_stop: Callable[[], object]
    ) -> Iterator[_File]:
        """The files of clips with their fingerprints, as far as they are written before a stop."""
        for clip, fingerprint in clips:
            if should_stop():
                return
            path = self.out / _file_name(clip.id, self.settings.format)
            frames = self.model.decode(self.store.read(clip)).numpy()
            write_video(path, frames, self.settings.fps or clip.fps, self.settings.scale)
            bar.advance()
            yield _File(clip.id, str(path.relative_to(self.out)), fingerprint, path.stat().st_size)


def _chosen(store: CodeStore, settings: DecodeSettings) -> list[CodeClip]:
    clips = [store.clip(clip_id) for clip_id in dict.fromkeys(settings.clips)] or list(store.clips)
    clips = [clip for clip in clips if settings.split in (None, clip.split)]
    if not clips:
        raise LVTError(f"{store.path} has no clip to decode in split {settings.split}; leave the split out for all")
    return clips


def _made_of(clip: CodeClip, decoder: str, settings: DecodeSettings) -> str:
    return lineage.video_fingerprint(
        VERSION,
        codes=clip.codes_fingerprint,
        decoder=decoder,
        format=settings.format,
        scale=settings.scale,
        fps=settings.fps or clip.fps,
    )


def _file_name(clip_id: str, suffix: str) -> str:
    """The path of a clip's file in the output folder. An id cannot lead out of it."""
    parts = PurePosixPath(clip_id).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise LVTError(f"clip id {clip_id!r} cannot be a file name; rename it in the manifest")
    return clip_file(str(PurePosixPath(clip_id)), f".{suffix}")


def _finished_files(out: Path) -> dict[str, _File]:
    """By clip id, the files that are there with the size they were written with; of two lines the later one counts."""
    found: dict[str, _File] = {}
    for line in _lines(out):
        found[line.id] = line
    return {clip_id: file for clip_id, file in found.items() if _size(out / file.file) == file.bytes}


def _lines(out: Path) -> Iterator[_File]:
    """Lines of the list. One that a crash cut short is as good as none."""
    path = out / FILES_NAME
    for line in json_log(path.read_bytes()) if path.exists() else ():
        with suppress(TypeError):
            yield _File(**line)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _append(out: Path, *files: _File) -> None:
    """Add finished files to the list. With none, the list is there, which marks the folder as ours."""
    try:
        with open(out / FILES_NAME, "ab") as stream:
            for file in files:
                stream.write(b"\n" + _line(file))  # the line break comes first, to end a line that was cut short
    except OSError as error:
        raise describe_os_error(error, f"writing {out / FILES_NAME}") from error


def _line(file: _File) -> bytes:
    return json.dumps(asdict(file), ensure_ascii=False).encode()


def _tidy(out: Path, files: Sequence[_File]) -> None:
    """Remove files that an earlier run made and nobody asks for now, then write a new list."""
    wanted = {file.file for file in files}
    for line in _lines(out):
        if line.file not in wanted:
            (out / line.file).unlink(missing_ok=True)
            for folder in (out / line.file).relative_to(out).parents:
                if folder.parts and not any((out / folder).iterdir()):
                    (out / folder).rmdir()
    write_bytes(out / FILES_NAME, b"".join(_line(file) + b"\n" for file in files))

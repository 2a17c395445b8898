"""The skeleton that all long jobs share: open, lock, remove leftovers, check, up to date?, work, record.

A stage declares its properties once, and its function holds only the code of that stage:

    JOB = Job(stage="decode", version=1, kind="videos")

    with JOB.open_folder(out, settings, inputs) as work:
        if work.is_current:
            return work.record
        work.begin()
        ...
        return work.finish(fingerprint, outputs, counts)

Code stores and run directories have writers with locks and records of their own. Their stages use `Job.recorder`,
which builds the record, and nothing else of this module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.interrupts import StopRequest, stop_requested
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.progress import Progress
from lvt_pipeline.provenance import (
    RECORD_NAME,
    Provenance,
    differences,
    finished_record,
    missing_outputs,
    now,
    write_record,
)
from lvt_pipeline.storage import Place, open_storage


class Clock:
    """Measures the wall time of a job from the moment the clock is made.

    Args:
        earlier_seconds: wall time of the interrupted runs that this one resumes.
    """

    def __init__(self, earlier_seconds: float = 0.0) -> None:
        self._started = time.monotonic() - earlier_seconds

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return time.monotonic() - self._started


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a stage is.

    Attributes:
        stage: name of the command.
        version: of the algorithm; raised by hand when its output changes.
        kind: kind of its output, as in `Provenance.kind`.
    """

    stage: str
    version: int
    kind: str

    def recorder(self, settings: Any, inputs: Mapping[str, str], clock: Clock | None = None) -> Recorder:
        """Something that builds the record of an output with these settings and inputs.

        Args:
            settings: settings dataclass, or plain data.
            inputs: fingerprints by role.
            clock: started earlier, when the work began before the inputs were known.
        """
        return Recorder(self, settings, inputs, clock)

    @contextmanager
    def own_folder(self, out: Place, is_ours: Callable[[Set[str]], bool]) -> Iterator[StopRequest]:
        """Own an output folder until the block ends; it is created if missing. In a bucket others may write it too.

        Args:
            is_ours: whether a folder with these names in it, but no record, is an unfinished output of this stage.

        Raises:
            ArtefactError: the folder holds something else.
            BusyError: another process is writing it.
        """
        with open_storage(out).exclusive(), stop_requested() as stop:
            _require_own_folder(out, self, is_ours)
            yield stop

    @contextmanager
    def open_folder(
        self,
        out: Path,
        settings: Any,
        inputs: Mapping[str, str],
        *,
        overwrite: bool = False,
        is_ours: Callable[[Set[str]], bool] = lambda names: False,
        clock: Clock | None = None,
    ) -> Iterator[Work]:
        """`own_folder` for a job whose record shows whether its output is current.

        Args:
            overwrite: nothing that exists counts as current.
        """
        with self.own_folder(out, is_ours) as stop:
            yield Work(self, settings, inputs, clock, out=out, is_folder=True, stop=stop, overwrite=overwrite)

    @contextmanager
    def open_file(
        self, out: Path, settings: Any, inputs: Mapping[str, str], *, clock: Clock | None = None
    ) -> Iterator[Work]:
        """Prepare to write one output file, which is replaced as a whole. See also `outputs.require_output_file`."""
        with stop_requested() as stop:
            yield Work(self, settings, inputs, clock, out=out, is_folder=False, stop=stop)


class Recorder:
    """Builds the record of one output. Made by `Job.recorder`."""

    def __init__(self, job: Job, settings: Any, inputs: Mapping[str, str], clock: Clock | None = None) -> None:
        self.job = job
        self.settings: Mapping[str, Any] = dict(settings) if isinstance(settings, Mapping) else to_plain(settings)
        self.inputs = dict(inputs)
        self.clock = clock or Clock()

    def new_record(
        self, fingerprint: str = "", outputs: Mapping[str, int] | None = None, counts: Mapping[str, Any] | None = None
    ) -> Provenance:
        """The record of the finished output.

        Args:
            fingerprint: hash of the output; empty where the writer of a code store fills it in.
            outputs: size in bytes of each file.
            counts: facts about the output. What one of several resumed runs did is not a fact about the output: a
                record is the same however often the work was interrupted, but for its times.
        """
        return Provenance(
            kind=self.job.kind,
            stage=self.job.stage,
            version=self.job.version,
            settings=self.settings,
            inputs=self.inputs,
            fingerprint=fingerprint,
            outputs=dict(outputs or {}),
            counts=dict(counts or {}),
            seconds=round(self.clock.seconds, 3),
            finished=now(),
        )


class Work(Recorder):
    """A job under way. Made by `Job.open_folder` and `Job.open_file`.

    Attributes:
        old: record of the finished output that was there before, None when there is none.
        stop: whether a signal has asked the work to end.
    """

    def __init__(
        self,
        job: Job,
        settings: Any,
        inputs: Mapping[str, str],
        clock: Clock | None,
        *,
        out: Path,
        is_folder: bool,
        stop: StopRequest,
        overwrite: bool = False,
    ) -> None:
        super().__init__(job, settings, inputs, clock)
        self.out, self.stop = out, stop
        self._is_folder = is_folder
        self._overwrite = overwrite
        self.old = finished_record(out)

    @property
    def record(self) -> Provenance:
        """The record of the output that was there before. Ask `is_current` first."""
        assert self.old is not None, f"{self.out} has no record"
        return self.old

    @property
    def is_current(self) -> bool:
        """Whether the output is finished, complete and what would be made now."""
        if self.old is None or self._overwrite or missing_outputs(self.out, self.old):
            return False
        return not differences(self.old, self.job.version, self.settings, self.inputs)

    def begin(self) -> None:
        """Mark a folder as unfinished, from now until `finish`. A file is replaced whole and needs no mark."""
        if self._is_folder:
            (self.out / RECORD_NAME).unlink(missing_ok=True)

    def finish(
        self, fingerprint: str, outputs: Mapping[str, int] | None = None, counts: Mapping[str, Any] | None = None
    ) -> Provenance:
        """Write the record: from here on the output is finished.

        Args:
            outputs: size in bytes of each file; by default the output file itself.
        """
        if outputs is None and not self._is_folder:
            outputs = {self.out.name: self.out.stat().st_size}
        record = self.new_record(fingerprint, outputs, counts)
        write_record(self.out, record)
        return record


def report_replaced(out: Place, what: str, replaced: int, removed: int, progress: Progress) -> None:
    """Report what of an existing output will not be there afterwards.

    Args:
        what: its parts, such as "samples".
        replaced: how many are made again, because their settings or inputs differ.
        removed: how many are not asked for any more.
    """
    if replaced:
        progress.say(f"{out}: {replaced} {what} are replaced: their settings or inputs were others")
    if removed:
        progress.say(f"{out}: {removed} {what} are removed: they are not asked for any more")


def _require_own_folder(out: Place, job: Job, is_ours: Callable[[Set[str]], bool]) -> None:
    """Refuse a folder that holds files of another stage or of another program."""
    require_output_folder(out, job.stage)
    names = open_storage(out).members() or set()
    if finished_record(out) is not None or is_ours(names) or not names:
        return
    found = "holds other things than the output"
    if RECORD_NAME in names:
        found = f"has a {RECORD_NAME} that cannot be read, so it cannot be recognised as the output"
    raise ArtefactError(f"{out} {found} of lvt {job.stage}; choose another output folder, or delete this one first")

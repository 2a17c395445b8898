"""The paper's protocol (section 4.1): 16 frames, 5 priming frames for FVD and 1 for bits per code, mean over 10 runs.

A run samples one continuation of every clip with its own seed, keeps it as a code store, and measures it. Next to the
result `eval.json` are

    eval.runs/teacher-forced.json      bits per code, baselines and reconstruction, which no seed changes
    eval.runs/run-00/samples.zarr      code store of the first run
    eval.runs/run-00/run.json          its errors and distances

so a stopped evaluation resumes where it was, and finished, unchanged parts are never done again. The baselines are
measured on the same clips: the last priming frame repeated, the tokenizer's reconstruction (no sample can look better),
and the unigram and previous-frame predictors of codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.config import to_plain
from lvt_pipeline.errors import ArtefactError, ConfigError
from lvt_pipeline.evaluation.distances.fvd import FeatureCache
from lvt_pipeline.evaluation.evaluate import (
    CACHE,
    DEFAULTS,
    FILE_MARK,
    JOB,
    STAGE,
    measure_continuations,
    raise_failures,
    write_evaluation,
)
from lvt_pipeline.evaluation.protocols.results import Protocol, combined_results, runs_folder
from lvt_pipeline.evaluation.results import is_unchanged, plain, summary_line, write_results
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.evaluation.sources import Opened, Sources, open_sources
from lvt_pipeline.job import Clock, Job
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.outputs import require_output_file
from lvt_pipeline.progress import SILENT, Progress, count_of
from lvt_pipeline.provenance import Provenance, fingerprint
from lvt_pipeline.storage import exclusive_lock, read_json

RUN_JOB = Job(stage="evaluate-run", version=2, kind="evaluation")


def evaluate_protocol(
    sources: Sources,
    out: Path,
    protocol: Protocol,
    settings: EvaluateSettings = DEFAULTS,
    *,
    num_runs: int | None = None,
    first_seed: int = 0,
    batch_size: int = 8,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Provenance:
    """Sample and measure every run, and write the result to the JSON file `out`. Finished parts are not done again.

    Args:
        sources: with a prior and without samples; without frames and a VQ-VAE run only codes are measured.
        settings: `split`, `max_clips`, `resize` and `priming_pixels` are used; frames come from the protocol.
        num_runs: fewer or more runs than the paper; the result records it.
        first_seed: the runs have this seed and the ones after it.

    Raises:
        MismatchError: the artefacts do not belong together.
        NetworkError: a network of the user failed. Everything else has been measured and written.
        Stopped: a signal came; finished runs and samples are kept.
    """
    clock = Clock()
    num_runs = protocol.runs if num_runs is None else num_runs
    if num_runs < 1:
        raise ConfigError(f"num_runs={num_runs} must be at least 1")
    settings = _as_in(protocol, settings)
    if sources.prior is None or sources.samples is not None:
        raise ConfigError("a protocol makes its own samples: it needs a prior, and takes no samples")
    require_output_file(out, STAGE, sources.paths, mark=FILE_MARK)
    with exclusive_lock(runs_folder(out)):
        opened = open_sources(sources, settings, device)
        running = _Running(out, protocol, settings, opened, batch_size, device, progress)
        record = running.everything(range(first_seed, first_seed + num_runs), clock)
    raise_failures(record, out)
    return record


def recorded_settings(protocol: Protocol, settings: EvaluateSettings, seeds: Sequence[int]) -> dict[str, Any]:
    """The settings that the record of such an evaluation names."""
    return to_plain(_as_in(protocol, settings)) | {
        "protocol": protocol.name,
        "sample_priming_frames": protocol.priming_frames,
        "seeds": list(seeds),
    }


def _as_in(protocol: Protocol, settings: EvaluateSettings) -> EvaluateSettings:
    return replace(settings, frames=protocol.frames, priming_frames=protocol.bits_priming_frames)


@dataclass(frozen=True)
class _Running:
    """The parts of a protocol, each measured once: the teacher-forced result, and the samples of each seed."""

    out: Path
    protocol: Protocol
    settings: EvaluateSettings
    opened: Opened
    batch_size: int
    device: str
    progress: Progress

    def everything(self, seeds: Sequence[int], clock: Clock) -> Provenance:
        """Do all runs and write the result, unless it is there and unchanged."""
        forced = self.forced()
        runs = [self.run(seed, f"{number} of {len(seeds)}") for number, seed in enumerate(seeds, 1)]
        inputs = self.opened.inputs | {f"samples-{run['seed']:02d}": run["inputs"]["samples"] for run in runs}
        settings = recorded_settings(self.protocol, self.settings, seeds)
        with JOB.open_file(self.out, settings, inputs, clock=clock) as work:
            if work.is_current and is_unchanged(self.out, work.record):
                return work.record
            results = combined_results(read_json(self.forced_path), runs, self.protocol, self.out)
            results = plain({**results, "settings": settings, "inputs": inputs})
            counts: dict[str, Any] = {
                "clips": results["clips"],
                "codes": results["baselines"]["codes"],
                "runs": len(runs),
                "summary": f"protocol {self.protocol.name}, {count_of(len(runs), 'run')}: {summary_line(results)}",
            }
            failed = {*forced.counts.get("failed", ())}
            failed |= {why for run in runs for why in run.get("failures", {}).values()}
            return write_results(work, results, counts | ({"failed": sorted(failed)} if failed else {}))

    @property
    def forced_path(self) -> Path:
        """The result that no seed changes."""
        return runs_folder(self.out) / "teacher-forced.json"

    def forced(self) -> Provenance:
        """Measure what no seed changes."""
        inputs = {name: value for name, value in self.opened.inputs.items() if name not in ("i3d", "features")}
        opened = replace(self.opened, features=None, inputs=inputs)
        return write_evaluation(
            opened, self.forced_path, self.settings, batch_size=self.batch_size, progress=self.progress
        )

    def run(self, seed: int, place: str) -> dict[str, Any]:
        """Sample with a seed and measure, unless that is done and unchanged. Returns what `run.json` holds, with its
        seed."""
        self.progress.say(f"run {place}, seed {seed}")
        forced, sources, store = read_json(self.forced_path), self.opened.sources, self.opened.store
        assert sources.prior is not None, "a protocol samples, and needs a prior"
        folder = runs_folder(self.out) / f"run-{seed:02d}"
        most = self.settings.max_clips  # sampling takes more clips than the split has from other splits
        num_clips = most if most is not None and most < len(store.split(forced["split"])) else None
        sampling = SampleSettings(
            frames=self.protocol.frames,
            priming_frames=self.protocol.priming_frames,
            split=forced["split"],
            num_clips=num_clips,
            seed=seed,
        )
        sample_clips(
            sources.prior,
            sources.codes,
            folder / "samples.zarr",
            sampling,
            generation=sources.generation,
            batch_size=self.batch_size,
            device=self.device,
            overwrite=_is_of_other_codes(folder / "samples.zarr", store),
            progress=self.progress,
        )
        # Sampling also takes clips that are too short to be evaluated.
        evaluated = frozenset(forced["per_clip"]["evaluated"]["clip"])
        return self._measured(folder, evaluated) | {"seed": seed}

    def _measured(self, folder: Path, clips: frozenset[str]) -> dict[str, Any]:
        opened, path = self.opened, folder / "run.json"
        sampled = open_codes(folder / "samples.zarr")
        inputs = {name: value for name, value in opened.inputs.items() if name != "prior"}
        if opened.pixels is None:
            inputs = {name: value for name, value in inputs.items() if name not in ("frames", "vqvae")}
        inputs |= {"samples": sampled.fingerprint}
        settings = {
            "resize": self.settings.resize,
            "priming_pixels": self.settings.priming_pixels,
            "clips": fingerprint(sorted(clips)),
        }
        with RUN_JOB.open_file(path, settings, inputs) as work:
            if work.is_current and is_unchanged(path, work.record):
                known: dict[str, Any] = read_json(path)
                return known
            cache = FeatureCache(self.out.parent / CACHE)
            found, failures = measure_continuations(
                opened, sampled, self.settings, cache, only=clips, progress=self.progress
            )
            results: dict[str, Any] = plain(found | ({"failures": failures} if failures else {}) | {"inputs": inputs})
            failed = {"failed": list(failures.values())} if failures else {}
            write_results(work, results, {"clips": len(sampled.clips), **failed})
            return results


def _is_of_other_codes(samples: Path, store: CodeStore) -> bool:
    """Whether finished samples were made from codes of another tokenizer, which one store cannot hold with these."""
    if not samples.exists():
        return False
    try:
        return open_codes(samples).tokenizer != store.tokenizer
    except ArtefactError:
        return False  # unfinished: sampling resumes, or refuses with a reason

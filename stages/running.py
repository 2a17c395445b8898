"""The options that decide where a stage works: in this process, on a Ray cluster, or in a job array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import click

from lvt_pipeline.jobs.runner import ALL, LOCAL, ArrayStep, Runner
from lvt_pipeline.settings import Settings, setting
from stages.values import Share


@dataclass(frozen=True, kw_only=True)
class RunnerOptions(Settings):
    """Where the shards of a stage are made."""

    decodes_videos: ClassVar[bool] = False

    runner: Literal["local", "ray"] = setting("local", "Place of the work: this process, or workers on a Ray cluster.")
    ray_address: str | None = setting(
        None, "Ray cluster, such as auto or HOST:6379.", unset="RAY_ADDRESS, or a new cluster on this machine"
    )
    workers: int | None = setting(
        None,
        "With --runner ray: number of Ray workers.",
        at_least=1,
        at_most=4096,
        unset="one per GPU or core of the cluster",
    )

    def start(self) -> Runner:
        """The runner.

        Raises:
            click.UsageError: options of Ray without `--runner ray`.
        """
        if self.runner == "ray":
            from lvt_pipeline.jobs.ray_runner import RayRunner

            return RayRunner(self.ray_address, self.workers)
        if self.ray_address is not None or not (self.decodes_videos or self.workers is None):
            raise click.UsageError("--ray-address and --workers are for --runner ray")
        return LOCAL


@dataclass(frozen=True, kw_only=True)
class DecodingOptions(RunnerOptions):
    """Where a stage that decodes videos works: also without Ray it has several processes."""

    decodes_videos: ClassVar[bool] = True

    workers: int | None = setting(
        None,
        "Number of decoding processes. 0: decode in the main process. With --runner ray: number of Ray workers.",
        at_least=0,
        at_most=4096,
        unset="one per core",
    )


@dataclass(frozen=True, kw_only=True)
class ArrayOptions:
    """Which part of a stage a process of a job array does."""

    plan_only: bool = setting(False, "Job array: only decide which shard holds which clips.")
    shards: Share | None = setting(None, "Job array: make every Nth shard, from the Ith.", example="I/N")
    publish: bool = setting(False, "Job array: finish the output, once all shards are there.")

    def step(self, runner: Runner, *, overwrite: bool, **alone: bool) -> ArrayStep:
        """The step of this process.

        Args:
            overwrite, alone: options of the stage that job arrays restrict or do not have, by name.

        Raises:
            click.UsageError: the options exclude each other.
        """
        if self.plan_only + self.publish + (self.shards is not None) > 1:
            raise click.UsageError("--plan-only, --shards and --publish are steps of their own; give one of them")
        step = ArrayStep("plan") if self.plan_only else ArrayStep("publish") if self.publish else ALL
        step = step if self.shards is None else ArrayStep("shards", *self.shards)
        if step != ALL and not runner.is_local:
            raise click.UsageError("a job array needs no --runner: its processes are started by the scheduler")
        for option, is_on in alone.items():
            if is_on and step != ALL:
                raise click.UsageError(f"--{option.replace('_', '-')} is not for job arrays; run it alone")
        if overwrite and step.kind in ("shards", "publish"):
            raise click.UsageError(f"--overwrite belongs to --plan-only, not to --{step.kind}")
        return step

"""The options that decide where a stage works: in this process, on a Ray cluster, or in a job array."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import click

from lvt_pipeline.jobs.runner import ALL, LOCAL, ArrayStep
from stages.values import SHARE, TEXT, Whole

Function = TypeVar("Function", bound=Callable[..., Any])


_RUNNER = click.option(
    "--runner",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Place of the work: this process, or workers on a Ray cluster.",
)
_ADDRESS = click.option(
    "--ray-address",
    type=TEXT,
    show_default="RAY_ADDRESS, or a new cluster on this machine",
    help="Ray cluster, such as auto or HOST:6379.",
)


def _workers_option(decodes_videos: bool) -> Callable[[Function], Function]:
    local = "Number of decoding processes. 0: decode in the main process. " if decodes_videos else ""
    return click.option(
        "--workers",
        type=Whole(0 if decodes_videos else 1, 4096),
        show_default="one per core" if decodes_videos else "one per GPU or core of the cluster",
        help=f"{local}With --runner ray: number of Ray workers.",
    )


def runner_options(*, decodes_videos: bool = False) -> Callable[[Function], Function]:
    """`--runner`, `--ray-address`, `--workers`; the command receives `runner`, and `workers` if it decodes videos."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, runner: str, ray_address: str | None, workers: int | None, **kwargs: Any) -> Any:
            if runner == "local":
                if ray_address is not None or not (decodes_videos or workers is None):
                    raise click.UsageError("--ray-address and --workers are for --runner ray")
                given: dict[str, Any] = {"runner": LOCAL}
            else:
                from lvt_pipeline.jobs.ray_runner import RayRunner

                given = {"runner": RayRunner(ray_address, workers)}
            return function(*args, **given, **({"workers": workers} if decodes_videos else {}), **kwargs)

        for option in (_workers_option(decodes_videos), _ADDRESS, _RUNNER):
            option(call)
        return typing.cast(Function, call)

    return decorate


def array_options(function: Function) -> Function:
    """`--plan-only`, `--shards` and `--publish`, below `runner_options`; the command receives `step`."""

    @functools.wraps(function)
    def call(*args: Any, plan_only: bool, shards: tuple[int, int] | None, publish: bool, **kwargs: Any) -> Any:
        if plan_only + publish + (shards is not None) > 1:
            raise click.UsageError("--plan-only, --shards and --publish are steps of their own; give one of them")
        step = ArrayStep("plan") if plan_only else ArrayStep("publish") if publish else ALL
        step = step if shards is None else ArrayStep("shards", *shards)
        if step != ALL and not kwargs["runner"].is_local:
            raise click.UsageError("a job array needs no --runner: its processes are started by the scheduler")
        for option in ("repair", "retry_failed"):
            if kwargs.get(option) and step != ALL:
                raise click.UsageError(f"--{option.replace('_', '-')} is not for job arrays; run it alone")
        if kwargs["overwrite"] and step.kind in ("shards", "publish"):
            raise click.UsageError(f"--overwrite belongs to --plan-only, not to --{step.kind}")
        return function(*args, step=step, **kwargs)

    for option in (
        click.option("--publish", is_flag=True, help="Job array: finish the output, once all shards are there."),
        click.option("--shards", type=SHARE, metavar="I/N", help="Job array: make every Nth shard, from the Ith."),
        click.option("--plan-only", is_flag=True, help="Job array: only decide which shard holds which clips."),
    ):
        option(call)
    return typing.cast(Function, call)

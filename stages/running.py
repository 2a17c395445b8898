"""The options that decide where a stage works: in one process or in the processes of a job array."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import click

from lvt_pipeline.jobs.runner import ALL, ArrayStep
from stages.values import SHARE

Function = TypeVar("Function", bound=Callable[..., Any])


def array_options(function: Function) -> Function:
    """`--plan-only`, `--shards` and `--publish`: the steps of a job array; the command receives `step`."""

    @functools.wraps(function)
    def call(*args: Any, plan_only: bool, shards: tuple[int, int] | None, publish: bool, **kwargs: Any) -> Any:
        if plan_only + publish + (shards is not None) > 1:
            raise click.UsageError("--plan-only, --shards and --publish are steps of their own; give one of them")
        step = ArrayStep("plan") if plan_only else ArrayStep("publish") if publish else ALL
        step = step if shards is None else ArrayStep("shards", *shards)
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

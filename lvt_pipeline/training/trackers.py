"""The lines of `metrics.jsonl` shown elsewhere as well: TensorBoard and Weights & Biases, which are extras.

`metrics.jsonl` is always written and is what counts. Neither package is imported unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.provenance import fingerprint
from lvt_pipeline.runs.layout import TENSORBOARD_NAME

TRACKERS = ("tensorboard", "wandb")
NOT_PLOTTED = ("step", "split", "final")


class Tracker(Protocol):
    """Somewhere lines of metrics go."""

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`."""

    def close(self) -> None:
        """No more lines come."""


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a metrics line as "split/name"; lists become "split/name/0", "split/name/1", ..."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if name in NOT_PLOTTED:
            continue
        for key, number in (
            [(f"{name}/{index}", item) for index, item in enumerate(value)]
            if isinstance(value, list)
            else [(name, value)]
        ):
            if isinstance(number, int | float) and not isinstance(number, bool):
                found[f"{line['split']}/{key}"] = float(number)
    return found


@contextmanager
def open_trackers(
    names: Sequence[str], run: Path, step: int, settings: Mapping[str, Any], identity: str
) -> Iterator[list[Tracker]]:
    """The trackers of a run that resumes from a step.

    Args:
        names: of `TRACKERS`.
        settings: plain data, shown with the curves.
        identity: what stays when the run is resumed and nothing else shares.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """
    with ExitStack() as stack:
        trackers: list[Tracker] = []
        for name in names:
            if name == "tensorboard":
                tracker: Tracker = _TensorBoard(run, step)
            elif name == "wandb":
                tracker = _WeightsAndBiases(run, settings, identity)
            else:
                raise ConfigError(f"tracker {name!r} is not one of {', '.join(TRACKERS)}")
            stack.callback(tracker.close)
            trackers.append(tracker)
        yield trackers


class _TensorBoard:
    def __init__(self, run: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(_not_installed("tensorboard")) from error
        # Points after the step that the run resumes from are hidden again.
        self._writer: Any = SummaryWriter(str(run / TENSORBOARD_NAME), purge_step=step + 1 if step else None)

    def log(self, line: Mapping[str, Any]) -> None:
        for name, value in scalars(line).items():
            self._writer.add_scalar(name, value, line["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, run: Path, settings: Mapping[str, Any], identity: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(_not_installed("wandb")) from error
        # WANDB_PROJECT, WANDB_MODE=offline and the like are Weights & Biases' own settings.
        self._run: Any = wandb.init(
            name=run.absolute().name,
            id=fingerprint({"run": identity})[:16],
            config=dict(settings),
            dir=str(run),
            resume="allow",
        )

    def log(self, line: Mapping[str, Any]) -> None:
        self._run.log(scalars(line), step=line["step"])

    def close(self) -> None:
        self._run.finish()


def _not_installed(package: str) -> str:
    return f"--track {package} needs a package that is not installed; pip install 'lvt-pipeline[{package}]'"

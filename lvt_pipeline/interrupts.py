"""Stopping politely: a signal asks, the work in hand is finished and saved, the command ends with exit code 75."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lvt_pipeline.errors import Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether a signal has asked the work to end. Check it between units of work."""

    def __init__(self) -> None:
        self.signal_name = ""

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def raise_if_set(self, saved: str) -> None:
        """End the work; `saved` says what is kept, such as "step 120 is saved in runs/prior".

        Raises:
            Stopped: a signal came.
        """
        if self:
            raise Stopped(f"stopped by {self.signal_name}: {saved}; run the same command again to go on")


@contextmanager
def stop_requested() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGUSR1 into a request while the block runs. Outside the main thread nothing is changed."""
    request = StopRequest()

    def remember(number: int, frame: FrameType | None) -> None:
        request.signal_name = signal.Signals(number).name

    try:
        old = {number: signal.signal(number, remember) for number in STOP_SIGNALS}
    except ValueError:  # not the main thread: signals belong to the caller
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

"""Stopping on request: after a signal the unit of work in hand is finished and saved; the exit code is 75."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lvt_pipeline.errors import Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # SIGHUP: the terminal was closed


class StopRequest:
    """Whether a signal has asked the work to end. Check it between units of work."""

    def __init__(self) -> None:
        self.signal_name = ""

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def raise_if_set(self, saved: str) -> None:
        """End the work; `saved` names the kept results, such as "step 120 is saved in runs/prior".

        Raises:
            Stopped: a signal came.
        """
        if self:
            raise Stopped(f"stopped by {self.signal_name}: {saved}; run the same command again to resume")


@contextmanager
def stop_requested() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGUSR1 and SIGHUP into a request while the block runs.

    Outside the main thread nothing is changed, nor for a signal that is ignored, as `nohup` ignores SIGHUP.
    """
    request = StopRequest()

    def remember(number: int, frame: FrameType | None) -> None:
        request.signal_name = signal.Signals(number).name

    try:
        heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        old = {number: signal.signal(number, remember) for number in heard}
    except ValueError:  # not the main thread: signals belong to the caller
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def interrupt_requested() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C into a request while the block runs; the second one interrupts at once.

    For work whose state must not be saved half-way through a step. Whoever uses it raises KeyboardInterrupt once the
    state is saved. Outside the main thread, and where Ctrl-C is ignored, nothing is changed.
    """
    request = StopRequest()

    def remember(number: int, frame: FrameType | None) -> None:
        if request:
            raise KeyboardInterrupt
        request.signal_name = signal.Signals(number).name

    old = signal.getsignal(signal.SIGINT)
    try:
        if old is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, remember)
    except ValueError:  # not the main thread
        yield request
        return
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, old)

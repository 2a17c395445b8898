"""A process of its own for the networks that users give as TorchScript files.

Such a file is a program: it may raise, crash, or never end, and no thread can be stopped from outside. So it runs in a
fresh interpreter that is killed when a call exceeds its deadline. One process serves all networks and lives as long as
the command, so starting it is paid for once.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lvt_pipeline.models.vqvae.model import full_float32

LOAD_SECONDS = 300.0  # deadline for starting the process and loading a file, also from a slow network disk
CALL_SECONDS = 600.0  # deadline of one call; a pass of I3D over four videos takes seconds, also without a GPU
_BOOTSTRAP = "from lvt_pipeline.evaluation.distances.network_process import serve; serve()"
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux' prctl


@dataclass(frozen=True)
class Call:
    """One call of a network.

    Attributes:
        path, device: which file, loaded where.
        sha256: of the file; another content is loaded again.
        inputs: float32 arrays; none only loads the network.
        flags: keyword arguments, used if the network's `forward` has all of them.
    """

    path: str
    sha256: str
    device: str
    inputs: Sequence[NDArray[np.float32]] = ()
    flags: Mapping[str, bool] | None = None


@dataclass(frozen=True)
class Failed:
    """Why a call gave no array, in words that follow the name of the file."""

    reason: str


class NetworkProcess:
    """The parent's side. The process starts with the first call, and again after one that had to be killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None

    def call(self, request: Call) -> NDArray[np.float64] | Failed | None:
        """What the network gives, float64 of any shape; None when it was only loaded."""
        if self._connection is None and request.inputs:  # so that starting counts as loading
            loading = self.call(replace(request, inputs=()))
            if isinstance(loading, Failed):
                return loading
        connection, seconds = self._connected(), CALL_SECONDS if request.inputs else LOAD_SECONDS
        try:
            connection.send(request)
            if connection.poll(seconds):
                answer: NDArray[np.float64] | Failed | None = connection.recv()
                return answer
            reason = f"gave no answer within {seconds:.0f} seconds"
        except (EOFError, OSError):
            reason = "ended its process: a crash, or too little memory"
        except BaseException:
            self.close()  # an answer that nobody waits for would be taken for that of the next call
            raise
        self.close()
        return Failed(reason)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None and self._connection is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()
        self._process = self._connection = None

    def _connected(self) -> Connection[Any, Any]:
        if self._connection is None:
            self._connection, theirs = Pipe()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _BOOTSTRAP, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C reaches the parent alone
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                )
        return self._connection


SHARED = NetworkProcess()
atexit.register(SHARED.close)


# The process's side ------------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer calls from the pipe whose descriptor is the first argument, until the parent closes it or ends."""
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):  # it ended before we asked
        return
    loaded: dict[tuple[str, str, str], Any] = {}
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(_answer(request, loaded))


def _answer(request: Call, loaded: dict[tuple[str, str, str], Any]) -> NDArray[np.float64] | Failed | None:
    key = (request.path, request.sha256, request.device)
    try:
        if key not in loaded:
            loaded[key] = _loaded(request.path, request.device)
    except Exception:
        return Failed("is not a TorchScript file")
    try:
        return _run(loaded[key], request) if request.inputs else None
    except Exception as error:
        return Failed("needs more memory" if "out of memory" in str(error) else "raised an error")


def _loaded(path: str, device: str) -> Any:
    with warnings.catch_warnings():
        # torch recommends torch.export; the published networks are TorchScript files.
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=DeprecationWarning)
        return torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]


@torch.no_grad()
def _run(module: Any, request: Call) -> NDArray[np.float64] | Failed:
    device = torch.device(request.device)
    known = {argument.name for argument in module.forward.schema.arguments}
    flags = request.flags if request.flags and known >= request.flags.keys() else {}
    with full_float32(device):
        found = module(*(torch.from_numpy(array).to(device) for array in request.inputs), **flags)
    if not isinstance(found, torch.Tensor):
        return Failed(f"gave a {type(found).__name__} instead of a tensor")
    result: NDArray[np.float64] = found.double().cpu().numpy()
    return result

"""Networks that measure, given by the user as TorchScript files: the feature network of FVD and that of LPIPS.

lvt ships none: their weights have licences and origins of their own, and numbers from another file are other numbers.
So the SHA-256 of the file is part of every result it takes part in. A TorchScript file is a program: load only one you
trust. It runs in a process of its own, with a deadline (`network_process`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.evaluation.distances.network_process import SHARED, Call, Failed
from lvt_pipeline.models.device import choose_device
from lvt_pipeline.provenance import digest_file

FRAMES_PER_PASS = 64


class NetworkError(ArtefactError):
    """A network given by the user failed on its input. Measurements without it are still possible."""


@dataclass(frozen=True)
class ScriptedNetwork:
    """A TorchScript file, its digest, and where it runs."""

    path: Path
    sha256: str
    device: str

    @property
    def card(self) -> dict[str, str]:
        """What a result records about the network."""
        return {"file": self.path.name, "sha256": self.sha256}

    def __call__(
        self, inputs: Sequence[NDArray[np.float32]], what: str, flags: Mapping[str, bool] | None = None
    ) -> NDArray[np.float64]:
        """The network's output for these arrays, float64 of any shape.

        Args:
            what: names the inputs in an error message.
            flags: keyword arguments, used if the network's `forward` has all of them.

        Raises:
            NetworkError: the network failed, or gave nothing or numbers that are not finite.
        """
        found = SHARED.call(Call(str(self.path.absolute()), self.sha256, self.device, inputs, flags))
        if found is None:
            raise NetworkError(f"the network {self.path} gave nothing on {what}")
        if isinstance(found, Failed):
            raise NetworkError(f"the network {self.path} {found.reason} on {what}")
        if not np.isfinite(found).all():
            raise NetworkError(f"the network {self.path} gave numbers that are not finite on {what}")
        return found


def load_scripted(path: Path, device: str = "auto") -> ScriptedNetwork:
    """Load a TorchScript file.

    Raises:
        ArtefactError: it is missing, or not TorchScript (a file of weights alone is not).
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ArtefactError(f"{path} {found}; give a TorchScript file (docs/evaluation.md names known ones)")
    network = ScriptedNetwork(path, digest_file(path), str(choose_device(device)))
    failure = SHARED.call(Call(str(path.absolute()), network.sha256, network.device))
    if isinstance(failure, Failed):
        raise ArtefactError(
            f"{path} {failure.reason}; a file of weights alone is not enough: load it into its network and save that "
            "with torch.jit.script(network).save(...)"
        )
    return network


@dataclass
class PerceptualDistance:
    """LPIPS (Zhang et al. 2018) with the user's network: called with two float32 (N, 3, H, W) in [-1, 1], it gives N
    distances, of any shape.

    Attributes:
        failure: why `try_by_frame` gave up; empty while the network works.
    """

    network: ScriptedNetwork
    failure: str = ""

    def try_by_frame(self, real: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """`by_frame`, or None once the network has failed: everything else can still be measured."""
        if self.failure:
            return None
        try:
            return self.by_frame(real, other)
        except NetworkError as error:
            self.failure = str(error)
            return None

    def by_frame(self, real: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Distance of every frame, float64 (T,).

        Args:
            real, other: uint8 (T, H, W, 3).

        Raises:
            NetworkError: the network fails, or does not give one finite number for each frame.
        """
        parts = []
        for start in range(0, len(real), FRAMES_PER_PASS):
            pair = [_signed(frames[start : start + FRAMES_PER_PASS]) for frames in (real, other)]
            found = self.network(pair, f"two batches of pictures {pair[0].shape} in [-1, 1]")
            if found.size != len(pair[0]):
                raise NetworkError(
                    f"the network {self.network.path} gave {found.shape} for {len(pair[0])} pairs of pictures; "
                    "one finite number per pair is needed"
                )
            parts.append(found.reshape(-1))
        return np.concatenate(parts)


def _signed(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1]."""
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(127.5) - np.float32(1)

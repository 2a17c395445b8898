"""Networks that measure, given by the user as TorchScript files: the feature network of FVD and that of LPIPS.

lvt ships none: their weights have licences and lineages of their own, and numbers from another file are other numbers.
So the SHA-256 of the file is part of every result it takes part in. A TorchScript file is a program: load only one you
trust.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvt_pipeline.errors import ArtefactError
from lvt_pipeline.models.device import choose_device
from lvt_pipeline.models.vqvae.model import full_float32
from lvt_pipeline.provenance import digest_file

FRAMES_PER_PASS = 64


@dataclass(frozen=True)
class ScriptedNetwork:
    """A TorchScript module in evaluation mode, and the digest of its file."""

    path: Path
    sha256: str
    module: Any
    device: torch.device

    @property
    def card(self) -> dict[str, str]:
        """What a result says about the network."""
        return {"file": self.path.name, "sha256": self.sha256}


def load_scripted(path: Path, device: str = "auto") -> ScriptedNetwork:
    """Load a TorchScript file.

    Raises:
        ArtefactError: it is missing, or not TorchScript (a file of weights alone is not).
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ArtefactError(f"{path} {found}; give a TorchScript file (docs/evaluation.md names known ones)")
    where = choose_device(device)
    try:
        with warnings.catch_warnings():
            # torch would rather have torch.export; the published networks are TorchScript files.
            warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=DeprecationWarning)
            module = torch.jit.load(str(path), map_location=where)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtefactError(
            f"{path} is not a TorchScript file ({reason[:160]}); a file of weights alone does not say what to compute: "
            "load it into its network and save that with torch.jit.script(network).save(...)"
        ) from error
    return ScriptedNetwork(path, digest_file(path), module.eval(), where)


@dataclass(frozen=True)
class PerceptualDistance:
    """LPIPS (Zhang et al. 2018) with the user's network: called with two float32 (N, 3, H, W) in [-1, 1], it gives N
    distances, of any shape."""

    network: ScriptedNetwork

    @torch.no_grad()
    def by_frame(self, real: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Distance of every frame, float64 (T,).

        Args:
            real, other: uint8 (T, H, W, 3).

        Raises:
            ArtefactError: the network refuses such pictures, or does not give one finite number for each.
        """
        parts = []
        for start in range(0, len(real), FRAMES_PER_PASS):
            some = slice(start, start + FRAMES_PER_PASS)
            parts.append(self._distances(_signed(real[some]), _signed(other[some])))
        return np.concatenate(parts)

    def _distances(self, real: Tensor, other: Tensor) -> NDArray[np.float64]:
        path = self.network.path
        try:
            with full_float32(self.network.device):
                found = self.network.module(real.to(self.network.device), other.to(self.network.device))
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ArtefactError(
                f"{path} does not take two batches of pictures {tuple(real.shape)} in [-1, 1] ({reason[:160]})"
            ) from error
        if not isinstance(found, Tensor) or found.numel() != len(real) or not bool(found.isfinite().all()):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ArtefactError(
                f"{path} gave {shape} for {len(real)} pairs of pictures; one finite number per pair is needed"
            )
        distances: NDArray[np.float64] = found.reshape(-1).double().cpu().numpy()
        return distances


def _signed(frames: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1

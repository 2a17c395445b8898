"""Fréchet video distance (Unterthiner et al. 2018; paper, section 4.1): how far two sets of videos are from each other.

A network turns every video into a vector, a Gaussian is fitted to the vectors of each set, and the distance is that of
the two Gaussians: |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)).

The network is not part of lvt; see `networks`. FVD as published means one network: the 400 logits of the I3D of TF-Hub
(`deepmind/i3d-kinetics-400/1`), averaged over time, before the softmax. A distance in the features of any other network
is a number of its own, and `network_label` names the case. docs/evaluation.md lists what else has to be equal.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvt_pipeline.errors import ShapeError
from lvt_pipeline.evaluation.distances.networks import NetworkError, ScriptedNetwork
from lvt_pipeline.evaluation.settings import ResizeRule
from lvt_pipeline.models.vqvae.model import full_float32
from lvt_pipeline.provenance import fingerprint
from lvt_pipeline.storage import atomic_writer

INPUT_SIZE = 224  # rows and columns that the network sees
FEATURE_SIZE = 400  # classes of Kinetics-400
SHORTEST_CLIP = 10  # frames; the published network halves time too often for fewer
VIDEOS_PER_PASS = 4
# Files known to be exact ports of the TF-Hub network, by SHA-256.
KNOWN_PORTS = {"bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2": "i3d_torchscript.pt of StyleGAN-V"}
PORT_ARGUMENTS = {"rescale": False, "resize": False, "return_features": True}


@dataclass(frozen=True)
class Gaussian:
    """What a set of feature vectors is reduced to: their mean (F,) and their covariance (F, F) with N - 1; float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def fit(cls, features: NDArray[Any]) -> Gaussian:
        """The Gaussian of feature vectors (N, F).

        Raises:
            ShapeError: fewer than two vectors, or not a table of finite numbers.
        """
        if features.ndim != 2 or len(features) < 2:
            raise ShapeError(f"a Gaussian is fitted to at least two vectors (N, F), found {features.shape}")
        if not np.isfinite(features).all():
            raise ShapeError("the features hold numbers that are not finite")
        exact = features.astype(np.float64)
        return cls(exact.mean(0), np.atleast_2d(np.cov(exact, rowvar=False)))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Squared Fréchet distance of two Gaussians; at least 0.

    Tr (S1 S2)^(1/2) is the sum of the singular values of S1^(1/2) S2^(1/2). The roots are symmetric, by eigenvalues,
    and eigenvalues that are only rounding, some below 0, become 0: with fewer videos than features the covariances have
    no full rank, and general matrix roots then return complex or wrong numbers. Going through singular values keeps the
    digits that squaring the roots again would lose.

    Raises:
        ShapeError: the Gaussians have different numbers of features.
    """
    if first.mean.shape != second.mean.shape:
        raise ShapeError(f"cannot compare {len(first.mean)} features with {len(second.mean)}")
    shift = float(((first.mean - second.mean) ** 2).sum())
    cross = np.linalg.svd(_root(first.covariance) @ _root(second.covariance), compute_uv=False)
    spread = float(np.trace(first.covariance) + np.trace(second.covariance) - 2 * cross.sum())
    return max(shift + spread, 0.0)


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(covariance)
    rounding = len(values) * np.finfo(np.float64).eps * values[-1]
    result: NDArray[np.float64] = (vectors * np.sqrt(np.where(values > rounding, values, 0.0))) @ vectors.T
    return result


def resize(videos: Tensor, rule: ResizeRule, size: int = INPUT_SIZE) -> Tensor:
    """Bilinear, without antialiasing, to size x size.

    Args:
        videos: float (..., H, W).
        rule: where the middle of output pixel i is in the input: "tf1" at i * H / size, as TensorFlow 1 and so the
            published FVD code do; "half-pixel" at (i + 1/2) * H / size - 1/2, as PyTorch and TensorFlow 2 do.
    """
    rows = _interpolation(videos.shape[-2], size, rule).to(videos)
    columns = _interpolation(videos.shape[-1], size, rule).to(videos)
    return rows @ videos @ columns.T


def _interpolation(length: int, size: int, rule: ResizeRule) -> Tensor:
    """(size, length): the weights of the input for every output."""
    steps = torch.arange(size, dtype=torch.float64)
    if rule == "tf1":
        place = steps * length / size
    elif rule == "half-pixel":
        place = ((steps + 0.5) * length / size - 0.5).clamp(min=0)
    else:
        raise ShapeError(f"resize rule {rule!r} is not one of tf1, half-pixel")
    low = place.floor().long().clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    weight = place - low
    matrix = torch.zeros(size, length, dtype=torch.float64)
    matrix.scatter_add_(1, low[:, None], (1 - weight)[:, None])
    return matrix.scatter_add_(1, high[:, None], weight[:, None])


@dataclass(frozen=True)
class FeatureNetwork:
    """The network of an FVD and how videos are brought to it.

    The network gets float32 (N, 3, T, 224, 224) in [-1, 1] and gives (N, F). A file whose `forward` takes `rescale`,
    `resize` and `return_features` gets them for an input that is ready, and for logits.
    """

    network: ScriptedNetwork
    resize_rule: ResizeRule = "tf1"
    is_i3d: bool = True  # given as the network of FVD; False for any other

    @property
    def card(self) -> dict[str, Any]:
        """Everything about the features that two FVDs must share to be comparable."""
        return {
            "network": self.network.card,
            "resize": f"bilinear to {INPUT_SIZE}x{INPUT_SIZE}, {self.resize_rule}, from bytes, no crop",
            "scale": "[-1, 1]",
        }

    @property
    def fingerprint(self) -> str:
        """What the features of given videos depend on."""
        return fingerprint({"sha256": self.network.sha256, "resize": self.resize_rule, "size": INPUT_SIZE})

    def features(self, videos: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """Feature vectors of videos, float64 (N, F).

        Args:
            videos: uint8 (T, H, W, 3) of one shape.

        Raises:
            NetworkError: the network fails or does not give one finite vector for each.
        """
        parts: list[NDArray[np.float64]] = []
        waiting: list[NDArray[np.uint8]] = []
        for video in videos:
            waiting.append(video)
            if len(waiting) == VIDEOS_PER_PASS:
                parts.append(self._of_batch(np.stack(waiting)))
                waiting = []
        if waiting:
            parts.append(self._of_batch(np.stack(waiting)))
        if not parts:
            raise ShapeError("there is no video to take features of")
        return np.concatenate(parts)

    def _of_batch(self, videos: NDArray[np.uint8]) -> NDArray[np.float64]:
        pixels = torch.from_numpy(videos).to(self.network.device).permute(0, 4, 1, 2, 3).float()
        with full_float32(pixels.device):
            ready = (resize(pixels, self.resize_rule) / 127.5 - 1).cpu().numpy()
        found = self.network([ready], f"videos {ready.shape} in [-1, 1]", PORT_ARGUMENTS)
        if found.ndim != 2 or len(found) != len(videos):
            raise NetworkError(
                f"the network {self.network.path} gave {found.shape} for {len(videos)} videos; one vector for each is "
                f"needed, ({len(videos)}, {FEATURE_SIZE}) for FVD"
            )
        return found


def network_label(features: FeatureNetwork, num_features: int) -> str:
    """What a distance in the features of this network may be called."""
    sha256 = features.network.sha256
    if not features.is_i3d:
        return f"not FVD: distances in the {num_features} features of {features.network.path.name}, SHA-256 {sha256}"
    if sha256 in KNOWN_PORTS:
        return f"FVD, {KNOWN_PORTS[sha256]}"
    if num_features == FEATURE_SIZE:
        return (
            "unknown network: FVD only if the file is an exact port of deepmind/i3d-kinetics-400/1; "
            "compare it only with results of the same SHA-256"
        )
    return f"not FVD: the network gives {num_features} features, I3D gives {FEATURE_SIZE}; for tests only"


class FeatureCache:
    """Features of reference videos in a folder, one file each, named after everything they depend on.

    The folder may be deleted. Files appear whole and carry checksums; one that is damaged is computed again.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def recall(self, made_of: Mapping[str, Any], compute: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
        """The features, from the folder or computed now and kept. Without a folder they are computed every time."""
        if self._folder is None:
            return compute()
        path = self._folder / f"{fingerprint(made_of)}.npz"
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                features: NDArray[np.float64] = stored["features"]
                return features
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
            features = compute()
        with atomic_writer(path) as stream:
            np.savez(stream, features=features)
        return features

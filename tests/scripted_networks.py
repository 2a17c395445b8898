"""Tiny deterministic networks as TorchScript files. They stand where I3D and LPIPS stand; they are neither."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

NUM_FEATURES = 6


class ToyFeatures(nn.Module):
    """NOT FVD: six plain statistics of a video (N, 3, T, 224, 224) in [-1, 1], weighted by fixed numbers."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, videos: Tensor) -> Tensor:
        means = videos.mean(dim=(2, 3, 4))
        moved = (videos[:, :, 1:] - videos[:, :, :-1]).abs().mean(dim=(2, 3, 4))
        return self.scale * torch.cat([means, 3.0 * moved], dim=1)


class ToyPort(nn.Module):
    """NOT FVD: takes the arguments that a published port of I3D takes, and fails unless they say what lvt means."""

    def forward(
        self, videos: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:
        assert not rescale
        assert not resize
        assert return_features
        return videos[:, :, 0, :20, :20].mean(dim=1).reshape(videos.shape[0], 400)


class ToyDistance(nn.Module):
    """NOT LPIPS: twice the mean absolute difference of pictures in [-1, 1], as (N, 1, 1, 1)."""

    def forward(self, real: Tensor, other: Tensor) -> Tensor:
        assert real.min() >= -1
        assert real.max() <= 1
        return 2 * (real - other).abs().mean(dim=(1, 2, 3), keepdim=True)


class OneNumber(nn.Module):
    """Gives one number for the whole batch: no use as either."""

    def forward(self, real: Tensor, other: Tensor) -> Tensor:
        return (real - other).abs().mean()


class Raising(nn.Module):
    """Refuses everything, over several lines."""

    def forward(self, real: Tensor, other: Tensor | None = None) -> Tensor:
        assert real.numel() < 0, "no\nuse"
        return real


class Endless(nn.Module):
    """Never gives an answer."""

    def forward(self, real: Tensor, other: Tensor | None = None) -> Tensor:
        count = 0
        while real.numel() > 0:
            count += 1
        return real * count


class NotFinite(nn.Module):
    """Gives a finite number for the first pictures of a call only."""

    def forward(self, real: Tensor, other: Tensor) -> Tensor:
        return (real - other).abs().mean(dim=(1, 2, 3)) / torch.zeros_like(real[:, 0, 0, 0])


def save_scripted(module: nn.Module, path: Path) -> Path:
    """Write a TorchScript file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # scripting is what such files are made with
        torch.jit.script(module).save(str(path))
    return path

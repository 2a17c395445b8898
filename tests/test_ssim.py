"""SSIM and LPIPS frame by frame: agreement with scikit-image, closed forms, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage import metrics

from lvt_pipeline.errors import ArtefactError, ShapeError
from lvt_pipeline.evaluation.distances.networks import PerceptualDistance, load_scripted
from lvt_pipeline.evaluation.metrics import ssim_by_frame
from lvt_pipeline.evaluation.pixels import Horizon, errors_by_frame, repeat_last
from lvt_pipeline.provenance import digest_file
from tests.scripted_networks import OneNumber, ToyDistance, save_scripted


def frames(seed: int, shape: tuple[int, ...] = (3, 24, 31, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("noise", [3, 40, 255])
def test_ssim_agrees_with_scikit_image(noise: int) -> None:
    smooth = np.linspace(0, 255, 24)[None, :, None, None] * np.linspace(0.2, 1, 31)[None, None, :, None]
    real = np.broadcast_to(smooth, (3, 24, 31, 3)).astype(np.uint8)
    other = np.clip(real + np.random.default_rng(noise).integers(-noise, noise + 1, real.shape), 0, 255).astype(
        np.uint8
    )
    expected = [
        metrics.structural_similarity(
            a, b, channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(real, other, strict=True)
    ]
    assert ssim_by_frame(real, other) == pytest.approx(expected, abs=1e-10)


def test_ssim_of_flat_pictures_is_the_closed_form_of_their_means() -> None:
    dark, light = np.full((1, 11, 11, 3), 50, np.uint8), np.full((1, 11, 11, 3), 200, np.uint8)
    expected = (2 * 50 * 200 + 2.55**2) / (50**2 + 200**2 + 2.55**2)
    assert ssim_by_frame(dark, light) == pytest.approx([expected])


def test_ssim_is_one_for_equal_frames_and_symmetric() -> None:
    assert ssim_by_frame(frames(0), frames(0)) == pytest.approx([1, 1, 1])
    assert ssim_by_frame(frames(0), frames(1)) == pytest.approx(ssim_by_frame(frames(1), frames(0)))


@pytest.mark.parametrize("other", [frames(0, (3, 24, 30, 3)), frames(0).astype(np.float32), frames(0)[0]])
def test_ssim_refuses_frames_that_cannot_be_compared(other: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="compare"):
        ssim_by_frame(frames(0), other)


def test_ssim_of_frames_smaller_than_its_window_is_refused_and_left_out_of_the_errors() -> None:
    small = frames(0, (2, 10, 40, 3))
    with pytest.raises(ShapeError, match="11x11"):
        ssim_by_frame(small, small)
    assert set(errors_by_frame(small, small)) == {"mse"}


def test_horizon_averages_each_frame_over_the_clips_that_reach_it() -> None:
    horizon = Horizon(4)
    horizon.add("sampled", {"mse": np.array([0.0, 0.1, 0.1, 0.01])})
    horizon.add("sampled", {"mse": np.array([0.0, 0.3])})
    results = horizon.results("sampled", "x_", first_frame=1)
    assert results["x_mse_by_frame"] == pytest.approx([0, 0.2, 0.1, 0.01])
    assert results["x_mse"] == pytest.approx(np.mean([0.2, 0.1, 0.01]))
    assert results["x_psnr_by_frame"][2:] == pytest.approx([10, 20])
    assert horizon.results("copy") == {} == horizon.results("sampled", first_frame=4)


def test_repeating_the_last_frame_keeps_the_priming_frames_and_nothing_later() -> None:
    real = frames(0, (5, 4, 4, 3))
    copied = repeat_last(real, 2)
    assert np.array_equal(copied[:2], real[:2])
    assert all(np.array_equal(frame, real[1]) for frame in copied[2:])
    assert len(copied) == 5


def test_lpips_calls_the_network_with_pictures_in_minus_one_to_one_and_records_its_digest(tmp_path: Path) -> None:
    network = load_scripted(save_scripted(ToyDistance(), tmp_path / "lpips.pt"), "cpu")
    assert network.card == {"file": "lpips.pt", "sha256": digest_file(tmp_path / "lpips.pt")}
    real, other = frames(0, (70, 4, 4, 3)), frames(1, (70, 4, 4, 3))  # more than one pass
    expected = 2 * np.abs((real / 127.5 - 1) - (other / 127.5 - 1)).mean((1, 2, 3))
    assert PerceptualDistance(network).by_frame(real, other) == pytest.approx(expected, abs=1e-5)


def test_a_network_that_does_not_give_a_distance_per_frame_is_refused(tmp_path: Path) -> None:
    network = load_scripted(save_scripted(OneNumber(), tmp_path / "one.pt"), "cpu")
    with pytest.raises(ArtefactError, match="one finite number per pair"):
        PerceptualDistance(network).by_frame(frames(0), frames(1))


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "does not exist"), (b"not a network", "is not a TorchScript file"), (b"", "TorchScript")],
)
def test_a_file_that_is_no_network_is_one_clear_line(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "network.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtefactError, match=says) as caught:
        load_scripted(path, "cpu")
    assert "\n" not in str(caught.value)


def test_weights_without_a_network_are_refused_with_advice(tmp_path: Path) -> None:
    import torch

    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(ArtefactError, match=r"torch\.jit\.script"):
        load_scripted(tmp_path / "weights.pt", "cpu")

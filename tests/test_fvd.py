"""The Fréchet distance and what an FVD depends on. The network of these tests is a toy: its numbers are NOT FVD."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import ArtefactError, ConfigError, ShapeError
from lvt_pipeline.evaluation.distances import fvd
from lvt_pipeline.evaluation.distances.fvd import (
    FeatureCache,
    FeatureNetwork,
    Gaussian,
    frechet_distance,
    network_label,
    resize,
)
from lvt_pipeline.evaluation.distances.kvd import kernel_distance
from lvt_pipeline.evaluation.distances.networks import ScriptedNetwork, load_scripted
from lvt_pipeline.evaluation.distances.sampled_fvd import measure_fvd
from lvt_pipeline.evaluation.evaluate import evaluate
from lvt_pipeline.evaluation.pixels import Pixels
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.evaluation.sources import Sources
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.provenance import digest_file
from lvt_pipeline.runs.read import load_vqvae
from lvt_pipeline.storage import read_json
from tests.scripted_networks import NUM_FEATURES, OneNumber, ToyFeatures, ToyPort, save_scripted
from tests.toy_work import FRAMES, ToyWork, make_toy_work

PRIMING = 2


def vectors(seed: int, count: int = 40, size: int = 5) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, size)) @ generator.normal(size=(size, size)) + generator.normal(size=size)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(1, 20))
def test_distance_of_a_set_from_itself_is_zero_also_without_full_rank(seed: int, count: int, size: int) -> None:
    found = Gaussian.fit(vectors(seed, count, size))
    assert frechet_distance(found, found) == pytest.approx(0, abs=1e-9 * (1 + np.trace(found.covariance)))


def test_distance_is_symmetric_with_fewer_vectors_than_features() -> None:
    one, other = Gaussian.fit(vectors(1, 256, 400)), Gaussian.fit(vectors(2, 256, 400))
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-10)


def test_distance_of_shifted_gaussians_is_the_squared_shift() -> None:
    features = vectors(3)
    shift = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    found = frechet_distance(Gaussian.fit(features), Gaussian.fit(features + shift))
    assert found == pytest.approx(float((shift**2).sum()), rel=1e-9)


def test_distance_of_gaussians_with_common_axes_is_the_closed_form() -> None:
    """|m1 - m2|^2 + sum of (sqrt a - sqrt b)^2, when both covariances are diagonal in one rotated basis."""
    basis = np.linalg.qr(vectors(4, 5, 5))[0]
    a, b = np.array([4.0, 1.0, 0.0, 9.0, 0.25]), np.array([1.0, 1.0, 16.0, 0.0, 4.0])
    one = Gaussian(np.zeros(5), basis @ np.diag(a) @ basis.T)
    other = Gaussian(np.ones(5), basis @ np.diag(b) @ basis.T)
    assert frechet_distance(one, other) == pytest.approx(5 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-9)


def test_distance_agrees_with_a_general_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    one, other = Gaussian.fit(vectors(5)), Gaussian.fit(vectors(6))
    root = linalg.sqrtm(one.covariance @ other.covariance).real
    shift = ((one.mean - other.mean) ** 2).sum()
    expected = shift + np.trace(one.covariance + other.covariance - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)


def test_covariance_divides_by_the_number_of_videos_less_one() -> None:
    assert Gaussian.fit(np.array([[0.0], [2.0]])).covariance == pytest.approx(2.0)


@pytest.mark.parametrize("features", [np.zeros((1, 3)), np.zeros(3), np.array([[1.0], [np.nan]])])
def test_features_that_give_no_gaussian_are_refused(features: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        Gaussian.fit(features)


def test_half_pixel_resize_is_that_of_torch() -> None:
    pictures = torch.rand(2, 3, 13, 16, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(pictures, size=(29, 29), mode="bilinear", align_corners=False)
    assert torch.allclose(resize(pictures, "half-pixel", 29), expected, atol=1e-6)


def test_tf1_resize_agrees_with_a_loop_over_pixels() -> None:
    picture = np.random.default_rng(0).random((5, 7))
    size = 12
    expected = np.zeros((size, size))
    for i, j in np.ndindex(size, size):
        y, x = i * 5 / size, j * 7 / size
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, 4), min(x0 + 1, 6)
        top = picture[y0, x0] + (picture[y0, x1] - picture[y0, x0]) * (x - x0)
        bottom = picture[y1, x0] + (picture[y1, x1] - picture[y1, x0]) * (x - x0)
        expected[i, j] = top + (bottom - top) * (y - y0)
    assert np.allclose(resize(torch.from_numpy(picture), "tf1", size).numpy(), expected, atol=1e-12)


def test_the_network_sees_224_pixels_in_minus_one_to_one_and_the_batch_does_not_matter(tmp_path: Path) -> None:
    network = FeatureNetwork(load_scripted(save_scripted(ToyFeatures(), tmp_path / "toy.pt"), "cpu"))
    black, white = np.zeros((4, 8, 8, 3), np.uint8), np.full((4, 8, 8, 3), 255, np.uint8)
    found = network.features([black, white, white, black, white])
    expected = np.array([[-1] * 3 + [0] * 3, [1] * 3 + [0] * 3])[[0, 1, 1, 0, 1]]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found.dtype == np.float64


def test_a_published_port_is_told_that_its_input_is_ready_and_that_logits_are_wanted(tmp_path: Path) -> None:
    network = FeatureNetwork(load_scripted(save_scripted(ToyPort(), tmp_path / "port.pt"), "cpu"))
    assert network.features([np.zeros((4, 8, 8, 3), np.uint8)]).shape == (1, 400)


def test_a_network_of_another_kind_is_refused(tmp_path: Path) -> None:
    network = FeatureNetwork(load_scripted(save_scripted(OneNumber(), tmp_path / "one.pt"), "cpu"))
    with pytest.raises(ArtefactError, match=r"raised an error on videos \(1, 3, 4, 224, 224\)"):
        network.features([np.zeros((4, 8, 8, 3), np.uint8)])


def test_only_a_known_file_is_called_fvd() -> None:
    def label(sha256: str, num_features: int, *, is_i3d: bool = True) -> str:
        return network_label(FeatureNetwork(ScriptedNetwork(Path("a.pt"), sha256, "cpu"), is_i3d=is_i3d), num_features)

    known = next(iter(fvd.KNOWN_PORTS))
    assert label("0" * 64, NUM_FEATURES).startswith("not FVD")
    assert label("0" * 64, 400).startswith("unknown network")
    assert label(known, 400).startswith("FVD")
    assert label(known, 400, is_i3d=False) == f"not FVD: distances in the 400 features of a.pt, SHA-256 {known}"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    work = make_toy_work(tmp_path_factory.mktemp("work"))
    sampling = SampleSettings(frames=FRAMES, priming_frames=PRIMING, num_clips=None, seed=3)
    sample_clips(work.prior, work.codes, work.samples, sampling, device="cpu")
    save_scripted(ToyFeatures(), work.root / "toy.pt")
    return work


def opened(work: ToyWork) -> tuple[CodeStore, Pixels, FeatureNetwork]:
    network = FeatureNetwork(load_scripted(work.root / "toy.pt", "cpu"))
    tokenizer = load_vqvae(work.vqvae, device="cpu")
    return open_codes(work.samples), Pixels(open_codes(work.codes), FrameShards(work.frames), tokenizer), network


def test_each_distance_is_that_of_the_videos_it_names(work: ToyWork) -> None:
    sampled, pixels, network = opened(work)
    store, shards, tokenizer = pixels.store, pixels.shards, pixels.tokenizer
    results = measure_fvd(sampled, pixels, network, FeatureCache(None))
    ids = [clip.id for clip in sampled.clips]
    real = [shards.read(name, 0, FRAMES) for name in ids]
    decoded = [tokenizer.decode(sampled[name]).numpy() for name in ids]
    sets = {
        "reconstructed_priming": decoded,
        "real_priming": [np.concatenate([a[:PRIMING], b[PRIMING:]]) for a, b in zip(real, decoded, strict=True)],
        "reconstruction": [tokenizer.decode(store.read(store.clip(name), 0, FRAMES)).numpy() for name in ids],
        "copy": [np.stack([*a[:PRIMING], *[a[PRIMING - 1]] * (FRAMES - PRIMING)]) for a in real],
    }
    features = network.features(real)
    target = Gaussian.fit(features)
    for name, videos in sets.items():
        found = network.features(videos)
        assert results[name] == pytest.approx(frechet_distance(target, Gaussian.fit(found))), name
        assert results["kvd"][name] == pytest.approx(asdict(kernel_distance(features, found))), name
    assert results["real_priming"] != results["reconstructed_priming"]


def test_the_card_says_what_a_comparable_number_needs(work: ToyWork) -> None:
    sampled, pixels, network = opened(work)
    results = measure_fvd(sampled, pixels, network, FeatureCache(None), "real")
    assert "reconstructed_priming" not in results
    assert results["label"].startswith("not FVD")
    assert "10 or more" in results["warning"]
    card = results["card"]
    assert card["network"]["sha256"] == digest_file(work.root / "toy.pt")
    assert (card["frames"], card["priming_frames"], card["priming_pixels"]) == (FRAMES, PRIMING, "real")
    assert (card["real_clips"], card["samples"], card["seed"], card["features"]) == (3, 3, 3, NUM_FEATURES)
    assert "tf1" in card["resize"]
    assert card["kvd"].startswith("squared MMD, kernel (x·y / F + 1)^3, unbiased")


def test_reference_features_are_computed_once_per_data_and_protocol(
    work: ToyWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled, pixels, network = opened(work)
    computed: list[int] = []
    original = FeatureNetwork.features

    def counted(self: FeatureNetwork, videos: object) -> np.ndarray:
        computed.append(1)
        return original(self, videos)  # type: ignore[arg-type]

    monkeypatch.setattr(FeatureNetwork, "features", counted)

    def measured(with_network: FeatureNetwork = network) -> tuple[dict, int]:
        computed.clear()
        return measure_fvd(sampled, pixels, with_network, FeatureCache(tmp_path)), len(computed)

    first, num_first = measured()
    second, num_second = measured()
    assert (num_first, num_second) == (5, 2)  # only the samples are looked at again
    assert first == second
    longer = tmp_path / "longer.zarr"
    sampling = SampleSettings(frames=FRAMES, priming_frames=PRIMING + 1, num_clips=None)
    sample_clips(work.prior, work.codes, longer, sampling, device="cpu")
    computed.clear()
    measure_fvd(open_codes(longer), pixels, network, FeatureCache(tmp_path))
    assert len(computed) == 3  # the last given frame is another one, so the copies are other videos
    assert measured(FeatureNetwork(network.network, "half-pixel"))[1] == 5
    other = load_scripted(save_scripted(ToyFeatures(2.0), tmp_path / "other.pt"), "cpu")
    assert measured(FeatureNetwork(other))[1] == 5


def test_a_damaged_cache_file_is_computed_again(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    features = vectors(0)
    cache.recall({"of": "x"}, lambda: features)
    (stored,) = tmp_path.iterdir()
    whole = stored.read_bytes()
    for damaged in (b"", whole[:-10], whole.replace(features.tobytes()[:8], b"AAAABBBB")):
        assert damaged != whole
        stored.write_bytes(damaged)
        assert np.array_equal(cache.recall({"of": "x"}, lambda: features), features)
        assert stored.read_bytes() == whole
    assert np.array_equal(cache.recall({"of": "x"}, lambda: pytest.fail("not remembered")), features)


def test_too_few_clips_for_a_covariance_are_said_and_nothing_fails(work: ToyWork, tmp_path: Path) -> None:
    sampling = SampleSettings(frames=FRAMES, priming_frames=PRIMING, num_clips=1)
    sample_clips(work.prior, work.codes, tmp_path / "one.zarr", sampling, device="cpu")
    _, pixels, network = opened(work)
    results = measure_fvd(open_codes(tmp_path / "one.zarr"), pixels, network, FeatureCache(None))
    assert set(results) == {"missing"}


def test_evaluate_measures_fvd_with_a_network_and_says_what_is_missing_without(work: ToyWork, tmp_path: Path) -> None:
    sources = Sources(codes=work.codes, frames=work.frames, vqvae=work.vqvae, samples=work.samples)
    measured = EvaluateSettings(frames=FRAMES)
    without = evaluate(sources, tmp_path / "without.json", measured, device="cpu")
    assert "FVD needs a TorchScript I3D (--i3d) or another network (--features)" in without.counts["summary"]
    assert "fvd" not in read_json(tmp_path / "without.json")
    with_network = replace(sources, i3d=work.root / "toy.pt")
    record = evaluate(with_network, tmp_path / "with.json", measured, device="cpu")
    results = read_json(tmp_path / "with.json")
    assert "Fréchet distance (not FVD)" in record.counts["summary"]
    assert "FVD" not in results["missing"]
    assert record.inputs["i3d"] == results["fvd"]["card"]["network"]["sha256"]
    assert len(list((tmp_path / ".lvt" / "features").iterdir())) == 3
    kernel = results["fvd"]["kvd"]["real_priming"]
    assert kernel["low"] <= kernel["high"]
    assert f"; kernel distance {kernel['value']:.4g} [" in record.counts["summary"]


def test_any_network_measures_distances_that_bear_its_name(work: ToyWork, tmp_path: Path) -> None:
    network = work.root / "toy.pt"
    sources = Sources(codes=work.codes, frames=work.frames, vqvae=work.vqvae, samples=work.samples, features=network)
    record = evaluate(sources, tmp_path / "eval.json", EvaluateSettings(frames=FRAMES), device="cpu")
    found = read_json(tmp_path / "eval.json")["fvd"]
    assert record.inputs["features"] == digest_file(network)
    assert "i3d" not in record.inputs
    assert found["card"]["network"] == {"file": "toy.pt", "sha256": digest_file(network)}
    assert found["label"] == f"not FVD: distances in the 6 features of toy.pt, SHA-256 {digest_file(network)}"
    assert {"real_priming", "reconstruction", "copy", "kvd"} <= found.keys()
    with pytest.raises(ConfigError, match=r"give one network of videos: the I3D .*toy.pt, or the features .*toy.pt"):
        evaluate(replace(sources, i3d=network), tmp_path / "eval.json", EvaluateSettings(frames=FRAMES), device="cpu")

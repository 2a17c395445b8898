"""The numbers of an evaluation agree with scikit-image, with closed forms and with slow obvious versions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lvt_pipeline.codes.usage import codes_holding, entropy_bits, perplexity, usage
from lvt_pipeline.errors import ShapeError
from lvt_pipeline.evaluation.metrics import (
    CodeCounts,
    PreviousFrameBaseline,
    mean_pairwise_squared_error,
    mean_squared_error,
    pool,
    psnr,
    share_of_differing_pairs,
)

CLIPS = hnp.arrays(
    np.uint16,
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    elements={"max_value": 6},
)


def frames(seed: int, shape: tuple[int, ...] = (3, 8, 8, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_mse_and_psnr_agree_with_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    real, other = frames(0), frames(1)
    mse = mean_squared_error(real, other)
    assert mse == pytest.approx(metrics.mean_squared_error(real / 255, other / 255), rel=1e-12)
    assert psnr(mse) == pytest.approx(metrics.peak_signal_noise_ratio(real, other, data_range=255), rel=1e-12)


def test_equal_pictures_have_no_error_and_infinite_psnr() -> None:
    assert mean_squared_error(frames(0), frames(0)) == 0
    assert psnr(0.0) == math.inf


def test_black_against_white_is_one_and_zero_decibels() -> None:
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert mean_squared_error(black, white) == 1
    assert psnr(1.0) == 0


@pytest.mark.parametrize("other", [frames(0, (2, 8, 8, 3)), frames(0).astype(np.float32)])
def test_pictures_that_cannot_be_compared_are_refused(other: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="compare"):
        mean_squared_error(frames(0), other)


def slow_counts(codes: np.ndarray, codebook_size: int, first_frame: int) -> dict[str, np.ndarray]:
    result = {name: np.zeros((codes.shape[-1], codebook_size), int) for name in ("same", "changed", "first")}
    for t, y, x, j in np.ndindex(codes.shape):
        if t >= first_frame:
            kind = "first" if t == 0 else "same" if codes[t, y, x, j] == codes[t - 1, y, x, j] else "changed"
            result[kind][j, codes[t, y, x, j]] += 1
    return result


@settings(deadline=None)
@given(CLIPS, st.integers(0, 6))
def test_counts_agree_with_a_loop_over_every_code(codes: np.ndarray, first_frame: int) -> None:
    counts, slow = CodeCounts.of(codes, 7, first_frame), slow_counts(codes, 7, first_frame)
    assert all(np.array_equal(getattr(counts, name), slow[name]) for name in slow)


@settings(deadline=None)
@given(CLIPS)
def test_counts_of_clips_add_up(codes: np.ndarray) -> None:
    together = pool([CodeCounts.of(codes, 7), CodeCounts.of(codes, 7)], codes.shape[-1], 7)
    assert np.array_equal(together.occurrences, 2 * CodeCounts.of(codes, 7).occurrences)
    assert together.num_codes == 2 * codes.size


@pytest.mark.parametrize(
    "codes", [np.zeros((2, 2, 2), int), np.zeros((2, 2, 2, 1)), np.full((1, 1, 1, 1), 7), -np.ones((1, 1, 1, 1), int)]
)
def test_codes_that_cannot_be_counted_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        CodeCounts.of(codes, 7)


def test_uniform_codes_have_the_entropy_and_perplexity_of_the_codebook() -> None:
    occurrences = np.full((2, 512), 3)
    assert entropy_bits(occurrences) == pytest.approx([9, 9])
    assert perplexity(occurrences) == pytest.approx([512, 512])
    assert usage(occurrences) == [1, 1]


def test_one_code_alone_has_no_entropy() -> None:
    occurrences = np.array([[0, 5, 0, 0]])
    assert (entropy_bits(occurrences), perplexity(occurrences), usage(occurrences)) == ([0], [1], [0.25])


def test_entropy_of_a_coin_is_the_closed_form() -> None:
    p = 3 / 16
    assert entropy_bits(np.array([[3, 13]])) == pytest.approx([-p * math.log2(p) - (1 - p) * math.log2(1 - p)])


def test_codes_holding_four_fifths_counts_the_most_frequent_first() -> None:
    assert codes_holding(np.array([[1, 6, 1, 2], [10, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])) == [2, 1, 4, 0]


def test_share_of_unchanged_codes_is_counted_per_codebook() -> None:
    codes = np.zeros((3, 1, 2, 2), np.uint8)
    codes[2, 0, 0, 1] = 4
    assert CodeCounts.of(codes, 5).share_same_as_previous_frame == [1.0, 0.75]
    assert math.isnan(CodeCounts.of(codes[:1], 5).share_same_as_previous_frame[0])


def sticky_codes(seed: int, alpha: float, unigram: np.ndarray, shape: tuple[int, ...] = (60, 10, 10)) -> np.ndarray:
    generator = np.random.default_rng(seed)
    fresh = generator.choice(len(unigram), shape, p=unigram)
    codes = fresh.copy()
    for t in range(1, len(codes)):
        keep = generator.random(shape[1:]) < alpha
        codes[t] = np.where(keep, codes[t - 1], fresh[t])
    return codes[..., None]


def test_fit_finds_the_alpha_that_made_the_codes() -> None:
    unigram = np.array([0.5, 0.3, 0.15, 0.05])
    for alpha in (0.0, 0.3, 0.9):
        fitted = PreviousFrameBaseline.fit(CodeCounts.of(sticky_codes(0, alpha, unigram), 4))
        assert fitted.alpha[0] == pytest.approx(alpha, abs=0.03)


def test_fitted_alpha_is_the_most_likely_one() -> None:
    counts = CodeCounts.of(sticky_codes(1, 0.7, np.array([0.4, 0.3, 0.2, 0.1])), 4)
    fitted = PreviousFrameBaseline.fit(counts)
    best = fitted.bits(counts).sum()
    for alpha in np.linspace(0.001, 0.999, 97):
        assert best <= PreviousFrameBaseline(np.array([alpha]), fitted.unigram).bits(counts).sum() + 1.5


@settings(deadline=None, max_examples=30)
@given(CLIPS, CLIPS)
def test_previous_frame_bits_agree_with_a_loop_over_every_code(train: np.ndarray, codes: np.ndarray) -> None:
    num_codebooks = min(train.shape[-1], codes.shape[-1])
    train, codes = train[..., :num_codebooks], codes[..., :num_codebooks]
    fitted = PreviousFrameBaseline.fit(CodeCounts.of(train, 7))
    slow = np.zeros(num_codebooks)
    for t, y, x, j in np.ndindex(codes.shape):
        probabilities = fitted.unigram[j].copy()
        if t:
            probabilities *= 1 - fitted.alpha[j]
            probabilities[codes[t - 1, y, x, j]] += fitted.alpha[j]
        assert probabilities.sum() == pytest.approx(1)
        slow[j] -= math.log2(probabilities[codes[t, y, x, j]])
    assert fitted.bits(CodeCounts.of(codes, 7)) == pytest.approx(slow)


def test_codes_that_never_change_still_leave_a_change_possible() -> None:
    fitted = PreviousFrameBaseline.fit(CodeCounts.of(np.zeros((9, 4, 4, 1), int), 8))
    surprise = np.array([0, 3]).reshape(2, 1, 1, 1)
    assert np.isfinite(fitted.bits(CodeCounts.of(surprise, 8))).all()
    assert 0 <= fitted.alpha[0] < 1


def test_repeating_codes_cost_less_than_their_unigram_entropy() -> None:
    codes = sticky_codes(2, 0.9, np.full(8, 1 / 8))
    counts = CodeCounts.of(codes, 8, first_frame=1)
    bits = PreviousFrameBaseline.fit(CodeCounts.of(sticky_codes(3, 0.9, np.full(8, 1 / 8)), 8)).bits(counts)
    assert bits.sum() / counts.num_codes < entropy_bits(counts.occurrences)[0] / 2


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_diversity_agrees_with_a_loop_over_pairs(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    videos = generator.integers(0, 256, (count, 2, 3, 3, 3), dtype=np.uint8)
    codes = generator.integers(0, 3, (count, 2, 3, 3, 2), dtype=np.uint16)
    pairs = [(a, b) for a in range(count) for b in range(a)]
    squared = np.mean([mean_squared_error(videos[a], videos[b]) for a, b in pairs])
    assert mean_pairwise_squared_error(videos) == pytest.approx(squared)
    assert share_of_differing_pairs(codes) == pytest.approx(np.mean([(codes[a] != codes[b]).mean() for a, b in pairs]))


@pytest.mark.parametrize("measure", [mean_pairwise_squared_error, share_of_differing_pairs])
def test_equal_videos_have_no_diversity_and_one_video_has_none_to_measure(measure: Callable[..., float]) -> None:
    assert measure(np.ones((3, 2, 2), np.uint8)) == 0
    with pytest.raises(ShapeError, match="two videos"):
        measure(np.ones((1, 2, 2), np.uint8))


def test_dead_codes_are_those_that_never_occur() -> None:
    codes = np.zeros((3, 1, 1, 2), np.uint16)
    codes[1, 0, 0, 1] = 4
    assert CodeCounts.of(codes, 5).dead_codes == [4, 3]

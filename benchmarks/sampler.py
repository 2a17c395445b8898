"""The sampler against the released code's form, with a prior of the paper's size that has learned something.

The released code runs the encoder once for a slice, and the whole decoder again for every pixel; `one_hot_prior.py` is
that form. `LVT_SAMPLED_FRAMES` shortens the continuations, `LVT_BATCHES` names other batches, `LVT_REPETITIONS` their
number. On a busy machine `LVT_CLOCK=processor` measures processor time, with one thread.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.forced import predicted
from benchmarks.one_hot_prior import OneHotPrior
from benchmarks.trained_prior import trained_prior
from lvt_pipeline.machine import use_threads
from lvt_pipeline.models.cpu import Weights, packs_bfloat16
from lvt_pipeline.models.official import prior_to_official
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.sampling.decoder import SliceDecoder
from lvt_pipeline.models.sampling.sampler import sample

GIVEN, FRAMES = 5, 16  # frames given and in all, as in the paper
SAMPLED = int(os.environ.get("LVT_SAMPLED_FRAMES", str(FRAMES - GIVEN)))
BATCHES = tuple(int(size) for size in os.environ.get("LVT_BATCHES", "1,8").split(","))
REPETITIONS = int(os.environ.get("LVT_REPETITIONS", "3"))
IS_BUSY = os.environ.get("LVT_CLOCK") == "processor"
CLOCK = time.process_time if IS_BUSY else time.perf_counter
RELEASED_PIXELS = 4  # every pixel costs the released form the same, so a few are enough
KINDS: dict[Weights, int] = {"float32": 4, "bfloat16": 2, "int8": 1}  # bytes of a weight


def run() -> str:
    """Seconds per continuation and times as fast as the released form; codes and bits that weights change; a load."""
    if IS_BUSY:
        use_threads(1)
    torch.manual_seed(0)
    model, codes, source = trained_prior()
    return "\n".join([_speed(model, codes, source), _weights(model, codes), _beside_a_load(model, codes)])


def _speed(model: Prior, codes: Tensor, source: str) -> str:
    released = OneHotPrior(prior_to_official(model.config, model.state_dict()), model.config.subscale).eval()
    bandwidth = _bandwidth()
    lines = []
    for batch in BATCHES:
        work = partial(sample, model, codes[:batch, :GIVEN], frames=GIVEN + SAMPLED)
        variants: dict[str, Callable[[], object]] = {kind: partial(work, weights=kind) for kind in KINDS}
        variants["float32, lookahead 1"] = partial(work, lookahead=1)
        seconds: dict[str, list[float]] = {"released form": [], **{name: [] for name in variants}}
        passes: dict[str, tuple[int, float]] = {}
        for repetition in range(REPETITIONS + 1):
            some = [_released_seconds(released, codes[:batch])]
            for name, variant in variants.items():
                with _Counting() as counting:
                    began = CLOCK()
                    variant()
                    some.append(CLOCK() - began)
                passes[name] = counting.passes, counting.key_bytes
            for (_, kept), value in zip(seconds.items(), some, strict=True):
                if repetition:
                    kept.append(value)
        ratios = {
            name: statistics.median(slow / fast for slow, fast in zip(seconds["released form"], values, strict=True))
            for name, values in seconds.items()
        }
        for name, values in seconds.items():
            scale = (FRAMES - GIVEN) / SAMPLED
            cells = f"| {batch} | {name} | {scale * statistics.median(values):.1f} s | {ratios[name]:.1f} |"
            if name in passes:
                count, key_bytes = passes[name]
                read = count * _weight_bytes(model, name) + key_bytes
                limit = read / bandwidth / batch
                share = limit / (statistics.median(values) / batch)
                cells += f" {count / SAMPLED:.0f} | {scale * limit:.2f} s | {share:.0%} |"
            else:
                cells += " 256 | | |"
            lines.append(cells)
    clock = "processor" if IS_BUSY else "wall"
    heads = "| batch | form | continuations of a batch | times as fast | passes a frame | limit a clip | of it |"
    return "\n".join(
        [
            "### Sampling",
            "",
            f"{FRAMES} frames from {GIVEN} (measured: {SAMPLED} sampled frames and {RELEASED_PIXELS} pixels of the "
            f"released form, scaled), the paper's single-frame prior; {source}. {torch.get_num_threads()} threads, "
            f"median of {REPETITIONS} interleaved, {clock} time. Limit: weights, keys and values "
            f"that are read, at the measured {bandwidth / 1e9:.1f} GB/s.",
            "",
            heads,
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def _weights(model: Prior, codes: Tensor) -> str:
    """What smaller weights change, on real codes."""
    first = model.config.frames - 3
    found = {kind: predicted(model, codes, kind, first) for kind in KINDS}
    bits, sampled = found["float32"]
    lines = [
        f"| {kind} | {own_bits:.4f} | {own_bits - bits:+.4f} | {(own != sampled).float().mean():.2%} |"
        for kind, (own_bits, own) in found.items()
    ]
    exact = model.nats_by_code(codes, first).bits_per_dim
    assert abs(exact - bits) < 1e-3, f"the sampler's decoder predicts {bits} bits, the model {exact}"
    return "\n".join(
        [
            "### Smaller weights",
            "",
            f"The last 3 frames of {len(codes)} held-out windows, given the real codes before each.",
            "",
            "| weights | bits/dim | change | codes that change |",
            "|---|---|---|---|",
            *lines,
            "",
        ]
    )


def _beside_a_load(model: Prior, codes: Tensor) -> str:
    """One sampled frame alone and next to a busy process, in turn."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for repetition in range(REPETITIONS + 1):
        for is_loaded, kept in seconds.items():
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if is_loaded else None
            try:
                began = time.perf_counter()
                sample(model, codes[:1, :GIVEN], frames=GIVEN + 1)
                if repetition:
                    kept.append(time.perf_counter() - began)
            finally:
                if other is not None:
                    other.kill()
                    other.wait()
    alone, beside = (statistics.median(kept) for kept in seconds.values())
    return f"Next to a busy process, one frame takes {beside:.2f} s, alone {alone:.2f} s: {alone / beside:.0%} speed.\n"


@torch.no_grad()
def _released_seconds(released: OneHotPrior, codes: Tensor) -> float:
    """Seconds of the released form for `SAMPLED` frames, from one encoder pass and a few pixels."""
    index = GIVEN
    began = CLOCK()
    encoded = released._encode(codes, index, None)
    encoder = CLOCK() - began
    own = codes[:, index : index + 1].clone()
    numbers = torch.rand(len(codes), dtype=torch.float64)
    began = CLOCK()
    for pixel in range(RELEASED_PIXELS):
        row, column = divmod(pixel, codes.shape[3])
        decoded = released._decode(own, encoded)[:, :, :, row : row + 1, column : column + 1]
        for j in range(codes.shape[-1]):
            here = own[:, :, row : row + 1, column : column + 1]
            cumulative = released._channels(decoded, here)[:, 0, 0, 0, j].softmax(-1).cumsum(-1)
            own[:, 0, row, column, j] = (cumulative > numbers[:, None]).int().argmax(-1)
    pixels = (CLOCK() - began) / RELEASED_PIXELS * codes.shape[2] * codes.shape[3]
    return SAMPLED * (encoder + pixels)


class _Counting:
    """Counts passes, and the bytes of keys and values that they look at."""

    def __enter__(self) -> _Counting:
        self.passes, self.key_bytes = 0, 0.0
        self._step = step = SliceDecoder.step

        def counted(decoder: SliceDecoder, start: int, stop: int) -> None:
            self.passes += 1
            self.key_bytes += sum(cache[:, :, start:stop].nbytes for cache in decoder._caches)
            step(decoder, start, stop)

        SliceDecoder.step = counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        SliceDecoder.step = self._step  # type: ignore[method-assign]


def _weight_bytes(model: Prior, name: str) -> int:
    """Bytes of weights that a pass reads; those of the causal convolution are a few rows of a table."""
    kind = name.partition(",")[0]
    if kind == "bfloat16" and not packs_bfloat16():
        kind = "float32"
    decoder, predictor = model.decoder, model.predictor
    layers = sum(value.numel() for value in decoder.blocks.layers.parameters() if value.ndim > 1)
    mixers = sum(model.config.width * mixer.weight.shape[0] for mixer in predictor.mixers)  # type: ignore[union-attr, operator, misc]
    outputs = sum(value.numel() for value in predictor.outputs.parameters())
    return KINDS[kind] * (layers + mixers) + 4 * outputs  # type: ignore[index, operator, no-any-return]


def _bandwidth() -> float:
    """Bytes per second that a sum over 256 MiB reads, the fastest of five."""
    data = torch.ones(2**26)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        data.sum()
        seconds.append(time.perf_counter() - began)
    return data.nbytes / min(seconds)

"""A prior of the paper's size that has learned something, for measurements that depend on its predictions.

Speculative decoding is as quick as its guesses are right, so random weights say nothing. Whole training takes days;
this takes minutes of one core: a tokenizer without codebook tables (FSQ, K=512, n_c=4) learns on the frames, then the
first layer of encoder and decoder learn while all others are the identity, then all layers learn for a few steps. The
codes are those of `LVT_VIDEOS`, else of the demo. The result is kept under `runs/benchmark`, or where
`LVT_BENCHMARK_CACHE` says.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.real_videos import VIDEOS
from lvt_pipeline.demo.videos import DemoSettings, demo_clip
from lvt_pipeline.errors import LVTError
from lvt_pipeline.models.cpu import has_bfloat16_products
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE, to_images
from lvt_pipeline.video.decode import decode_clip
from lvt_pipeline.video.geometry import lanczos_square
from lvt_pipeline.video.settings import GeometrySettings

SIZE, FRAMES, HELD_OUT = 64, 16, 8
MAX_CLIPS, MAX_FRAMES, MAX_SECONDS = 96, 48, 2.0
TOKENIZER_STEPS = int(os.environ.get("LVT_TOKENIZER_STEPS", "150"))
SHALLOW_STEPS, DEEP_STEPS = int(os.environ.get("LVT_STEPS", "80")), 2
BATCH = 8


def trained_prior(config: PriorConfig | None = None) -> tuple[Prior, Tensor, str]:
    """The prior in evaluation mode, windows of held-out codes int64 (8, 16, 16, 16, 4), and what was trained on what.

    Args:
        config: another shape, for tests of the benchmark itself.
    """
    config = config or PriorConfig()
    source = os.environ.get(VIDEOS, "the demo")
    facts = repr((config, source, TOKENIZER_STEPS, SHALLOW_STEPS, DEEP_STEPS))
    folder = Path(os.environ.get("LVT_BENCHMARK_CACHE", "runs/benchmark"))
    path = folder / f"prior-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.safetensors"
    model = Prior(config)
    if not path.exists():
        began = time.process_time()
        torch.manual_seed(0)
        codes = torch.from_numpy(_codes(config))
        held_out, seen = codes[:HELD_OUT], codes[HELD_OUT:]
        model = Prior(config)
        train_briefly(model, seen)
        seconds = torch.tensor(time.process_time() - began)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({**model.state_dict(), "held_out": held_out, "seconds": seconds}, path)
    tensors = load_file(path)
    held_out, seconds = tensors.pop("held_out"), float(tensors.pop("seconds"))
    model.load_state_dict(tensors)
    return model.eval(), held_out, f"codes of {source}, {seconds:.0f} s of processor time for both networks"


def _codes(config: PriorConfig) -> NDArray[np.int64]:
    """Windows of codes (N, 16, 16, 16, n_c); the first `HELD_OUT` are of clips that no other window is of."""
    clips = _clips()
    frames = np.concatenate(clips)
    levels = {512: (8, 8, 8), 64: (4, 4, 4)}[config.codebook_size]
    tokenizer = VQVAE(
        VQVAEConfig(
            num_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
            code_width=64,
            stem_width=32,
            residual_width=32,
            num_residual_blocks=1,
            quantizer="fsq",
            fsq_levels=levels,
        )
    )
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=TOKENIZER_STEPS + 1)
    generator = np.random.default_rng(0)
    for _ in range(TOKENIZER_STEPS):
        images = to_images(torch.from_numpy(frames[generator.integers(0, len(frames), 16)]))
        _step(optimizer, tokenizer(images).loss, tokenizer)
        schedule.step()
    tokenizer.eval()
    windows = []
    for clip in clips:
        codes = tokenizer.encode(clip).numpy()
        windows.append([codes[start : start + FRAMES] for start in range(0, len(codes) - FRAMES + 1, 8)])
    held_out = [some[0] for some in windows[::-1][:HELD_OUT]]
    return np.stack([*held_out, *(one for some in windows[:-HELD_OUT] for one in some)])


def _clips() -> list[NDArray[np.uint8]]:
    """Frames (T, 64, 64, 3) of clips of at least 16 frames."""
    if VIDEOS not in os.environ:
        settings = DemoSettings(num_frames=24)
        return [
            np.stack([lanczos_square(picture, SIZE) for picture in demo_clip(settings, index)]) for index in range(40)
        ]
    clips: list[NDArray[np.uint8]] = []
    for path in sorted(Path(os.environ[VIDEOS]).rglob("*.mp4")):
        try:
            frames = decode_clip(str(path), 0.0, MAX_SECONDS, GeometrySettings(size=SIZE, resize="decoder")).frames
        except LVTError:
            continue
        if len(frames) >= FRAMES:
            clips.append(frames[:MAX_FRAMES])
    order = np.random.default_rng(0).permutation(len(clips))[:MAX_CLIPS]
    return [clips[number] for number in order]


def train_briefly(model: Prior, codes: Tensor) -> None:
    """Train on windows of codes: the first layers, then all of them."""
    stacks = [model.encoder.blocks, model.decoder.blocks]
    whole = [stack.layers for stack in stacks]
    for layers in whole:
        for layer in list(layers)[1:]:  # adds nothing yet
            for part in (layer.attention.out, layer.linear2):  # type: ignore[union-attr]
                nn.init.zeros_(part.weight)  # type: ignore[union-attr, arg-type]
    for stack, layers in zip(stacks, whole, strict=True):
        stack.layers = nn.ModuleList(list(layers)[:1])
    _train_steps(model, codes, SHALLOW_STEPS, rate=2e-3)
    for stack, layers in zip(stacks, whole, strict=True):
        stack.layers = layers
    _train_steps(model, codes, DEEP_STEPS, rate=1e-4)


def _train_steps(model: Prior, codes: Tensor, steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.15)
    generator = torch.Generator().manual_seed(0)
    slices = torch.tensor(model.trainable_slices)
    for _ in range(steps):
        some = codes[torch.randint(0, len(codes), (BATCH,), generator=generator)]
        chosen = slices[torch.randint(0, len(slices), (BATCH,), generator=generator)]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=has_bfloat16_products(model.device)):
            loss = model.slice_loss(some, chosen).loss
        _step(optimizer, loss, model)
        schedule.step()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor | None, model: nn.Module) -> None:
    assert loss is not None
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

"""Everything that needs a GPU, in one command of at most eight minutes: `python -m benchmarks gpu`.

Checks first (codes of CPU and GPU, TF32 off, graph against eager, bfloat16), then times. It prints one table, writes it
as JSON to `runs/benchmark/gpu.json` (`LVT_RESULTS` names another file), and adds it to `benchmarks/RESULTS.md`. What
there is no time for any more is skipped and named. Without a GPU the same runs on the CPU with toy sizes.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.forced import predicted
from benchmarks.loader import write_codes
from benchmarks.trained_prior import train_briefly
from lvt_pipeline.config import build
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.sampling import decoder as decoder_module
from lvt_pipeline.models.sampling.decoder import SliceDecoder
from lvt_pipeline.models.sampling.sampler import sample
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE, to_images
from lvt_pipeline.training.prior import train_prior
from lvt_pipeline.training.settings import PriorRunSettings

SECONDS = 450  # after this no measurement begins
RESULTS = Path(__file__).with_name("RESULTS.md")


@dataclass(frozen=True)
class Sizes:
    """What is run."""

    prior: PriorConfig
    tokenizer: VQVAEConfig
    sampled: tuple[int, ...]  # batches
    batch: int  # of a training step
    steps: int
    pixels: int  # of a side of a frame
    encoded: int  # frames


PAPER = Sizes(PriorConfig(), VQVAEConfig(), (1, 8, 64), 64, 10, 64, 2048)
DRY = Sizes(
    PriorConfig(
        frames=4,
        grid=(4, 4),
        subscale=(4, 1, 1),
        num_codebooks=2,
        codebook_size=16,
        width=24,
        head_width=8,
        num_heads=2,
        embedding_width=12,
        encoder_layers=1,
        decoder_layers=1,
    ),
    VQVAEConfig(num_codebooks=2, codebook_size=16, code_width=8, stem_width=8, residual_width=8, num_residual_blocks=1),
    (1, 2),
    2,
    2,
    16,
    8,
)


@dataclass(frozen=True)
class Row:
    """A line of the table. `aim` is what was hoped for, in words."""

    what: str
    value: float
    unit: str
    aim: str = ""


def run() -> str:
    """Measure on the GPU, or on the CPU with toy sizes, and write the results."""
    has_gpu = torch.cuda.is_available()
    return measure(
        torch.device("cuda" if has_gpu else "cpu"),
        PAPER if has_gpu else DRY,
        Path(os.environ.get("LVT_RESULTS", "runs/benchmark/gpu.json")),
        RESULTS if has_gpu else None,
    )


def measure(device: torch.device, sizes: Sizes, out: Path, results: Path | None) -> str:
    """The table as markdown.

    Args:
        out: JSON file to write.
        results: markdown file that the table is added to.
    """
    began = time.perf_counter()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    model = Prior(sizes.prior).to(device)
    train_briefly(model, _codes(sizes, 256))  # speculative decoding needs predictions
    model.eval()
    rows, failed, skipped = [], [], []
    for part in (codes_agree, sampling, prior_steps, resuming, tokenizer_steps, encoding, loading):
        if time.perf_counter() - began > SECONDS:
            skipped.append(part.__name__)
            continue
        try:
            rows += part(model, sizes, device)
        except Exception as error:  # a part that fails must not take the others with it
            failed.append(f"{part.__name__}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}, toy sizes"
    facts = {
        "device": name,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "seconds": round(time.perf_counter() - began, 1),
        "rows": [asdict(row) for row in rows],
        "failed": failed,
        "skipped": skipped,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n")
    text = _table(facts, rows)
    if results is not None:
        with results.open("a") as file:
            file.write(f"\n{text}")
    return text


def codes_agree(model: Prior, sizes: Sizes, device: torch.device) -> list[Row]:
    """The same codes on CPU and GPU, from a graph and eagerly, and how many bfloat16 changes."""
    priming = _codes(sizes, 2)[:, : sizes.prior.frames - 2]
    here = sample(copy.deepcopy(model).cpu(), priming)
    there = sample(model, priming)
    eager = _sampled_eagerly(model, priming)
    one_by_one = sample(model, priming, lookahead=1)
    sampled = slice(priming.shape[1], None)
    whole = _codes(sizes, 2)
    bits, codes = predicted(model, whole, "float32", 1)
    half_bits, half_codes = predicted(model, whole, "bfloat16", 1)
    again = sample(model, priming)
    return [
        Row("codes of the GPU that the CPU also samples", _share(here, there, sampled), "", "1"),
        Row("codes of the graph that eager passes also sample", _share(there, eager, sampled), "", "1"),
        Row("codes that do not depend on the lookahead", _share(there, one_by_one, sampled), "", "1"),
        Row("codes that a second call also samples", _share(there, again, sampled), "", "1"),
        Row("codes that bfloat16 changes, given those before", float((codes != half_codes).float().mean()), ""),
        Row("bits/dim that bfloat16 adds", half_bits - bits, "bits"),
    ]


def sampling(model: Prior, sizes: Sizes, device: torch.device) -> list[Row]:
    """Seconds of a continuation, after one that captures and is not counted."""
    aims = {1: "at most 1 s", 64: "at least 40 clips/s, 1.6 s"}
    given = min(5, sizes.prior.frames - 2)
    rows = []
    for batch in sizes.sampled:
        priming = _codes(sizes, batch)[:, :given]
        for weights in ("float32", "bfloat16"):
            for lookahead in (None, 1):
                name = "auto" if lookahead is None else lookahead

                def work(weights: Any = weights, lookahead: int | None = lookahead, priming: Tensor = priming) -> None:
                    sample(model, priming, weights=weights, lookahead=lookahead)

                passes = _passes(work)  # the first call, which also captures
                seconds = _seconds(device, work)
                what = f"sampling {batch} clips, {weights}, lookahead {name}"
                rows.append(Row(what, seconds, "s", aims.get(batch, "")))
                rows.append(Row(f"{what}: passes a frame", passes / (sizes.prior.frames - given), ""))
    return rows


def prior_steps(model: Prior, sizes: Sizes, device: torch.device) -> list[Row]:
    """Training steps of the prior."""
    codes = _codes(sizes, sizes.batch)
    slices = torch.full((sizes.batch,), sizes.prior.frames - 1)

    def loss(network: nn.Module) -> Tensor:
        result = network(codes, slices).loss
        assert isinstance(result, Tensor)
        return result

    return _training_rows("prior", Prior(sizes.prior).to(device), loss, sizes, device)


def tokenizer_steps(model: Prior, sizes: Sizes, device: torch.device) -> list[Row]:
    """Training steps of the VQ-VAE, half of the prior's batch in frames, as in the paper."""
    frames = _frames(sizes, max(1, sizes.batch // 2))
    images = to_images(torch.from_numpy(frames)).to(device)

    def loss(network: nn.Module) -> Tensor:
        result = network(images).loss
        assert isinstance(result, Tensor)
        return result

    return _training_rows("VQ-VAE", VQVAE(sizes.tokenizer).to(device), loss, sizes, device)


def resuming(model: Prior, sizes: Sizes, device: torch.device) -> list[Row]:
    """How far a training that was saved and loaded half way is from one that was not."""
    codes, slices = _codes(sizes, 4), torch.full((4,), sizes.prior.frames - 1)

    def steps(network: Prior, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            loss = network.slice_loss(codes, slices).loss
            assert loss is not None
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    torch.manual_seed(0)
    whole = Prior(sizes.prior).to(device)
    start = copy.deepcopy(whole.state_dict())
    optimizer = torch.optim.RMSprop(whole.parameters(), lr=2e-5, alpha=0.95, momentum=0.9)
    steps(whole, optimizer, 4)
    halves = Prior(sizes.prior).to(device)
    halves.load_state_dict(start)
    first = torch.optim.RMSprop(halves.parameters(), lr=2e-5, alpha=0.95, momentum=0.9)
    steps(halves, first, 2)
    resumed = Prior(sizes.prior).to(device)
    resumed.load_state_dict(halves.state_dict())
    second = torch.optim.RMSprop(resumed.parameters(), lr=2e-5, alpha=0.95, momentum=0.9)
    second.load_state_dict(first.state_dict())
    steps(resumed, second, 2)
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    difference = max(float((a - b).detach().abs().max()) for a, b in pairs)
    return [Row("largest difference of weights after resuming", difference, "", "0")]


def encoding(model: Prior, sizes: Sizes, device: torch.device) -> list[Row]:
    """Frames that the tokenizer encodes in a second."""
    frames = _frames(sizes, sizes.encoded)
    tokenizer = VQVAE(sizes.tokenizer).to(device).eval()
    half = copy.deepcopy(tokenizer)
    half.encoder.to(torch.bfloat16)
    rows = []
    for name, network in (("float32", tokenizer), ("bfloat16", half)):
        network.encode(frames[:64], batch_size=64)
        seconds = _seconds(device, lambda network=network: network.encode(frames, batch_size=64))
        rows.append(Row(f"encoding, {name}", len(frames) / seconds, "frames/s"))
    flipped = (tokenizer.encode(frames, 64) != half.encode(frames, 64)).float().mean()
    return [*rows, Row("codes that a bfloat16 encoder changes", float(flipped), "")]


def loading(model: Prior, sizes: Sizes, device: torch.device) -> list[Row]:
    """The share of the time of its steps that a training waits for windows from a code store."""
    config = sizes.prior
    with tempfile.TemporaryDirectory() as name:
        codes = _codes(sizes, 4 * sizes.batch).numpy().astype(np.uint16)
        write_codes(Path(name) / "data.zarr", codes, config.codebook_size)
        shape = {key: getattr(config, key) for key in ("frames", "subscale", "width", "head_width", "num_heads")}
        shape |= {key: getattr(config, key) for key in ("embedding_width", "encoder_layers", "decoder_layers")}
        training = {"batch_size": sizes.batch, "max_steps": 2 * sizes.steps, "log_every": sizes.steps}
        settings = build(PriorRunSettings, {"model": shape, "training": training})
        train_prior(Path(name) / "data.zarr", Path(name) / "run", settings, device=str(device))
        lines = (Path(name) / "run" / "metrics.jsonl").read_text().splitlines()
        shares = [json.loads(line)["data_wait_share"] for line in lines if "data_wait_share" in line]
    return [Row("share of the steps that waits for data", shares[-1], "", "below 0.02")]


def _training_rows(
    name: str, network: nn.Module, loss: Callable[[nn.Module], Tensor], sizes: Sizes, device: torch.device
) -> list[Row]:
    rows = []
    start = copy.deepcopy(network.state_dict())
    for precision in ("float32", "bfloat16"):
        network.load_state_dict(start)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

        def step(precision: str = precision, optimizer: torch.optim.Optimizer = optimizer) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                value = loss(network)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for _ in range(3):
            step()
        seconds = _seconds(device, lambda step=step: [step() for _ in range(sizes.steps)])  # type: ignore[misc]
        rows.append(Row(f"{name}, training step, batch {sizes.batch}, {precision}", sizes.steps / seconds, "steps/s"))
        if device.type == "cuda":
            rows.append(
                Row(f"{name}, peak memory, {precision}", torch.cuda.max_memory_allocated(device) / 2**30, "GiB")
            )
    return rows


def _sampled_eagerly(model: Prior, priming: Tensor) -> Tensor:
    """As `sample`, without graphs: every pass is run again in place of its replay."""

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        work()
        return work

    recorded = decoder_module.run_and_capture
    decoder_module.run_and_capture = capture
    try:
        return sample(model, priming)
    finally:
        decoder_module.run_and_capture = recorded


def _passes(work: Callable[[], object]) -> int:
    """How many passes the sampler makes."""
    count = [0]
    run = SliceDecoder._pass

    def counted(decoder: SliceDecoder, start: int, stop: int) -> None:
        count[0] += 1
        run(decoder, start, stop)

    SliceDecoder._pass = counted  # type: ignore[method-assign]
    try:
        work()
    finally:
        SliceDecoder._pass = run  # type: ignore[method-assign]
    return count[0]


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _codes(sizes: Sizes, batch: int) -> Tensor:
    """Codes of which most stay from frame to frame."""
    config = sizes.prior
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, config.frames, *config.grid, config.num_codebooks)
    codes = torch.randint(0, config.codebook_size, shape, generator=generator)
    stays = torch.rand(shape, generator=generator) < 0.85
    for frame in range(1, config.frames):
        codes[:, frame] = torch.where(stays[:, frame], codes[:, frame - 1], codes[:, frame])
    return codes


def _frames(sizes: Sizes, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    shape = (count, sizes.pixels, sizes.pixels, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _share(one: Tensor, other: Tensor, sampled: slice) -> float:
    return float((one == other)[:, sampled].float().mean())


def _table(facts: dict[str, Any], rows: list[Row]) -> str:
    lines = [
        f"## {facts['device']}, {facts['date']}",
        "",
        f"torch {facts['torch']}, CUDA {facts['cuda']}, {facts['seconds']} s in all.",
        "",
        "| what | value | aim |",
        "|---|---|---|",
        *(f"| {row.what} | {row.value:.4g} {row.unit} | {row.aim} |" for row in rows),
        "",
        *(f"- failed: {one}" for one in facts["failed"]),
        *(f"- skipped, no time left: {one}" for one in facts["skipped"]),
    ]
    return "\n".join(lines) + "\n"

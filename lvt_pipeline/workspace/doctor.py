"""Whether this machine can run every stage: each check does the real thing once, small, in a temporary folder."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from lvt_pipeline.config import build
from lvt_pipeline.file_systems import flush, missing_guarantees
from lvt_pipeline.machine import num_cores

PACKAGES = ("torch", "webdataset", "zarr", "numcodecs", "decord", "av", "numpy", "einops", "pillow", "safetensors")
DECODERS: tuple[Literal["decord", "pyav"], ...] = ("decord", "pyav")
ONE_STEP = {"max_steps": 1, "batch_size": 1}
TINY_TOKENIZER = {
    "model": {"num_codebooks": 1, "codebook_size": 8, "code_width": 8, "stem_width": 8, "residual_width": 8},
    "training": ONE_STEP,
}
TINY_PRIOR = {
    "model": {
        "frames": 2,
        "subscale": [2, 1, 1],
        "width": 12,
        "head_width": 4,
        "num_heads": 2,
        "embedding_width": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
    },
    "training": ONE_STEP,
}
LOW_DISK_BYTES = 10 * 2**30
LOW_SHARED_MEMORY_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Check:
    """One finding. `is_ok` is False for what will stop a stage; a warning keeps it True and is part of `detail`."""

    name: str
    is_ok: bool
    detail: str


def examine(folder: Path) -> list[Check]:
    """Run every check; none raises.

    Args:
        folder: where outputs will go; its disk is measured.
    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        ("packages", _packages),
        ("torch", _torch),
        ("devices", _devices),
        ("decoders", _decoders),
        ("code store", _code_store),
        ("webdataset", _webdataset),
        ("training", _training),
        ("worker processes", _workers),
        ("shared memory", _shared_memory),
        ("disk", lambda: _disk(folder)),
    ]
    results = []
    for name, check in checks:
        try:
            results.append(Check(name, True, check()))
        except Exception as error:
            # The finding is the point of this command: whatever went wrong is one line of the table.
            results.append(Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
    return results


def _python() -> str:
    if sys.version_info < (3, 11):  # noqa: UP036  # the check is for people who ran from a checkout
        raise RuntimeError(f"{platform.python_version()} is too old; lvt needs 3.11")
    return f"{platform.python_version()}, {num_cores()} cores, {platform.platform()}"


def _packages() -> str:
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def _torch() -> str:
    import torch

    product = torch.ones(64, 64) @ torch.ones(64, 64)
    if float(product[0, 0]) != 64.0:
        raise RuntimeError("a matrix product came out wrong")
    backends = [name for name in ("gloo", "nccl") if torch.distributed.is_backend_available(name)]
    return f"{torch.__version__}, several processes through {' and '.join(backends) or 'nothing: torchrun fails'}"


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"no GPU: training runs on {torch.get_num_threads()} CPU threads"
    found = []
    for index in range(torch.cuda.device_count()):
        product = torch.ones(64, 64, device=f"cuda:{index}", dtype=torch.bfloat16) @ torch.ones(
            64, 64, device=f"cuda:{index}", dtype=torch.bfloat16
        )
        if float(product[0, 0]) != 64.0:
            raise RuntimeError(f"a matrix product in bfloat16 came out wrong on cuda:{index}")
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        found.append(f"cuda:{index} {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    return "; ".join(found)


def _decoders() -> str:
    from lvt_pipeline.video.decode import decode_clip
    from lvt_pipeline.video.settings import GeometrySettings
    from lvt_pipeline.video.write import write_mp4

    with tempfile.TemporaryDirectory() as folder:
        frames = np.zeros((8, 64, 64, 3), np.uint8)
        frames[:, :, :32] = 255
        write_mp4(Path(folder) / "clip.mp4", frames, fps=10)
        for decoder in DECODERS:
            clip = decode_clip(str(Path(folder) / "clip.mp4"), None, None, GeometrySettings(decoder=decoder))
            if clip.frames.shape != frames.shape or np.abs(clip.frames.astype(int) - frames).mean() > 8:
                raise RuntimeError(f"{decoder} gave back changed frames")
    return f"{' and '.join(DECODERS)} read H.264 that was just written"


def _code_store() -> str:
    import zarr
    from zarr.storage import MemoryStore

    from lvt_pipeline.codes.schema import CodeSchema
    from lvt_pipeline.codes.shard_file import create_array

    schema = CodeSchema(codebook_size=512, num_codebooks=4, grid=(4, 4), tokenizer="doctor", shard_frames=32)
    files, array = create_array(32, schema, 16)
    codes = np.random.default_rng(0).integers(0, 512, array.shape).astype(schema.dtype)
    array[:] = codes
    if not np.array_equal(zarr.open_array(MemoryStore(store_dict=files), mode="r")[:], codes):
        raise RuntimeError("codes came back changed")
    return "sharding, zstd and crc32c work"


def _webdataset() -> str:
    import webdataset

    from lvt_pipeline.frames.records import FrameSample
    from lvt_pipeline.frames.writer import write_shard

    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "train-000000.tar"
        write_shard(shard, [FrameSample.from_array("clip", np.zeros((2, 8, 8, 3), np.uint8))])
        samples = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode())
    if samples[0]["npy"].shape != (2, 8, 8, 3):
        raise RuntimeError("frames came back changed")
    return "shards can be written and read"


def _training() -> str:
    from lvt_pipeline.frames.records import FrameSample
    from lvt_pipeline.frames.writer import write_frames
    from lvt_pipeline.jobs.encode import encode_dataset
    from lvt_pipeline.runs.read import load_prior
    from lvt_pipeline.training.prior import train_prior
    from lvt_pipeline.training.settings import PriorRunSettings, VQVAERunSettings
    from lvt_pipeline.training.vqvae import train_vqvae

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        frames, vqvae, codes, prior = (Path(folder) / name for name in ("frames", "vqvae", "data.zarr", "prior"))
        pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
        samples = [FrameSample.from_array(split, pixels[i], split=split) for i, split in enumerate(("train", "val"))]
        write_frames(frames, samples, stage="ingest", settings={}, inputs={"manifest": "0" * 64})
        train_vqvae(frames, vqvae, build(VQVAERunSettings, TINY_TOKENIZER), device="cpu")
        encode_dataset(frames, vqvae, codes, device="cpu")
        train_prior(codes, prior, build(PriorRunSettings, TINY_PRIOR), device="cpu")
        load_prior(prior, device="cpu").sample(np.zeros((1, 1, 4, 4, 1), np.int64))
    return f"one step of a tokenizer and of a prior, and a sample, took {time.monotonic() - started:.1f} s on the CPU"


def _workers() -> str:
    from lvt_pipeline.jobs.ingest.workers import run_isolated

    started = time.monotonic()
    answers = list(run_isolated(abs, [-1], num_workers=1, deadline_seconds=lambda task: 30.0))
    if answers != [(0, 1)]:
        raise RuntimeError(f"a worker answered {answers}")
    return (
        f"a fresh interpreter answered in {time.monotonic() - started:.1f} s; Python's own start method here is "
        f"{multiprocessing.get_start_method()}, which lvt does not use"
    )


def shared_memory_bytes() -> int:
    """What processes may still share; 0 where there is no such file system."""
    return shutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else 0


def _shared_memory() -> str:
    free = shared_memory_bytes()
    note = " (low: data loading workers may fail)" if free < LOW_SHARED_MEMORY_BYTES else ""
    return f"{free / 2**20:,.0f} MiB free{note}"


def _disk(folder: Path) -> str:
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    block = os.urandom(2**20)
    started = time.monotonic()
    with tempfile.NamedTemporaryFile(dir=existing) as file:
        for _ in range(64):
            file.write(block)
        file.flush()
        flush(file.fileno())
    speed = 64 / (time.monotonic() - started)
    free = shutil.disk_usage(existing).free
    note = " (low)" if free < LOW_DISK_BYTES else ""
    lacks = "".join(f"; {line}" for line in missing_guarantees(existing))
    return f"{free / 2**30:,.1f} GiB free{note} in {existing}, {speed:,.0f} MiB/s written and flushed{lacks}"

"""Latent video transformers: resumable stages and precomputed code stores (Rakhimov et al. 2020).

    import lvt_pipeline as lvt

    store = lvt.open_codes("data.zarr")          # store[id] -> uint (T, h, w, n_c)
    windows = lvt.CodeWindows("data.zarr")       # windows[i] -> int64 (16, h, w, n_c)
    vqvae = lvt.load_vqvae("runs/vqvae")         # .encode, .decode
    prior = lvt.load_prior("runs/prior")         # .logits, .sample, .bits_per_dim

Names load on first use, so importing the package is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lvt_pipeline.provenance import lvt_version

if TYPE_CHECKING:
    from lvt_pipeline.codes.loading.windows import CodeWindows
    from lvt_pipeline.codes.store import CodeStore, open_codes
    from lvt_pipeline.frames.shards import FrameShards
    from lvt_pipeline.models.prior.model import Prior
    from lvt_pipeline.models.vqvae.model import VQVAE
    from lvt_pipeline.runs.read import load_prior, load_vqvae

__all__ = ["VQVAE", "CodeStore", "CodeWindows", "FrameShards", "Prior", "load_prior", "load_vqvae", "open_codes"]
__version__ = lvt_version()

_HOMES = {
    "VQVAE": "models.vqvae.model",
    "CodeStore": "codes.store",
    "CodeWindows": "codes.loading.windows",
    "FrameShards": "frames.shards",
    "Prior": "models.prior.model",
    "load_prior": "runs.read",
    "load_vqvae": "runs.read",
    "open_codes": "codes.store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Latent video transformers: resumable stages and precomputed code stores (Rakhimov et al. 2020).

    import lvt_pipeline as lvt

    store = lvt.open_codes("data.zarr")          # store[id] -> uint (T, h, w, n_c)
    windows = lvt.CodeWindows("data.zarr")       # windows[i] -> int64 (16, h, w, n_c)
    vqvae = lvt.load_vqvae("runs/vqvae")         # .encode, .decode
    prior = lvt.load_prior("runs/prior")         # .logits, .sample, .bits_per_dim

The stages are functions too: `lvt.ingest`, `lvt.encode_dataset`, `lvt.train_prior`, ... docs/python.md lists all names.
Names load on first use, so importing the package is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lvt_pipeline.provenance import lvt_version

if TYPE_CHECKING:
    from lvt_pipeline.codes.loading.windows import CodeWindows
    from lvt_pipeline.codes.store import CodeStore, open_codes
    from lvt_pipeline.codes.verify import verify_store
    from lvt_pipeline.errors import LVTError
    from lvt_pipeline.evaluation.compare import compare
    from lvt_pipeline.evaluation.evaluate import evaluate
    from lvt_pipeline.evaluation.settings import EvaluateSettings
    from lvt_pipeline.frames.shards import FrameShards
    from lvt_pipeline.jobs.continue_video import continue_video
    from lvt_pipeline.jobs.decode import decode_store
    from lvt_pipeline.jobs.encode import encode_dataset
    from lvt_pipeline.jobs.export import export_codes
    from lvt_pipeline.jobs.import_codes import import_codes
    from lvt_pipeline.jobs.ingest.ingest import ingest
    from lvt_pipeline.jobs.ingest.settings import IngestSettings
    from lvt_pipeline.jobs.sample import sample_clips
    from lvt_pipeline.jobs.settings import (
        DecodeSettings,
        EncodeSettings,
        ExportSettings,
        ImportSettings,
        SampleSettings,
    )
    from lvt_pipeline.manifest.manifest import build_manifest, read_manifest
    from lvt_pipeline.manifest.settings import ManifestSettings
    from lvt_pipeline.models.prior.config import PriorConfig, PriorModelSettings
    from lvt_pipeline.models.prior.model import Prior
    from lvt_pipeline.models.vqvae.config import VQVAEConfig
    from lvt_pipeline.models.vqvae.model import VQVAE
    from lvt_pipeline.report.page import write_report
    from lvt_pipeline.runs.read import load_prior, load_vqvae
    from lvt_pipeline.training.prior import train_prior
    from lvt_pipeline.training.settings import PriorRunSettings, PriorTraining, VQVAERunSettings, VQVAETraining
    from lvt_pipeline.training.vqvae import train_vqvae
    from lvt_pipeline.video.decode import read_video
    from lvt_pipeline.video.settings import GeometrySettings
    from lvt_pipeline.video.write import write_video

# Module -> the public names it defines. A test compares them with the imports above and with docs/python.md.
_HOMES = {
    "codes.loading.windows": ("CodeWindows",),
    "codes.store": ("CodeStore", "open_codes"),
    "codes.verify": ("verify_store",),
    "errors": ("LVTError",),
    "evaluation.compare": ("compare",),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.settings": ("EvaluateSettings",),
    "frames.shards": ("FrameShards",),
    "jobs.continue_video": ("continue_video",),
    "jobs.decode": ("decode_store",),
    "jobs.encode": ("encode_dataset",),
    "jobs.export": ("export_codes",),
    "jobs.import_codes": ("import_codes",),
    "jobs.ingest.ingest": ("ingest",),
    "jobs.ingest.settings": ("IngestSettings",),
    "jobs.sample": ("sample_clips",),
    "jobs.settings": ("DecodeSettings", "EncodeSettings", "ExportSettings", "ImportSettings", "SampleSettings"),
    "manifest.manifest": ("build_manifest", "read_manifest"),
    "manifest.settings": ("ManifestSettings",),
    "models.prior.config": ("PriorConfig", "PriorModelSettings"),
    "models.prior.model": ("Prior",),
    "models.vqvae.config": ("VQVAEConfig",),
    "models.vqvae.model": ("VQVAE",),
    "report.page": ("write_report",),
    "runs.read": ("load_prior", "load_vqvae"),
    "training.prior": ("train_prior",),
    "training.settings": ("PriorRunSettings", "PriorTraining", "VQVAERunSettings", "VQVAETraining"),
    "training.vqvae": ("train_vqvae",),
    "video.decode": ("read_video",),
    "video.write": ("write_video",),
    "video.settings": ("GeometrySettings",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "VQVAE",
    "CodeStore",
    "CodeWindows",
    "DecodeSettings",
    "EncodeSettings",
    "EvaluateSettings",
    "ExportSettings",
    "FrameShards",
    "GeometrySettings",
    "ImportSettings",
    "IngestSettings",
    "LVTError",
    "ManifestSettings",
    "Prior",
    "PriorConfig",
    "PriorModelSettings",
    "PriorRunSettings",
    "PriorTraining",
    "SampleSettings",
    "VQVAEConfig",
    "VQVAERunSettings",
    "VQVAETraining",
    "build_manifest",
    "compare",
    "continue_video",
    "decode_store",
    "encode_dataset",
    "evaluate",
    "export_codes",
    "import_codes",
    "ingest",
    "load_prior",
    "load_vqvae",
    "open_codes",
    "read_manifest",
    "read_video",
    "sample_clips",
    "train_prior",
    "train_vqvae",
    "verify_store",
    "write_report",
    "write_video",
]
__version__ = lvt_version()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

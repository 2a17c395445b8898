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

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvt_pipeline.provenance import lvt_version

if TYPE_CHECKING:  # every public name; at run time its module is loaded on first use
    from lvt_pipeline.codes.loading.windows import CodeWindows as CodeWindows
    from lvt_pipeline.codes.store import CodeStore as CodeStore
    from lvt_pipeline.codes.store import open_codes as open_codes
    from lvt_pipeline.codes.verify import verify_store as verify_store
    from lvt_pipeline.errors import LVTError as LVTError
    from lvt_pipeline.evaluation.compare import compare as compare
    from lvt_pipeline.evaluation.evaluate import evaluate as evaluate
    from lvt_pipeline.evaluation.settings import EvaluateSettings as EvaluateSettings
    from lvt_pipeline.frames.shards import FrameShards as FrameShards
    from lvt_pipeline.jobs.continue_video import continue_video as continue_video
    from lvt_pipeline.jobs.decode import decode_store as decode_store
    from lvt_pipeline.jobs.encode import encode_dataset as encode_dataset
    from lvt_pipeline.jobs.export import export_codes as export_codes
    from lvt_pipeline.jobs.import_codes import import_codes as import_codes
    from lvt_pipeline.jobs.ingest.ingest import ingest as ingest
    from lvt_pipeline.jobs.ingest.settings import IngestSettings as IngestSettings
    from lvt_pipeline.jobs.sample import sample_clips as sample_clips
    from lvt_pipeline.jobs.settings import DecodeSettings as DecodeSettings
    from lvt_pipeline.jobs.settings import EncodeSettings as EncodeSettings
    from lvt_pipeline.jobs.settings import ExportSettings as ExportSettings
    from lvt_pipeline.jobs.settings import ImportSettings as ImportSettings
    from lvt_pipeline.jobs.settings import SampleSettings as SampleSettings
    from lvt_pipeline.manifest.manifest import build_manifest as build_manifest
    from lvt_pipeline.manifest.manifest import read_manifest as read_manifest
    from lvt_pipeline.manifest.settings import ManifestSettings as ManifestSettings
    from lvt_pipeline.models.prior.config import PriorConfig as PriorConfig
    from lvt_pipeline.models.prior.config import PriorModelSettings as PriorModelSettings
    from lvt_pipeline.models.prior.model import Prior as Prior
    from lvt_pipeline.models.vqvae.config import VQVAEConfig as VQVAEConfig
    from lvt_pipeline.models.vqvae.model import VQVAE as VQVAE
    from lvt_pipeline.report.page import write_report as write_report
    from lvt_pipeline.runs.read import load_prior as load_prior
    from lvt_pipeline.runs.read import load_vqvae as load_vqvae
    from lvt_pipeline.training.prior import train_prior as train_prior
    from lvt_pipeline.training.settings import PriorRunSettings as PriorRunSettings
    from lvt_pipeline.training.settings import PriorTraining as PriorTraining
    from lvt_pipeline.training.settings import VQVAERunSettings as VQVAERunSettings
    from lvt_pipeline.training.settings import VQVAETraining as VQVAETraining
    from lvt_pipeline.training.vqvae import train_vqvae as train_vqvae
    from lvt_pipeline.video.decode import read_video as read_video
    from lvt_pipeline.video.settings import GeometrySettings as GeometrySettings
    from lvt_pipeline.video.write import write_video as write_video

__version__ = lvt_version()


@cache
def _modules() -> dict[str, str]:
    """The module of every public name, read from the imports above."""
    block = next(node for node in ast.parse(Path(__file__).read_text()).body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_modules())
    if name not in _modules():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_modules()[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_modules()})

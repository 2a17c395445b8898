"""Import checkpoints of the paper's released code: `.pth` files in, a finished run directory out.

What the files contain is `models.official`; this module opens them and writes the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvt_pipeline.errors import CheckpointError
from lvt_pipeline.models.arguments import shown
from lvt_pipeline.models.official import prior_from_official, vqvae_from_official
from lvt_pipeline.models.parameters import num_parameters
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.vqvae.model import VQVAE, tokenizer_fingerprint
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.provenance import Provenance, digest_file
from lvt_pipeline.runs.directory import save_model_run
from lvt_pipeline.runs.read import PRIOR_KIND, VQVAE_KIND
from lvt_pipeline.storage import open_regular
from lvt_pipeline.training.prior_settings import ResolvedPriorSettings
from lvt_pipeline.training.settings import PriorTraining, VQVAERunSettings

STAGE = "import-official"
VERSION = 1
FILE_NAME = "model_final.pth"  # what the released code calls the file inside netE, netG and netC


def import_vqvae(encoder: Path, decoder: Path, codebook: Path, out: Path, *, overwrite: bool = False) -> Provenance:
    """Make a VQ-VAE run of the three released files.

    Args:
        encoder, decoder, codebook: the files, or the folders netE, netG and netC that hold `model_final.pth`.

    Raises:
        CheckpointError: a file cannot be read, or a tensor is missing, unknown or of the wrong shape.
        ArtefactError: `out` holds a run already.
    """
    require_output_folder(out, STAGE, (encoder, decoder, codebook))
    files = {"encoder": _file(encoder), "decoder": _file(decoder), "codebook": _file(codebook)}
    states = {role: read_official(path) for role, path in files.items()}
    config, state = vqvae_from_official(**states)
    model = VQVAE(config)
    model.load_state_dict(state)
    counts = {"parameters": num_parameters(model), "tokenizer": tokenizer_fingerprint(model)}
    return save_model_run(
        out,
        VQVAE_KIND,
        model,
        VQVAERunSettings(model=config),
        stage=STAGE,
        version=VERSION,
        counts=counts,
        inputs={role: digest_file(path) for role, path in files.items()},
        overwrite=overwrite,
    )


def import_prior(
    weights: Path,
    out: Path,
    *,
    grid: tuple[int, int] | None = None,
    frames: int | None = None,
    subscale: tuple[int, int, int] | None = None,
    overwrite: bool = False,
) -> Provenance:
    """Make a prior run of a released file. Facts that its shapes do not show come from `grid`, `frames` and `subscale`.

    Raises:
        CheckpointError: the file cannot be read, or a tensor is missing, unknown or of the wrong shape.
        ArtefactError: `out` holds a run already.
    """
    require_output_folder(out, STAGE, (weights,))
    path = _file(weights)
    config, state = prior_from_official(read_official(path), grid=grid, frames=frames, subscale=subscale)
    model = Prior(config)
    model.load_state_dict(state)
    return save_model_run(
        out,
        PRIOR_KIND,
        model,
        ResolvedPriorSettings(model=config, training=PriorTraining()),
        stage=STAGE,
        version=VERSION,
        counts={"parameters": num_parameters(model)},
        inputs={"weights": digest_file(path)},
        overwrite=overwrite,
    )


def read_official(path: Path) -> dict[str, Tensor]:
    """The state dict in a released file, `{"model": state dict, "iteration": n}` or the state dict itself.

    Raises:
        CheckpointError: the file is missing, is not a torch file, or holds something else.
    """
    advice = "give a .pth file of the released code"
    try:
        with open_regular(path) as file:
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; {advice}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or 'it is damaged'}); {advice}") from error
    except (Exception, MemoryError) as error:  # a damaged pickle or archive can raise anything
        raise CheckpointError(
            f"{path} cannot be read as weights: it is not a torch file, is damaged or holds more than tensors; {advice}"
        ) from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no state dict; {advice}")
    for name, value in state.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path} holds a tensor without a name ({shown(name)}); {advice}")
        reason = _unusable(value)
        if reason:
            raise CheckpointError(f"{path}: the tensor {shown(name)} {reason}; {advice}")
    return dict(state)


def _unusable(value: Tensor) -> str:
    """The problem of a tensor of a file, "" for none."""
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        return "is not a plain tensor"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"claims the shape {tuple(value.shape)} but holds less"  # expanded: copying it could exhaust the memory
    if value.is_complex():
        return "holds complex numbers"
    if value.is_floating_point() and not bool(value.to(torch.float32).isfinite().all()):
        return "holds numbers that are not finite in float32"
    return ""


def _file(path: Path) -> Path:
    return path / FILE_NAME if path.is_dir() else path

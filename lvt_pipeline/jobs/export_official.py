"""Write a trained run as checkpoints of the paper's released code: a run directory in, `.pth` files out.

`netE|netG|netC/model_final.pth` for a VQ-VAE (encoder, decoder, codebooks), `netG/model_final.pth` for a prior; each
holds {"model": state dict, "iteration": steps}. `lvt import-official` reads them back. What the files contain is
`models.official`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from lvt_pipeline.job import Job
from lvt_pipeline.jobs.import_official import FILE_NAME
from lvt_pipeline.models.official import prior_to_official, vqvae_to_official
from lvt_pipeline.outputs import require_output_folder
from lvt_pipeline.provenance import Provenance
from lvt_pipeline.runs.read import VQVAE_KIND, load_prior, load_vqvae, read_run, run_fingerprint
from lvt_pipeline.storage import atomic_writer

STAGE = "export-official"
JOB = Job(stage=STAGE, version=1, kind="official-checkpoints")
PARTS = ("netE", "netG", "netC")


def export_official(run: Path, out: Path, *, overwrite: bool = False) -> Provenance:
    """Write the weights of a VQ-VAE or prior run, those that later stages use, in the released layout.

    Args:
        run: run directory.
        out: folder to create or replace.

    Raises:
        CheckpointError: there is no such run, or the released code has no such model.
        ArtefactError: `out` holds something else.
    """
    require_output_folder(out, STAGE, (run,))
    inputs = {"run": run_fingerprint(run)}
    facts = read_run(run)
    states = _vqvae_states(run) if facts["kind"] == VQVAE_KIND else _prior_states(run)
    with JOB.open_folder(out, {}, inputs, overwrite=overwrite) as work:
        if work.is_current:
            return work.record
        work.begin()
        for name in PARTS:
            if name not in states:
                shutil.rmtree(out / name, ignore_errors=True)  # of a run of the other kind
        for name, state in states.items():
            (out / name).mkdir(exist_ok=True)
            with atomic_writer(out / name / FILE_NAME) as file:
                torch.save({"model": state, "iteration": int(facts.get("step", 0))}, file)
        outputs = {f"{name}/{FILE_NAME}": (out / name / FILE_NAME).stat().st_size for name in states}
        tensors = sum(len(state) for state in states.values())
        return work.finish(inputs["run"], outputs, {"files": len(states), "tensors": tensors})


def _vqvae_states(run: Path) -> dict[str, dict[str, Tensor]]:
    model = load_vqvae(run, device="cpu")
    return dict(zip(PARTS, vqvae_to_official(model.config, model.state_dict()), strict=True))


def _prior_states(run: Path) -> dict[str, dict[str, Tensor]]:
    model = load_prior(run, device="cpu")
    return {"netG": prior_to_official(model.config, model.state_dict())}

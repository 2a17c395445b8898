"""Released checkpoint files become run directories that load; everything else is refused in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lvt_pipeline import load_prior, load_vqvae
from lvt_pipeline.models.official import prior_to_official, vqvae_to_official
from lvt_pipeline.models.prior.config import PriorConfig
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE
from lvt_pipeline.provenance import read_record
from lvt_pipeline.training.dry_run import count_by_part

Lvt = Callable[..., tuple[int, str, str]]
TOKENIZER = VQVAEConfig(num_codebooks=2, codebook_size=16, code_width=16, stem_width=8, residual_width=4)
TRANSFORMER = PriorConfig(
    frames=4,
    grid=(4, 4),
    num_codebooks=2,
    codebook_size=16,
    subscale=(4, 1, 1),
    width=16,
    head_width=8,
    num_heads=2,
    embedding_width=8,
    encoder_layers=1,
    decoder_layers=1,
)


def save_official_vqvae(folder: Path) -> VQVAE:
    torch.manual_seed(0)
    model = VQVAE(TOKENIZER).eval()
    parts = vqvae_to_official(TOKENIZER, model.state_dict())
    for name, state in zip(("netE", "netG", "netC"), parts, strict=True):
        (folder / name).mkdir(parents=True)
        torch.save({"model": state, "iteration": 7}, folder / name / "model_final.pth")
    return model


def test_released_vqvae_files_become_a_run_that_encodes_the_same(tmp_path: Path, lvt: Lvt) -> None:
    model = save_official_vqvae(tmp_path)
    parts = ["--encoder", tmp_path / "netE", "--decoder", tmp_path / "netG", "--codebook", tmp_path / "netC"]
    code, out, err = lvt("import-official", "vqvae", *parts, "-o", tmp_path / "run")
    assert code == 0, err
    trained = sum(parameter.numel() for parameter in model.parameters())
    assert f"{trained + 16 * 16:,} parameters" in out  # the two tables of 16 vectors together are 16 x 16
    assert read_record(tmp_path / "run").counts["parameters"] == sum(count_by_part(model).values())  # as when trained
    loaded = load_vqvae(tmp_path / "run", device="cpu")
    frames = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    assert torch.equal(loaded.encode(frames), model.encode(frames))
    assert torch.equal(loaded.decode(model.encode(frames)), model.decode(model.encode(frames)))


def test_released_prior_file_becomes_a_run_with_the_same_logits(tmp_path: Path, lvt: Lvt) -> None:
    torch.manual_seed(0)
    model = Prior(TRANSFORMER).eval()
    torch.save({"model": prior_to_official(TRANSFORMER, model.state_dict()), "iteration": 7}, tmp_path / "x.pth")
    options = ["--weights", tmp_path / "x.pth", "--grid", "4,4", "--subscale", "4,1,1", "--frames", 4]
    code, _, err = lvt("import-official", "prior", *options, "-o", tmp_path / "run")
    assert code == 0, err
    codes = torch.randint(0, 16, (1, 4, 4, 4, 2))
    assert torch.equal(load_prior(tmp_path / "run", device="cpu").logits(codes), model.logits(codes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a torch file", "cannot be read as weights"),
        ({"model": [1, 2]}, "holds no state dict"),
        ({"model": {"strange.weight": torch.zeros(1)}}, r"encoder\.conv\.weight"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, lvt: Lvt, content: object, message: str) -> None:
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    code, _, err = lvt("import-official", "prior", "--weights", path, "-o", tmp_path / "run")
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert re.search(message, err), err
    assert not (tmp_path / "run").exists()


def test_wrong_triple_is_a_usage_error(tmp_path: Path, lvt: Lvt) -> None:
    code, _, err = lvt("import-official", "prior", "--weights", "x", "--subscale", "4,2", "-o", tmp_path / "run")
    assert code == 2
    assert "3 whole numbers" in err

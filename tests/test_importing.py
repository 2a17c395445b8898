"""Released checkpoint files become run directories that load; everything else is refused in one line."""

from __future__ import annotations

import dataclasses
import os
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
from lvt_pipeline.runs.directory import save_model_run
from lvt_pipeline.runs.read import PRIOR_KIND
from lvt_pipeline.training.dry_run import count_by_part
from lvt_pipeline.training.prior_settings import ResolvedPriorSettings
from lvt_pipeline.training.settings import PriorTraining

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
        (b"PK\x03\x04" + bytes(300), "cannot be read as weights"),
        (b"\x80\x02" + b"(" * 5000, "cannot be read as weights"),
        (b"", "cannot be read as weights"),
        ([torch.zeros(1)], "holds no state dict"),
        ({"model": {3: torch.zeros(1)}}, r"holds a tensor without a name \(3\)"),
        ({"model": {"x": torch.zeros(1).expand(10**6, 10**6)}}, r"'x' claims the shape \(1000000, 1000000\) but"),
        ({"model": {"x": torch.full((2,), float("nan"))}}, "'x' holds numbers that are not finite"),
        ({"model": {"x": torch.full((2,), 1e300, dtype=torch.float64)}}, "'x' holds numbers that are not finite"),
        ({"model": {"x": torch.zeros(2, dtype=torch.complex64)}}, "'x' holds complex numbers"),
        ({"model": {"x": torch.zeros(2, 2).to_sparse()}}, "'x' is not a plain tensor"),
        ({"model": {"encoder.conv.weight": torch.zeros(0, 4, 1, 1, 1)}}, "needed 5 axes, none of them empty"),
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
    assert "3 numbers" in err


def test_banks_that_make_huge_attention_blocks_are_refused_before_memory_is_taken(tmp_path: Path, lvt: Lvt) -> None:
    state = prior_to_official(TRANSFORMER, Prior(TRANSFORMER).state_dict())
    for key in [key for key in state if key.endswith("_bank")]:
        state[key] = torch.zeros(2, 199)
    torch.save({"model": state}, tmp_path / "x.pth")
    code, _, err = lvt("import-official", "prior", "--weights", tmp_path / "x.pth", "-o", tmp_path / "run")
    assert code == 1
    assert "attention blocks of 1000000 positions; at most 16384 are supported" in err


def test_a_tensor_name_with_line_breaks_stays_on_one_line(tmp_path: Path, lvt: Lvt) -> None:
    state = prior_to_official(TRANSFORMER, Prior(TRANSFORMER).state_dict())
    torch.save({**state, "two\nlines": torch.zeros(1)}, tmp_path / "x.pth")
    code, _, err = lvt("import-official", "prior", "--weights", tmp_path / "x.pth", "-o", tmp_path / "run")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "has a tensor 'two\\nlines' that the released model does not have" in err


def test_a_pipe_is_refused_without_waiting(tmp_path: Path, lvt: Lvt) -> None:
    os.mkfifo(tmp_path / "pipe")
    code, _, err = lvt("import-official", "prior", "--weights", tmp_path / "pipe", "-o", tmp_path / "run")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "not a regular file" in err


# Export --------------------------------------------------------------------------------------------------------------


def weights_in(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Name of each file and its state dict."""
    files = sorted(folder.glob("*/model_final.pth"))
    return {file.parent.name: torch.load(file, weights_only=True)["model"] for file in files}


def assert_same_files(first: Path, second: Path) -> None:
    one, other = weights_in(first), weights_in(second)
    assert one.keys() == other.keys()
    for name, state in one.items():
        assert state.keys() == other[name].keys()
        assert all(torch.equal(value, other[name][key]) for key, value in state.items())


def test_an_imported_vqvae_is_exported_as_the_files_it_came_from(tmp_path: Path, lvt: Lvt) -> None:
    official = tmp_path / "official"
    save_official_vqvae(official)
    parts = ["--encoder", official / "netE", "--decoder", official / "netG", "--codebook", official / "netC"]
    assert lvt("import-official", "vqvae", *parts, "-o", tmp_path / "run")[0] == 0
    code, out, err = lvt("export-official", tmp_path / "run", "-o", tmp_path / "exported")
    assert code == 0, err
    assert out.strip().endswith(f"tensors -> {tmp_path / 'exported'}")
    assert sorted(weights_in(tmp_path / "exported")) == ["netC", "netE", "netG"]
    assert_same_files(official, tmp_path / "exported")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "exported").rglob("*")}
    assert lvt("export-official", tmp_path / "run", "-o", tmp_path / "exported")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "exported").rglob("*")} == before  # up to date


def test_an_imported_prior_is_exported_as_the_file_it_came_from(tmp_path: Path, lvt: Lvt) -> None:
    model = Prior(TRANSFORMER)
    state = prior_to_official(TRANSFORMER, model.state_dict())
    state["decoder.conv.conv.weight"][:, :, -1, -1, 1:] = 0  # taps that the released code never uses
    (tmp_path / "official" / "netG").mkdir(parents=True)
    torch.save({"model": state, "iteration": 7}, tmp_path / "official" / "netG" / "model_final.pth")
    options = ["--weights", tmp_path / "official" / "netG", "--grid", "4,4", "--subscale", "4,1,1", "--frames", 4]
    assert lvt("import-official", "prior", *options, "-o", tmp_path / "run")[0] == 0
    assert lvt("export-official", tmp_path / "run", "-o", tmp_path / "exported")[0] == 0
    assert_same_files(tmp_path / "official", tmp_path / "exported")


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path: Path, lvt: Lvt) -> None:
    code, _, err = lvt("export-official", tmp_path / "nothing", "-o", tmp_path / "exported")
    assert (code, len(err.splitlines())) == (1, 1)
    model = Prior(dataclasses.replace(TRANSFORMER, encoder_position=True))
    settings = ResolvedPriorSettings(model=model.config, training=PriorTraining())
    save_model_run(tmp_path / "run", PRIOR_KIND, model, settings, stage="train-prior", version=1, counts={})
    code, _, err = lvt("export-official", tmp_path / "run", "-o", tmp_path / "exported")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "the released prior has no encoder_position=True; only models without can be exported" in err
    assert not (tmp_path / "exported").exists()

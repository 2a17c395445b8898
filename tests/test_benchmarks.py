"""The benchmarks that need what a test machine lacks still run here, at toy sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, trained_prior
from benchmarks.plain_tokenizer import PlainTokenizer
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE
from lvt_pipeline.training.vqvae_task import vqvae_loss


def test_gpu_benchmark_runs_on_a_cpu_and_its_checks_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_prior, "SHALLOW_STEPS", 10)
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    table = gpu.measure(torch.device("cpu"), gpu.DRY, tmp_path / "new" / "gpu.json", results)
    found = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert found["failed"] == found["skipped"] == []
    values = {row["what"]: row["value"] for row in found["rows"]}
    for name, value in values.items():
        if name.startswith("codes") and "bfloat16" not in name:
            assert value == 1
        if "steps/s" in name or name.startswith("sampling"):
            assert value > 0
    assert values["codes that bfloat16 changes, given those before"] < 0.1
    assert values["largest difference of weights after resuming"] == 0
    assert results.read_text() == f"# Results\n\n{table}"
    assert found["date"] in table


def test_a_part_that_fails_is_named_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_prior, "SHALLOW_STEPS", 1)

    def broken(*_: object) -> list[gpu.Row]:
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(gpu, "sampling", broken)
    table = gpu.measure(torch.device("cpu"), gpu.DRY, tmp_path / "gpu.json", None)
    assert json.loads((tmp_path / "gpu.json").read_text())["failed"] == ["broken: RuntimeError: no such kernel"]
    assert "- failed: broken: RuntimeError: no such kernel" in table
    assert "training step" in table


def test_the_tokenizer_written_plainly_has_the_losses_of_the_fast_one_step_by_step() -> None:
    torch.manual_seed(0)
    config = VQVAEConfig(codebook_size=16, num_codebooks=2, code_width=16, stem_width=8, residual_width=8)
    ours = VQVAE(config).train()
    plain = PlainTokenizer(ours.state_dict(), config.ema_decay, config.ema_epsilon, config.commitment_weight)
    frames = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    losses: dict[str, list[float]] = {"ours": [], "plain": []}
    for name, model in (("ours", ours), ("plain", plain)):
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, betas=(0.9, 0.9))
        for _ in range(3):
            loss = plain.loss(frames) if name == "plain" else vqvae_loss(ours, {"frames": frames}).loss
            assert loss is not None
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[name].append(float(loss.detach()))
    assert losses["plain"] == pytest.approx(losses["ours"], rel=1e-4)

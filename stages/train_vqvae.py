"""lvt train-vqvae: train the frame tokenizer. Reads frames/; writes a run directory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import click

from lvt_pipeline.progress import count_of
from lvt_pipeline.settings import setting
from lvt_pipeline.storage import Place
from lvt_pipeline.training.settings import VQVAERunSettings
from stages.command import stage_command
from stages.console import Console, Result
from stages.training import DEFAULT_PRESET, TrainingOptions, dry_run_line


@dataclass(frozen=True, kw_only=True)
class VQVAEOptions(TrainingOptions):
    """The options of this training."""

    preset: str | None = setting(
        None, "Preset: settings that come with lvt (lvt_pipeline/presets/vqvae).", unset=DEFAULT_PRESET
    )


@stage_command("train-vqvae", settings_home=("lvt_pipeline.training.settings", "VQVAERunSettings"), lists_settings=True)
def command(
    *,
    frames: Place | None = setting(None, "Frame folder from `lvt ingest`. Not needed with --dry-run."),
    freeze: Literal["encoder"] | None = setting(
        None,
        "With --init-from: keep encoder and codebooks and train the decoder alone, so that all codes stay valid. Same "
        "as --set training.freeze=encoder.",
    ),
    options: VQVAEOptions,
) -> Result:
    """Train the frame VQ-VAE (paper, section 3.1). Run the same command again to resume.

    Example: lvt train-vqvae --frames frames -o runs/vqvae --preset bair-vqvae-nc4
    """
    from lvt_pipeline.training.vqvae import dry_run_vqvae, train_vqvae

    settings = options.load(VQVAERunSettings, "vqvae")
    if freeze is not None:
        settings = replace(settings, training=replace(settings.training, freeze=freeze))
    if options.dry_run:
        facts = dry_run_vqvae(settings, frames=frames, device=options.device)
        return Result(facts, dry_run_line(facts))
    if frames is None or options.out is None:
        raise click.UsageError("--frames and -o/--out are required, unless --dry-run is given")
    record = train_vqvae(
        frames,
        options.out,
        settings,
        init_from=options.init_from,
        device=options.device,
        max_seconds=options.max_seconds,
        overwrite=options.overwrite,
        allow_config_change=options.allow_config_change,
        track=options.track,
        progress=Console(),
    )
    name = f"tokenizer {record.counts['tokenizer'][:12]}"
    return Result.of(record, f"{name} after {count_of(record.counts['steps'], 'step')}", options.out)

"""lvt train-prior: train the video transformer. Reads a code store and nothing else; writes a run directory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import click

from lvt_pipeline.progress import count_of
from lvt_pipeline.settings import setting
from lvt_pipeline.storage import Place
from lvt_pipeline.training.settings import PriorRunSettings
from stages.command import stage_command
from stages.console import Console, Result
from stages.options import AT, CACHE, Cache
from stages.training import DEFAULT_PRESET, TrainingOptions, dry_run_line


@dataclass(frozen=True, kw_only=True)
class PriorOptions(TrainingOptions):
    """The options of this training."""

    preset: str | None = setting(
        None, "Preset: settings that come with lvt (lvt_pipeline/presets/prior).", unset=DEFAULT_PRESET
    )


@stage_command("train-prior", settings_home=("lvt_pipeline.training.settings", "PriorRunSettings"), lists_settings=True)
def command(
    *,
    codes: tuple[Place, ...] = setting(
        (), "Code store from `lvt encode-dataset`; several are mixed. Not needed with --dry-run."
    ),
    mix: tuple[float, ...] | None = setting(
        None,
        "Weights of several code stores, such as 0.7,0.3. Same as --set training.mix=[A,B].",
        above=0,
        example="A,B,...",
    ),
    cache: Cache = CACHE,
    at: int | None = AT,
    options: PriorOptions,
) -> Result:
    """Train the latent video generator (paper, section 3.2). It opens no video, no pixels and no tokenizer.

    Example: lvt train-prior --codes data.zarr -o runs/prior --preset single-frame
    """
    from lvt_pipeline.training.prior import dry_run_prior, train_prior

    settings = options.load(PriorRunSettings, "prior")
    if mix is not None:
        settings = replace(settings, training=replace(settings.training, mix=mix))
    if options.dry_run:
        facts = dry_run_prior(settings, codes=codes or None, generation=at, device=options.device)
        return Result(facts, dry_run_line(facts))
    if not codes or options.out is None:
        raise click.UsageError("--codes and -o/--out are required, unless --dry-run is given")
    record = train_prior(
        codes,
        options.out,
        settings,
        generation=at,
        init_from=options.init_from,
        cache=cache,
        device=options.device,
        max_seconds=options.max_seconds,
        overwrite=options.overwrite,
        allow_config_change=options.allow_config_change,
        track=options.track,
        progress=Console(),
    )
    bits = record.counts.get("val_bits_per_dim")
    quality = f", {bits:.3f} bits/dim on val" if bits is not None else ""
    return Result.of(record, f"prior after {count_of(record.counts['steps'], 'step')}{quality}", options.out)

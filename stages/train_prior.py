"""lvt train-prior: train the video transformer. Reads a code store and nothing else; writes a run directory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from lvt_pipeline.progress import count_of
from lvt_pipeline.storage import Place
from lvt_pipeline.training.settings import PriorRunSettings
from stages.console import Console, echo_facts, echo_record
from stages.options import at_option, stage_command
from stages.training import TrainingOptions, dry_run_line, training_options
from stages.values import STORE, Real, ValueList

if TYPE_CHECKING:
    from lvt_pipeline.codes.loading.cache import Cache


@stage_command("train-prior", settings_home=("lvt_pipeline.training.settings", "PriorRunSettings"), lists_settings=True)
@click.option(
    "--codes",
    type=STORE,
    multiple=True,
    help="Code store from `lvt encode-dataset`; several are mixed. Not needed with --dry-run.",
)
@click.option(
    "--mix",
    type=ValueList(Real(0, min_open=True)),
    metavar="A,B,...",
    help="Weights of several code stores, such as 0.7,0.3. Same as --set training.mix=[A,B].",
)
@click.option(
    "--cache",
    type=click.Choice(["auto", "ram", "mmap", "stream"]),
    default="auto",
    show_default=True,
    help="Place of the codes while training: memory, a memory-mapped file next to the store, or the store itself, "
    "read shard by shard.",
)
@at_option
@training_options(PriorRunSettings, "prior")
def command(
    codes: tuple[Place, ...],
    mix: tuple[float, ...] | None,
    cache: Cache,
    at: int | None,
    options: TrainingOptions[PriorRunSettings],
    as_json: bool,
) -> None:
    """Train the latent video generator (paper, section 3.2). It opens no video, no pixels and no tokenizer.

    Example: lvt train-prior --codes data.zarr -o runs/prior --preset single-frame
    """
    from lvt_pipeline.training.prior import dry_run_prior, train_prior

    settings = options.settings
    if mix is not None:
        settings = replace(settings, training=replace(settings.training, mix=mix))
    if options.dry_run:
        facts = dry_run_prior(settings, codes=codes or None, generation=at, device=options.device)
        echo_facts(facts, as_json, dry_run_line(facts))
        return
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
    echo_record(record, as_json, f"prior after {count_of(record.counts['steps'], 'step')}{quality}", options.out)

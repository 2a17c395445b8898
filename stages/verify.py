"""lvt verify: check every byte of a code store, and whether its codes are those of the frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stages.console import PATH, Console, at_option, clock, device_option, echo_facts, json_option


@click.command("verify")
@click.argument("store", type=PATH)
@click.option(
    "--decode", "num_clips", type=click.IntRange(min=1), help="Encode and decode this many random clips again."
)
@click.option("--vqvae", type=PATH, help="Run directory of the tokenizer that made the codes; for --decode.")
@click.option("--frames", type=PATH, help="Frame shards that were encoded; for --decode.")
@click.option(
    "--repair",
    is_flag=True,
    help="First rebuild damaged metadata from the other files of the store, whichever command made it.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which clips are decoded.")
@at_option
@device_option
@json_option
def command(
    store: Path,
    num_clips: int | None,
    vqvae: Path | None,
    frames: Path | None,
    repair: bool,
    seed: int,
    at: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Compare every file of a code store with its checksum, its clip tables with the array, and its codes with K.

    Prints one line per problem, with the clips it touches; exit code 1 when there is one. --repair restores metadata;
    damaged codes are made again by the command that made the store (`lvt encode-dataset --repair`).

    Example: lvt verify data.zarr --decode 8 --vqvae runs/vqvae --frames frames
    """
    import time

    from lvt_pipeline.codes.repair import repair_store
    from lvt_pipeline.codes.verify import verify_store
    from lvt_pipeline.errors import StoreError

    if num_clips is not None and (vqvae is None or frames is None):
        raise click.UsageError("--decode needs --vqvae and --frames")
    started = time.monotonic()
    repaired = repair_store(store) if repair else []
    report = verify_store(store, at, progress=Console())
    problems = list(report.problems)
    facts: dict[str, Any] = {**report.to_json(), "repaired": repaired}
    told = ""
    if num_clips is not None and vqvae is not None and frames is not None and not problems:
        from lvt_pipeline.evaluation.recheck_codes import verify_codes

        decoded = verify_codes(
            store, frames, vqvae, num_clips, seed=seed, generation=at, device=device, progress=Console()
        )
        problems += decoded.problems
        facts["decoded"] = decoded.to_json()
        told = _told(decoded)
    facts["problems"] = [
        {"file": problem.file, "message": problem.message, "clips": problem.clips} for problem in problems
    ]
    facts["seconds"] = round(time.monotonic() - started, 3)
    read = f"{report.files} files, {report.bytes / 2**20:,.1f} MiB, {report.clips} clips"
    if not problems:
        lines = [
            *(f"repaired {name}" for name in repaired),
            *report.notes,
            f"{store} is sound: {read}{told}, in {clock(facts['seconds'])}",
        ]
        echo_facts(facts, as_json, "\n".join(lines))
        return
    lines = [*(problem.line() for problem in problems), *report.notes]
    echo_facts(facts, as_json, "\n".join(lines))
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    touched = len({clip for problem in problems for clip in problem.clips})
    raise StoreError(f"{store} has {count} touching {touched} clips ({read} checked)")


def _told(decoded: Any) -> str:
    parts = [f"{len(decoded.checked)} clips decoded again"]
    if decoded.same_codes is not None:
        parts.append(f"{decoded.same_codes:.4%} of their codes equal")
    if decoded.psnr is not None:
        parts.append(f"{decoded.psnr:.2f} dB PSNR")
    if decoded.skipped:
        parts.append(f"{len(decoded.skipped)} skipped because their frames have changed")
    return "; " + ", ".join(parts)

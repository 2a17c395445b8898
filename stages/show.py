"""lvt show: show clips. Reads frames or a code store; writes one picture or film."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.progress import count_of
from lvt_pipeline.report.settings import ShowSettings
from lvt_pipeline.settings import setting
from lvt_pipeline.storage import Place
from stages.command import stage_command
from stages.console import Result
from stages.options import AT, DEVICE


@stage_command("show")
def command(
    source: Place,
    *,
    out: Path = setting(Path("show.png"), "Picture to write: .png is a contact sheet; .mp4 and .gif play."),
    settings: ShowSettings,
    vqvae: Path | None = setting(None, "VQ-VAE run. Codes are shown as the pictures it decodes.", unset="colours"),
    at: int | None = AT,
    device: str = DEVICE,
) -> Result:
    """Show clips of SOURCE: a frame folder, or a code store of clips or samples.

    Example: lvt show frames -o look.png

    Example: lvt show samples.zarr --vqvae runs/vqvae --num-clips 16 -o samples.mp4
    """
    from lvt_pipeline.report.contact_sheet import show

    shown = show(source, out, settings, vqvae=vqvae, generation=at, device=device)
    line = f"{count_of(len(shown), 'clip')} of {source} -> {out}"
    return Result({"out": str(out), "clips": shown}, line)

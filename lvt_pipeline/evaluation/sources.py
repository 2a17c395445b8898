"""What an evaluation reads: stores, runs and networks, opened once and checked to belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import ConfigError, LVTError
from lvt_pipeline.evaluation.distances.fvd import FeatureNetwork
from lvt_pipeline.evaluation.distances.networks import PerceptualDistance, load_scripted
from lvt_pipeline.evaluation.pixels import Pixels
from lvt_pipeline.evaluation.samples import original_of, require_samples_of
from lvt_pipeline.evaluation.settings import EvaluateSettings
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.runs.compatibility import require_fitting_codes, require_fitting_length, require_own_tokenizer
from lvt_pipeline.runs.read import load_prior, load_vqvae, run_fingerprint
from lvt_pipeline.runs.trained_clips import find_trained_clips
from lvt_pipeline.storage import Place

if TYPE_CHECKING:
    from torch import nn

    from lvt_pipeline.models.prior.model import Prior


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Paths of everything that an evaluation may read; only the codes are needed.

    Attributes:
        codes: code store.
        generation: of `codes`; the current one by default.
        prior: adds bits per code, compared with the baselines.
        frames, vqvae: together they add the reconstruction.
        samples: store made by `lvt sample` from these codes; with `frames` and `vqvae` also measured in pixels.
        i3d: TorchScript network of FVD; with frames and a VQ-VAE run it adds that of the samples, or, without
            samples, that of the reconstruction alone.
        features: any TorchScript network of videos in its place; its distances are named after the file.
        lpips: TorchScript network of LPIPS; adds it to every error in pixels.
    """

    codes: Place
    generation: int | None = None
    prior: Path | None = None
    frames: Place | None = None
    vqvae: Path | None = None
    samples: Place | None = None
    i3d: Path | None = None
    features: Path | None = None
    lpips: Path | None = None

    @property
    def paths(self) -> tuple[Place | None, ...]:
        """Everything that is read, which an output must not replace."""
        return self.codes, self.prior, self.frames, self.vqvae, self.samples, self.i3d, self.features, self.lpips


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The sources, opened.

    Attributes:
        inputs: fingerprint of each, by role.
        pixels: when both the frames and the VQ-VAE run were given.
    """

    sources: Sources
    inputs: dict[str, str]
    store: CodeStore
    prior: Prior | None = None
    pixels: Pixels | None = None
    sampled: CodeStore | None = None
    features: FeatureNetwork | None = None
    lpips: PerceptualDistance | None = None


def open_sources(sources: Sources, settings: EvaluateSettings, device: str) -> Opened:
    """Open everything that was given.

    Raises:
        MismatchError: the artefacts do not belong together.
        LVTError: a network holds numbers that are not finite.
    """
    store = open_codes(sources.codes, sources.generation)
    inputs = {"codes": store.fingerprint}
    opened = Opened(sources=sources, inputs=inputs, store=store)
    if sources.prior is not None:
        prior = load_prior(sources.prior, device=device)
        _require_finite(prior, sources.prior)
        require_fitting_codes(store, sources.prior, prior)
        require_fitting_length(sources.prior, prior, settings.frames)
        inputs["prior"] = run_fingerprint(sources.prior)
        opened = replace(opened, prior=prior)
    opened = replace(opened, pixels=_open_pixels(opened, device))
    if sources.samples is not None:
        sampled = open_codes(sources.samples)
        require_samples_of(store, sampled, (sources.prior, inputs["prior"]) if sources.prior is not None else None)
        inputs["samples"] = sampled.fingerprint
        opened = replace(opened, sampled=sampled)
    path = sources.i3d or sources.features
    if path is not None:
        if sources.i3d is not None and sources.features is not None:
            raise ConfigError(f"give one network of videos: the I3D {sources.i3d}, or the features {sources.features}")
        features = FeatureNetwork(load_scripted(path, device), settings.resize, is_i3d=sources.i3d is not None)
        inputs["i3d" if features.is_i3d else "features"] = features.network.sha256
        opened = replace(opened, features=features)
    if sources.lpips is not None:
        lpips = PerceptualDistance(load_scripted(sources.lpips, device))
        inputs["lpips"] = lpips.network.sha256
        opened = replace(opened, lpips=lpips)
    return opened


def _open_pixels(opened: Opened, device: str) -> Pixels | None:
    """Frames and tokenizer; None unless both were given. Adds the fingerprints of those that were to the inputs."""
    sources, shards, tokenizer = opened.sources, None, None
    if sources.frames is not None:
        shards = FrameShards(sources.frames)
        opened.inputs["frames"] = shards.fingerprint
    if sources.vqvae is not None:
        tokenizer = load_vqvae(sources.vqvae, device=device)
        _require_finite(tokenizer, sources.vqvae)
        require_own_tokenizer(opened.store, sources.vqvae, tokenizer)
        opened.inputs["vqvae"] = run_fingerprint(sources.vqvae)
    return None if shards is None or tokenizer is None else Pixels(opened.store, shards, tokenizer)


def _require_finite(model: nn.Module, run: Path) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise LVTError(f"{run} holds weights that are not finite numbers: its training diverged; give another run")


def trained_clips(opened: Opened, clips: Sequence[CodeClip]) -> list[str]:
    """Ids of training clips among the evaluated ones and those that samples continue."""
    continued = [] if opened.sampled is None else [original_of(sample, opened.store) for sample in opened.sampled.clips]
    looked_at = {clip.id: clip for clip in (*clips, *continued) if clip is not None}
    return [clip.id for clip in find_trained_clips(list(looked_at.values()), opened.sources.prior)]


def require_held_out(opened: Opened, clips: Sequence[CodeClip], trained: Sequence[str]) -> None:
    """Refuse to evaluate on training clips.

    Raises:
        LVTError: there are some.
    """
    if not trained:
        return
    prior = opened.sources.prior
    where = "of these clips" if trained[0] in {clip.id for clip in clips} else "of the clips that the samples continue"
    are = "are in the train split" + (f", or {prior} was trained on their content" if prior is not None else "")
    raise LVTError(
        f"{len(trained)} {where} of {opened.store.path} {are} ({', '.join(trained[:3])}), so the scores would not show "
        "what the model has learned about other videos; give a store with test clips (lvt manifest build --test-share "
        "makes a split), or evaluate them anyway with --allow-training-clips"
    )

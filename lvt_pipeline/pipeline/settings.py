"""The options of `lvt run` that change no result. Nothing here loads torch, so that help texts stay quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lvt_pipeline.settings import Settings, setting

Network = Literal["vqvae", "prior"]


@dataclass(frozen=True, kw_only=True)
class RunOptions(Settings):
    """How trained networks are treated, and how trainings are carried out."""

    retrain: Literal["vqvae", "prior", "all"] | None = setting(
        None, "Network to train again if its settings or data have changed; the old run is kept."
    )
    refine: Network | None = setting(
        None,
        "Network to train further if its settings or data have changed: a new run that starts from its weights. The "
        "old run is used until the new one is finished, and kept. A refined tokenizer makes other codes, so the prior "
        "is then trained again.",
    )
    max_seconds: float | None = setting(None, "Time after which to save and stop (exit code 75).", at_least=0)
    cache: Literal["auto", "ram", "mmap", "stream"] = setting(
        "auto", "Place of the codes during training: in memory, in a mapped file, or read shard by shard."
    )
    track: tuple[Literal["tensorboard", "wandb"], ...] = setting(
        (), "Tracker that shows the training metrics too; may be repeated."
    )

    @property
    def retrained(self) -> frozenset[str]:
        """The networks to train again."""
        return frozenset(("vqvae", "prior") if self.retrain == "all" else (self.retrain,) if self.retrain else ())

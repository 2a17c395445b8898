"""The options that several commands have: the defaults of parameters in their signatures."""

from __future__ import annotations

from typing import Literal

from lvt_pipeline.settings import setting

Cache = Literal["auto", "ram", "mmap", "stream"]
Tracker = Literal["tensorboard", "wandb"]

AT: int | None = setting(
    None,
    "Generation of the code store to read; `lvt inspect` lists them.",
    at_least=1,
    example="N",
    unset="the current one",
)
CACHE: Cache = setting(
    "auto",
    "Place of the codes during training: memory, a memory-mapped file next to the store, or the store itself, read "
    "shard by shard.",
)
DEVICE: str = setting("auto", "Device: auto, cpu, cuda or cuda:N. auto uses a GPU if there is one.")
JSON: bool = setting(False, "Print the facts as JSON.", option="--json")
MAX_SECONDS: float | None = setting(
    None, "Time in seconds after which a training saves and stops (exit code 75).", at_least=0
)
MEDIA: str | None = setting(None, "Folder or URL of the videos that a list names.", unset="next to the list")
OVERRIDES: tuple[str, ...] = setting((), "Change one setting; may be repeated.", option="--set", example="NAME=VALUE")
OVERWRITE: bool = setting(False, "Delete the existing output first.")
TRACK: tuple[Tracker, ...] = setting(
    (),
    "Tracker that also receives the metrics of a training (an extra to install); may be repeated. metrics.jsonl is "
    "always written.",
)
WORKERS: int | None = setting(
    None,
    "Number of decoding processes. 0: decode in the main process.",
    at_least=0,
    at_most=4096,
    unset="one per core",
)

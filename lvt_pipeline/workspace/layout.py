"""What a work directory holds: one table in pipeline order, for every command that looks at one.

W/pipeline.toml   the resolved settings of `lvt run`
W/manifest.jsonl  W/frames/  W/runs/vqvae/  W/data.zarr/  W/runs/prior/  W/samples.zarr/  W/videos/
W/eval.json  W/report.html
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

StageName = Literal[
    "manifest", "ingest", "train-vqvae", "encode-dataset", "train-prior", "sample", "decode", "evaluate", "report"
]
SETTINGS_NAME = "pipeline.toml"
REPORT_VERSION = 3  # 2: tabs, single clips, all that lvt evaluate measures; 3: charts of the one plotting engine
FRAMES_MEMORY = Path(".lvt") / "frames"  # the record of the frames, which outlives them


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One output in a work directory.

    Attributes:
        role: its name as an input of later stages.
        path: relative to the work directory.
        title: for people.
        stage: the command that makes it.
        tab: of the report that shows it; empty for the report itself.
        inputs: role in the record of this artefact -> role of the artefact that it names.
        command: the command line that makes it; `{work}` stands for the work directory.
        is_network: whether training it is expensive: an outdated network is kept, other outputs are made again.
        needs_pixels: whether it cannot be made without the frames.
    """

    role: str
    path: str
    title: str
    stage: StageName
    tab: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    command: str
    is_network: bool = False
    needs_pixels: bool = False


# fmt: off
ARTEFACTS = (
    Artefact(role="manifest", path="manifest.jsonl", title="Manifest", stage="manifest", tab="data",
             command="lvt manifest build VIDEOS -o {work}/manifest.jsonl"),
    Artefact(role="frames", path="frames", title="Frames", stage="ingest", tab="data",
             inputs={"manifest": "manifest"},
             command="lvt ingest --manifest {work}/manifest.jsonl -o {work}/frames"),
    Artefact(role="vqvae", path="runs/vqvae", title="Tokenizer", stage="train-vqvae", tab="tokenizer",
             inputs={"frames": "frames"}, is_network=True, needs_pixels=True,
             command="lvt train-vqvae --frames {work}/frames -o {work}/runs/vqvae"),
    Artefact(role="codes", path="data.zarr", title="Codes", stage="encode-dataset", tab="codes",
             inputs={"frames": "frames", "tokenizer": "vqvae"}, needs_pixels=True,
             command="lvt encode-dataset --frames {work}/frames --vqvae {work}/runs/vqvae -o {work}/data.zarr"),
    Artefact(role="prior", path="runs/prior", title="Prior", stage="train-prior", tab="prior",
             inputs={"codes": "codes"}, is_network=True,
             command="lvt train-prior --codes {work}/data.zarr -o {work}/runs/prior"),
    Artefact(role="samples", path="samples.zarr", title="Samples", stage="sample", tab="samples",
             inputs={"codes": "codes", "prior": "prior"},
             command="lvt sample --prior {work}/runs/prior --codes {work}/data.zarr -o {work}/samples.zarr"),
    Artefact(role="videos", path="videos", title="Videos", stage="decode", tab="samples",
             inputs={"codes": "samples", "vqvae": "vqvae"},
             command="lvt decode --codes {work}/samples.zarr --vqvae {work}/runs/vqvae -o {work}/videos"),
    Artefact(role="evaluation", path="eval.json", title="Evaluation", stage="evaluate", tab="evaluation",
             inputs={"codes": "codes", "prior": "prior", "frames": "frames", "vqvae": "vqvae", "samples": "samples"},
             command="lvt evaluate --codes {work}/data.zarr --prior {work}/runs/prior --frames {work}/frames "
                     "--vqvae {work}/runs/vqvae --samples {work}/samples.zarr -o {work}/eval.json"),
    Artefact(role="report", path="report.html", title="Report", stage="report", tab="",
             inputs={role: role for role in (
                 "manifest", "frames", "vqvae", "codes", "prior", "samples", "videos", "evaluation")},
             command="lvt report {work}"),
)
# fmt: on
BY_ROLE = {artefact.role: artefact for artefact in ARTEFACTS}


@dataclass(frozen=True)
class Layout:
    """The paths of one work directory, whether they exist or not.

    Attributes:
        others: by role, artefacts that are elsewhere.
    """

    work_dir: Path
    others: Mapping[str, Path] = field(default_factory=dict)

    @property
    def settings(self) -> Path:
        """The settings file of `lvt run`."""
        return self.work_dir / SETTINGS_NAME

    def __getitem__(self, role: str) -> Path:
        """Path of an artefact."""
        return self.others.get(role, self.work_dir / BY_ROLE[role].path)

    def command(self, role: str) -> str:
        """The command that makes an artefact: `lvt run` where the directory has its settings, else the single stage."""
        if self.settings.exists():
            return f"lvt run {shlex.quote(str(self.settings))}"
        return BY_ROLE[role].command.format(work=shlex.quote(str(self.work_dir)))

"""The table of a work directory: complete, in order, and what the rest of the product goes by."""

from __future__ import annotations

from pathlib import Path

from lvt_pipeline.workspace.layout import ARTEFACTS, BY_ROLE, Layout


def test_every_input_is_made_by_an_earlier_stage() -> None:
    seen: set[str] = set()
    for artefact in ARTEFACTS:
        assert set(artefact.inputs.values()) <= seen, artefact.role
        seen.add(artefact.role)
    assert len(BY_ROLE) == len(ARTEFACTS)


def test_every_command_names_its_output() -> None:
    for artefact in ARTEFACTS:
        assert artefact.command.startswith("lvt ")
        assert artefact.role == "report" or artefact.command.endswith(f"-o {{work}}/{artefact.path}")


def test_the_command_is_lvt_run_where_the_directory_has_its_settings(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "my work")
    assert layout["codes"] == tmp_path / "my work" / "data.zarr"
    assert layout.command("frames").startswith(f"lvt ingest --manifest '{tmp_path}/my work'/manifest.jsonl")
    layout.work_dir.mkdir()
    layout.settings.write_text("")
    assert layout.command("frames") == f"lvt run '{tmp_path}/my work/pipeline.toml'"

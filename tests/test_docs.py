"""The documentation: links lead somewhere, commands parse, settings and presets exist, snippets run."""

from __future__ import annotations

import gc
import re
import shlex
import tomllib
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

from lvt_pipeline import cli
from lvt_pipeline.config import load, preset_names, recipe_names

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "data_manifests" / "README.md", *REPOSITORY.glob("docs/*.md")])
SHELLS = ("bash", "sh", "console")
FAMILIES = ("vqvae", "prior", "pipeline")
STAGE_FAMILY = {"train-vqvae": "vqvae", "train-prior": "prior", "run": "pipeline", "reproduce": "reproduce"}

LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INLINE_COMMAND = re.compile(r"`lvt ([^`]+)`")
CALL = re.compile(r"^(?:\$ )?(?:Example: )?(?:[\w./]*/)?lvt ")
SHELL_OPERATORS = ("|", "||", "&&", ";", ">", "<", "&")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


@dataclass(frozen=True)
class Call:
    """A documented call of the command line, without the leading `lvt`."""

    where: str
    arguments: list[str]


def blocks(*languages: str) -> list[Block]:
    """The fenced blocks of all pages in some languages; all blocks when none is named."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            if not languages or match[2] in languages:
                found.append(Block(page, text.count("\n", 0, match.start()) + 1, match[2], match[3]))
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def fenced_calls() -> list[Call]:
    """Every line of a fenced block that calls `lvt`; in blocks of text only the examples of the help."""
    calls = []
    for block in blocks():
        for line in block.text.replace("\\\n", " ").splitlines():
            is_call = CALL.match(line.strip()) is not None
            if is_call and (block.language in SHELLS or line.strip().startswith("Example: ")):
                words = shlex.split(line.strip().partition("lvt ")[2], comments=True)
                end = next((i for i, word in enumerate(words) if word in SHELL_OPERATORS), len(words))
                calls.append(Call(f"{block}: {line.strip()}", words[:end]))
    return calls


def inline_calls() -> list[Call]:
    """Every `lvt ...` between backticks; such calls may leave out what they are not about."""
    return [
        Call(f"{page.relative_to(REPOSITORY)}: `lvt {match[1]}`", shlex.split(match[1]))
        for page in PAGES
        for match in INLINE_COMMAND.finditer(prose(page))
    ]


def find_command(call: Call) -> tuple[click.Command, list[str], click.Context]:
    """The command of a call, its own arguments, and the context it is parsed in."""
    command: click.Command = cli.lvt
    context = cli.lvt.make_context("lvt", [], resilient_parsing=True)
    rest = list(call.arguments)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        child = command.get_command(context, name)
        assert child is not None, f"{call.where}: there is no command {name!r}"
        command, context = child, click.Context(child, info_name=name, parent=context)
    return command, rest, context


def option_values(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(arguments) if name == option]


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


# Links ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_relative_link_and_image_resolves(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(REPOSITORY), f"{page.name}: {target} leads out of the project"
        assert file.exists(), f"{page.name}: {target} does not exist"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {file.name} has no heading #{anchor}"


def test_every_page_can_be_reached_from_the_readme_or_the_index() -> None:
    linked = set()
    for page in (REPOSITORY / "README.md", REPOSITORY / "docs" / "index.md"):
        linked |= {(page.parent / target.partition("#")[0]).resolve() for target in LINK.findall(prose(page))}
    for page in PAGES:
        if page.name not in ("README.md", "index.md"):
            assert page in linked, f"no link leads to {page.name}"


def test_drawings_are_well_formed_and_say_what_they_show() -> None:
    drawings = sorted(REPOSITORY.glob("docs/images/*.svg"))
    assert drawings
    for drawing in drawings:
        title = ElementTree.parse(drawing).getroot().find("{http://www.w3.org/2000/svg}title")
        assert title is not None, drawing.name
        assert title.text, drawing.name


def test_pages_name_no_place_on_the_writers_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(?:tmp|work|home|root)/", page.read_text()), page.name


# Commands -------------------------------------------------------------------------------------------------------------


def test_every_fenced_command_parses() -> None:
    calls = fenced_calls()
    assert calls
    for call in calls:
        command, rest, context = find_command(call)
        if "--help" in rest or "--version" in rest:
            continue
        try:
            command.make_context(command.name, rest, parent=context.parent).close()
        except click.UsageError as error:
            pytest.fail(f"{call.where}: {error.format_message()}")


def test_every_inline_command_and_its_options_exist() -> None:
    calls = inline_calls()
    assert calls
    for call in calls:
        command, rest, context = find_command(call)
        known = {name for parameter in command.get_params(context) for name in parameter.opts}
        for word in rest:
            if word.startswith("-") and not re.fullmatch(r"-[\d.]+", word):
                assert word.partition("=")[0] in known, f"{call.where}: {word} is no option of it"


def test_every_option_named_in_prose_exists() -> None:
    known = {"--help", "--version"} | {name for command in all_commands(cli.lvt) for name in options_of(command)}
    for page in PAGES:
        for word in re.findall(r"`(--[a-z][a-z0-9-]*)[^`]*`", prose(page)):
            assert word in known, f"{page.name}: no command has the option {word}"


def all_commands(group: click.Group) -> Iterator[click.Command]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield command
        if isinstance(command, click.Group):
            yield from all_commands(command)


def options_of(command: click.Command) -> list[str]:
    return [name for parameter in command.params for name in parameter.opts]


# Settings and presets -------------------------------------------------------------------------------------------------


def test_every_preset_and_recipe_of_a_command_exists() -> None:
    for call in (*fenced_calls(), *inline_calls()):
        family = STAGE_FAMILY.get(call.arguments[0], "")
        for preset in option_values(call.arguments, "--preset"):
            assert preset in preset_names(family), f"{call.where}: there is no such {family} preset"
        for recipe in option_values(call.arguments, "--recipe"):
            assert recipe in recipe_names(family), f"{call.where}: there is no such {family} recipe"


def test_every_setting_of_a_command_exists() -> None:
    from lvt_pipeline.training.settings import PriorRunSettings, VQVAERunSettings
    from lvt_pipeline.workspace.settings import load_settings

    checked = 0
    for call in (*fenced_calls(), *inline_calls()):
        overrides = tuple(option_values(call.arguments, "--set"))
        preset = next(iter(option_values(call.arguments, "--preset")), None)
        if not overrides:
            continue
        checked += 1
        if call.arguments[0] == "train-vqvae":
            load(VQVAERunSettings, "vqvae", preset=preset or "small", overrides=overrides)
        elif call.arguments[0] == "train-prior":
            load(PriorRunSettings, "prior", preset=preset or "small", overrides=overrides)
        else:
            load_settings(videos=Path("videos"), work_dir=Path("work"), preset=preset, overrides=overrides)
    assert checked


def test_every_preset_in_a_table_exists() -> None:
    known = {name for family in FAMILIES for name in preset_names(family)}
    found = set()
    for page in PAGES:
        for table in re.findall(r"(?:^\|.*\n)+", prose(page), re.MULTILINE):
            rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]
            for column, title in enumerate(rows[0]):
                if title in ("preset", "presets"):
                    cells = " ".join(row[column] for row in rows[2:] if column < len(row))
                    found |= set(re.findall(r"`([^`]+)`", cells))
    assert found <= known, f"no such preset: {sorted(found - known)}"
    assert known <= found, f"not in the documentation: {sorted(known - found)}"


def test_every_toml_block_is_toml_and_pipeline_files_can_be_used(tmp_path: Path) -> None:
    from lvt_pipeline.workspace.settings import load_settings

    for block in blocks("toml"):
        tables = tomllib.loads(block.text)
        if "videos" in tables:
            file = tmp_path / "pipeline.toml"
            file.write_text(block.text)
            assert load_settings(file=file).videos == str(tmp_path / tables["videos"]), str(block)


@pytest.mark.parametrize("recipe", sorted(REPOSITORY.glob("data_manifests/*.toml")), ids=lambda recipe: recipe.name)
def test_every_recipe_can_be_used_and_is_listed(recipe: Path) -> None:
    from lvt_pipeline.workspace.settings import load_settings

    settings = load_settings(file=recipe, videos=Path("videos"), work_dir=Path("work"))
    assert (settings.videos, settings.work_dir) == ("videos", "work")
    assert f"`{recipe.name}`" in (recipe.parent / "README.md").read_text()


# Snippets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_every_python_snippet_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


def run_snippet(block: Block, names: dict[str, Any]) -> None:
    """Run a snippet in the current folder; what it defines goes into `names`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves the closing of files to Python
        exec(compile(block.text, str(block), "exec"), names)
        gc.collect()


@pytest.mark.parametrize(
    "block",
    [block for block in blocks("python") if block.page.name in ("formats.md", "README.md", "python.md")],
    ids=str,
)
def test_snippets_of_readme_formats_and_python_run(block: Block, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work.parent)
    names: dict[str, Any] = {}
    run_snippet(block, names)
    if block.page.name == "README.md":
        assert names["codes"].shape == (1, 16, 4, 4, 2)
        assert names["frames"].shape == (16, 16, 16, 3)


def test_documented_byte_layouts_give_what_lvt_reads(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lvt_pipeline.codes.schema import CHUNK_FRAMES
    from lvt_pipeline.codes.store import open_codes
    from lvt_pipeline.frames.shards import FrameShards

    monkeypatch.chdir(work.parent)
    values: dict[str, Any] = {}
    for block in blocks("python"):
        if block.page.name == "formats.md":
            run_snippet(block, values)
            if "memmap" in block.text:
                shards = FrameShards(work / "frames")
                assert np.array_equal(values["frames"], shards.read(shards.split("train")[0]))
            if "webdataset" in block.text:
                assert np.array_equal(values["frames"], FrameShards(work / "frames").read(values["about"]["id"]))
    store = open_codes(work / "data.zarr")
    assert np.array_equal(values["codes"], store[store.split("train")[0].id])
    first = values["first_frames"]
    assert len(first) == CHUNK_FRAMES
    assert np.array_equal(first[: store.num_frames], store.read_range(0, min(CHUNK_FRAMES, store.num_frames)))
    assert np.array_equal(values["first_clip"], store[store.clips[0].id])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames, codes of more than 256 values, a tokenizer and a prior that were never trained."""
    from lvt_pipeline.codes.schema import CodeSchema, PlannedClip, codes_fingerprint
    from lvt_pipeline.codes.writer import CodeStoreWriter
    from lvt_pipeline.frames.records import FrameSample
    from lvt_pipeline.frames.shards import FrameShards
    from lvt_pipeline.frames.writer import write_frames
    from lvt_pipeline.jobs.export import export_codes
    from lvt_pipeline.jobs.settings import ExportSettings
    from lvt_pipeline.models.prior.model import Prior
    from lvt_pipeline.models.vqvae.model import VQVAE, tokenizer_fingerprint
    from lvt_pipeline.provenance import Provenance
    from lvt_pipeline.runs.directory import save_model_run

    root = tmp_path_factory.mktemp("docs") / "work"
    generator = np.random.default_rng(0)
    ids = [("train", "train/ü.1"), ("train", "train/b"), ("test", "test/c")]
    pixels = [generator.integers(0, 256, (18, 16, 16, 3), np.uint8) for _ in ids]
    for folder, codec in ((root / "frames", "raw"), (root.parent / "packed", "webp")):
        samples = [
            FrameSample.from_array(name, clip, split=split, codec=codec)
            for (split, name), clip in zip(ids, pixels, strict=True)
        ]
        write_frames(folder, samples, stage="ingest", settings={}, inputs={"manifest": "0" * 64})
    torch.manual_seed(0)
    tokenizer = VQVAE(TokenizerSettings().model)
    fingerprint = tokenizer_fingerprint(tokenizer)
    counts = {"tokenizer": fingerprint}
    save_model_run(
        root / "runs/vqvae", "vqvae-run", tokenizer, TokenizerSettings(), stage="train-vqvae", version=1, counts=counts
    )
    prior = Prior(PriorSettings().model)
    save_model_run(root / "runs/prior", "prior-run", prior, PriorSettings(), stage="train-prior", version=1, counts={})

    schema = CodeSchema(codebook_size=300, num_codebooks=2, grid=(4, 4), tokenizer=fingerprint)
    planned = [
        PlannedClip(
            id=clip.id,
            split=clip.split,
            label=None,
            length=clip.num_frames,
            fingerprint=codes_fingerprint(clip.fingerprint, fingerprint),
            fps=clip.fps,
            source="",
        )
        for clip in FrameShards(root / "frames").clips
    ]
    record = Provenance(kind="codes", stage="encode-dataset", version=1, settings={}, inputs={}, fingerprint="")
    with CodeStoreWriter.open(root / "data.zarr", schema, planned) as writer:
        for shard in writer.pending_shards():
            writer.write_shard(shard.index, generator.integers(0, 300, (shard.num_frames, *schema.frame_shape)))
        writer.publish(record)
    export_codes(root / "data.zarr", root.parent / "exported", ExportSettings(format="memmap"))
    return root


def tokenizer_config() -> Any:
    from lvt_pipeline.models.vqvae.config import VQVAEConfig

    return VQVAEConfig(
        num_codebooks=2, codebook_size=300, code_width=8, stem_width=4, residual_width=4, num_residual_blocks=1
    )


def prior_config() -> Any:
    from lvt_pipeline.models.prior.config import PriorConfig

    return PriorConfig(
        frames=16,
        grid=(4, 4),
        num_codebooks=2,
        codebook_size=300,
        subscale=(16, 1, 1),
        width=12,
        head_width=6,
        num_heads=2,
        embedding_width=6,
        encoder_layers=1,
        decoder_layers=1,
    )


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """What `config.toml` of a run says about a tokenizer."""

    model: Any = field(default_factory=tokenizer_config)


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """What `config.toml` of a run says about a prior."""

    model: Any = field(default_factory=prior_config)

"""A look at clips: a contact sheet of frames, or all clips playing side by side. `lvt show` writes it.

Training data should be seen first: frames as they are stored, codes as the tokenizer decodes them or in fixed colours,
samples with their priming frames marked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import ArtefactError, ConfigError, LVTError
from lvt_pipeline.evaluation.samples import priming_frames_of
from lvt_pipeline.frames.records import FrameClip
from lvt_pipeline.frames.shards import FrameShards
from lvt_pipeline.outputs import require_output_file
from lvt_pipeline.progress import count_of
from lvt_pipeline.report.settings import ShowSettings
from lvt_pipeline.runs.compatibility import require_own_tokenizer
from lvt_pipeline.runs.read import load_vqvae
from lvt_pipeline.storage import Place, printable, write_bytes
from lvt_pipeline.video.geometry import Frames
from lvt_pipeline.video.pictures import colour_codes, png_bytes
from lvt_pipeline.video.tiles import codebook_tiles, framed, picture_grid
from lvt_pipeline.video.write import enlarge, video_bytes, with_note
from lvt_pipeline.workspace.inspect import kind_of

if TYPE_CHECKING:
    from lvt_pipeline.models.vqvae.model import VQVAE

Clip = TypeVar("Clip", FrameClip, CodeClip)

STAGE = "show"
FILE_MARK = b"written by lvt show"
SUFFIXES = (".png", ".mp4", ".gif")
TILE_PIXELS = 96  # frames smaller than this are enlarged
FILM_FPS = 30.0  # a film of clips of many rates is not faster than this
BACKGROUND, TEXT, FAINT = (24, 24, 27), (235, 235, 235), (150, 150, 155)
PRIMING = (255, 176, 0)  # the amber of priming frames
_GAP, _LINE = 4, 16  # pixels between tiles; of a line of text


@dataclass(frozen=True)
class ShownClip:
    """One clip to look at.

    Attributes:
        id, about: the two parts of its caption.
        num_frames, fps: of all of it.
        read: from indices, int64 (N,), to those frames, uint8 (N, H, W, 3).
        num_priming: how many of its first frames are priming frames of a sample.
    """

    id: str
    about: str
    num_frames: int
    fps: float
    read: Callable[[NDArray[np.int64]], Frames]
    num_priming: int = 0


def show(
    source: Place,
    out: Path,
    settings: ShowSettings = ShowSettings(),
    *,
    vqvae: Path | None = None,
    generation: int | None = None,
    device: str = "auto",
) -> list[str]:
    """Write a picture or a film of some clips of a folder of frames or a code store.

    Args:
        out: a `.png` becomes a contact sheet, `.mp4` and `.gif` play. An older picture of this function is replaced.
        vqvae: run directory of the tokenizer, to show pixels instead of codes.

    Returns:
        The ids that are shown, in order.

    Raises:
        ArtefactError: the source is neither frames nor codes, or has no such clip; or another program wrote `out`.
        ConfigError: another ending, or a tokenizer for frames.
    """
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{out} ends in {out.suffix or 'nothing'}; a picture ends in {', '.join(SUFFIXES)}")
    require_output_file(out, STAGE, (source, vqvae), mark=FILE_MARK)
    clips = _clips_of(source, settings, vqvae, generation, device)
    if suffix == ".png":
        data = png_bytes(contact_sheet(clips, settings.num_frames, settings.scale))
    else:
        frames, fps = film(clips, settings.seconds, settings.scale)
        data = video_bytes(suffix, frames, fps)
    write_bytes(out, with_note(data, suffix, FILE_MARK))
    return [clip.id for clip in clips]


def contact_sheet(clips: Sequence[ShownClip], num_frames: int, scale: int | None = None) -> Frames:
    """A row of frames for every clip, first to last, numbered from 1, under its caption; uint8 (H, W, 3)."""
    rows = []
    for clip in clips:
        indices = np.unique(np.linspace(0, clip.num_frames - 1, num_frames).round().astype(np.int64))
        rows.append((clip, indices, _tiles_of(clip, indices, scale)))
    width = max(len(tiles) * tiles.shape[2] for _, _, tiles in rows) + 2 * _GAP
    height = sum(tiles.shape[1] + _LINE + 2 * _GAP for _, _, tiles in rows) + _GAP
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    pen, top = ImageDraw.Draw(sheet), _GAP
    for clip, indices, tiles in rows:
        _write_caption(pen, (2 * _GAP, top), clip.id, clip.about, width - 4 * _GAP)
        top += _LINE
        sheet.paste(Image.fromarray(picture_grid(tiles[None], gap=0)), (_GAP, top))
        for place, index in enumerate(indices):
            corner = (3 * _GAP + place * tiles.shape[2], top + tiles.shape[1] - _LINE)
            font = ImageFont.load_default(size=10)
            pen.text(corner, str(index + 1), (255, 255, 255), font, stroke_width=2, stroke_fill=(0, 0, 0))
        top += tiles.shape[1] + 2 * _GAP
    return np.asarray(sheet)


def film(clips: Sequence[ShownClip], seconds: float, scale: int | None = None) -> tuple[Frames, float]:
    """All clips at once in a grid, each at its own speed; a clip that has ended stays on its last frame.

    Returns:
        uint8 (T, H, W, 3) and the film's frames per second.
    """
    fps = min(FILM_FPS, max(clip.fps for clip in clips))
    lasts = min(seconds, max(clip.num_frames / clip.fps for clip in clips))
    moments = np.arange(max(1, math.ceil(lasts * fps - 1e-6))) / fps
    columns = math.ceil(math.sqrt(len(clips)))
    playing = []
    for clip in clips:
        indices = np.minimum((moments * clip.fps + 1e-6).astype(np.int64), clip.num_frames - 1)
        unique, back = np.unique(indices, return_inverse=True)
        playing.append(_tiles_of(clip, unique, scale)[back])
    height, width = (max(tiles.shape[axis] for tiles in playing) for axis in (1, 2))
    num_rows = -(-len(clips) // columns)
    cells = np.empty((len(moments), num_rows * columns, height + _LINE, width, 3), np.uint8)
    cells[...] = BACKGROUND
    for place, (clip, tiles) in enumerate(zip(clips, playing, strict=True)):
        caption = Image.new("RGB", (width, _LINE), BACKGROUND)
        _write_caption(ImageDraw.Draw(caption), (_GAP, 0), clip.id, "", width - 2 * _GAP)
        cells[:, place, :_LINE] = np.asarray(caption)
        cells[:, place, _LINE : _LINE + tiles.shape[1], : tiles.shape[2]] = tiles
    grids = cells.reshape(len(moments), num_rows, columns, *cells.shape[2:])
    return np.stack([picture_grid(grid, gap=0) for grid in grids]), fps


# Where clips come from ---------------------------------------------------------------------------------------------


def _clips_of(
    source: Place, settings: ShowSettings, vqvae: Path | None, generation: int | None, device: str
) -> list[ShownClip]:
    kind = kind_of(source)
    if kind == "frames":
        if vqvae is not None or generation is not None:
            option = "--vqvae" if vqvae is not None else "--at"
            raise ConfigError(f"{source} is a folder of frames; {option} applies to code stores; leave it out")
        shards = FrameShards(source)
        frame_clips = [shards[name] for name in settings.clips] or _at_random(shards.clips, settings, source)
        return [_of_frames(shards, clip) for clip in frame_clips]
    if kind != "codes":
        raise ArtefactError(f"{source} is neither a folder of frames nor a code store ({kind}); give one of these")
    store = open_codes(source, generation)
    clips = [clip for name in settings.clips for clip in _clips_named(store, name)]
    clips = clips or _at_random(store.clips, settings, source)
    model = _tokenizer(store, vqvae, device) if vqvae is not None else None
    return [_of_codes(store, clip, model) for clip in clips]


def _clips_named(store: CodeStore, name: str) -> list[CodeClip]:
    """The clip of an id, or all samples of the clip of that id."""
    samples = [clip for clip in store.clips if clip.id.rpartition("#")[0] == name]
    return samples if samples and name not in store else [store.clip(name)]


def _tokenizer(store: CodeStore, vqvae: Path, device: str) -> VQVAE:
    model = load_vqvae(vqvae, device=device)
    require_own_tokenizer(store, vqvae, model)
    return model


def _at_random(clips: Sequence[Clip], settings: ShowSettings, source: Place) -> list[Clip]:
    """Some of the clips, in their order; the same for the same seed."""
    split = settings.split
    among = [clip for clip in clips if split in (None, clip.split)]
    if not among:
        raise LVTError(f"{source} has no {split + ' ' if split else ''}clip to show")
    count = min(settings.num_clips, len(among))
    chosen = np.random.default_rng(settings.seed).choice(len(among), count, replace=False)
    return [among[index] for index in sorted(chosen.tolist())]


def _of_frames(shards: FrameShards, clip: FrameClip) -> ShownClip:
    def read(indices: NDArray[np.int64]) -> Frames:
        if clip.codec != "raw" or len(indices) > clip.num_frames // 2:
            return shards.read(clip)[indices]
        return np.concatenate([shards.read(clip, int(index), int(index) + 1) for index in indices])

    about = _about(clip.split, clip.label, clip.num_frames, clip.fps)
    if clip.truncated:
        about += ", of a truncated file"
    return ShownClip(clip.id, about, clip.num_frames, clip.fps, read)


def _of_codes(store: CodeStore, clip: CodeClip, model: VQVAE | None) -> ShownClip:
    def read(indices: NDArray[np.int64]) -> Frames:
        codes = store.read(clip)[indices]
        if model is not None:
            pixels: Frames = model.decode(codes).numpy()
            return pixels
        return codebook_tiles(colour_codes(codes, store.codebook_size))

    priming = priming_frames_of(store)
    about = _about(clip.split, clip.label, clip.length, clip.fps)
    if priming:
        about += f", {count_of(priming, 'priming frame')}"
    return ShownClip(clip.id, about, clip.length, clip.fps, read, num_priming=priming)


def _about(split: str, label: str | None, num_frames: int, fps: float) -> str:
    named = f"{split}, {label}" if label else split
    return f"{named}, {count_of(num_frames, 'frame')} at {fps:.4g} per second"


# Pictures ----------------------------------------------------------------------------------------------------------


def _tiles_of(clip: ShownClip, indices: NDArray[np.int64], scale: int | None) -> Frames:
    """Frames of a clip, enlarged, each with an edge: amber for priming frames."""
    frames = clip.read(indices)
    frames = enlarge(frames, scale or max(1, round(TILE_PIXELS / frames.shape[1])))
    edges = [PRIMING if index < clip.num_priming else BACKGROUND for index in indices]
    return np.stack([framed(tile, _GAP // 2, edge) for tile, edge in zip(frames, edges, strict=True)])


def _write_caption(pen: ImageDraw.ImageDraw, corner: tuple[int, int], name: str, about: str, width: int) -> None:
    font = ImageFont.load_default(size=11)
    name, about = printable(name), printable(about)
    while len(name) > 4 and pen.textlength(name, font) > width:
        name = "..." + name[4:]  # the end of an id is more specific than its beginning
    pen.text(corner, name, TEXT, font)
    after = pen.textlength(name, font) + 2 * _GAP
    if after + pen.textlength(about, font) <= width:
        pen.text((corner[0] + after, corner[1]), about, FAINT, font)

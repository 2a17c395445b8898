"""A look at clips: a contact sheet of frames, or all clips playing beside each other. `lvt show` writes it.

What is trained on should be seen first: frames as they are stored, codes as the tokenizer gives them back or in fixed
colours, samples with the frames they were given marked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lvt_pipeline.codes.schema import CodeClip
from lvt_pipeline.codes.store import CodeStore, open_codes
from lvt_pipeline.errors import ArtefactError, ConfigError, LVTError
from lvt_pipeline.frames.records import FrameClip
from lvt_pipeline.frames.shards import Frames, FrameShards
from lvt_pipeline.storage import write_bytes
from lvt_pipeline.video.pictures import colour_codes, png_bytes
from lvt_pipeline.video.write import enlarge, write_gif, write_mp4
from lvt_pipeline.workspace.inspect import kind_of

if TYPE_CHECKING:
    from lvt_pipeline.models.vqvae.model import VQVAE

SUFFIXES = (".png", ".mp4", ".gif")
TILE_PIXELS = 96  # frames smaller than this are enlarged
FILM_FPS = 30.0  # a film of clips of many rates is not faster than this
BACKGROUND, TEXT, FAINT = (24, 24, 27), (235, 235, 235), (150, 150, 155)
GIVEN = (255, 176, 0)  # the amber of frames that a sample was given
_GAP, _LINE = 4, 16  # pixels between tiles; of a line of text


@dataclass(frozen=True)
class ShownClip:
    """One clip to look at.

    Attributes:
        id, about: the two parts of its caption.
        num_frames, fps: of all of it.
        read: from indices, int64 (N,), to those frames, uint8 (N, H, W, 3).
        num_given: how many of its first frames a sample was given.
    """

    id: str
    about: str
    num_frames: int
    fps: float
    read: Callable[[NDArray[np.int64]], Frames]
    num_given: int = 0


def show(
    source: Path,
    out: Path,
    *,
    ids: Sequence[str] = (),
    num_clips: int = 8,
    seed: int = 0,
    split: str | None = None,
    num_frames: int = 8,
    seconds: float = 10.0,
    scale: int | None = None,
    vqvae: Path | None = None,
    generation: int | None = None,
    device: str = "auto",
) -> list[str]:
    """Write a picture or a film of some clips of a folder of frames or a code store.

    Args:
        out: a `.png` gets a contact sheet, `.mp4` and `.gif` play. An older file is replaced.
        ids: these clips; without any, `num_clips` at random, the same for the same seed.
        split: random clips come from this one only.
        num_frames: of each clip on a contact sheet, evenly spread from its first to its last.
        seconds: how long a film lasts at most.
        scale: every pixel becomes a square this wide; by default small frames grow to about 96 pixels.
        vqvae: run directory of the tokenizer, to see pixels instead of codes.

    Returns:
        The ids that are shown, in order.

    Raises:
        ArtefactError: the source is neither frames nor codes, or has no such clip.
        ConfigError: another ending, or a tokenizer for frames.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{out} ends in {out.suffix or 'nothing'}; pictures end in {', '.join(SUFFIXES)}")
    clips = _clips_of(source, ids, num_clips, seed, split, vqvae, generation, device)
    if out.suffix.lower() == ".png":
        write_bytes(out, png_bytes(contact_sheet(clips, num_frames, scale)))
    else:
        frames, fps = film(clips, seconds, scale)
        write = write_mp4 if out.suffix.lower() == ".mp4" else write_gif
        write(out, frames, fps)
    return [clip.id for clip in clips]


def contact_sheet(clips: Sequence[ShownClip], num_frames: int, scale: int | None = None) -> Frames:
    """A row of frames for every clip, first to last, under its caption; uint8 (H, W, 3)."""
    rows = []
    for clip in clips:
        indices = np.unique(np.linspace(0, clip.num_frames - 1, num_frames).round().astype(np.int64))
        tiles = _enlarged(clip.read(indices), scale)
        tiles = np.stack([_framed(tile, index < clip.num_given) for tile, index in zip(tiles, indices, strict=True)])
        rows.append((clip, rearrange(tiles, "t h w c -> h (t w) c"), indices, tiles.shape[2]))
    width = max(picture.shape[1] for _, picture, _, _ in rows) + 2 * _GAP
    height = sum(picture.shape[0] + _LINE + 2 * _GAP for _, picture, _, _ in rows) + _GAP
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    pen, top = ImageDraw.Draw(sheet), _GAP
    for clip, picture, indices, tile_width in rows:
        _write_caption(pen, (2 * _GAP, top), clip.id, clip.about, width - 4 * _GAP)
        top += _LINE
        sheet.paste(Image.fromarray(picture), (_GAP, top))
        for place, index in enumerate(indices):
            _write_number(pen, (_GAP + place * tile_width + 2 * _GAP, top + picture.shape[0] - _LINE), str(index))
        top += picture.shape[0] + 2 * _GAP
    return np.asarray(sheet)


def film(clips: Sequence[ShownClip], seconds: float, scale: int | None = None) -> tuple[Frames, float]:
    """All clips at once in a grid, each at its own speed; a clip that is over stays on its last frame.

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
        tiles = _enlarged(clip.read(unique), scale)
        tiles = np.stack([_framed(tile, index < clip.num_given) for tile, index in zip(tiles, unique, strict=True)])
        playing.append(tiles[back])
    cell_height = max(tiles.shape[1] for tiles in playing) + _LINE
    cell_width = max(tiles.shape[2] for tiles in playing)
    empty = Image.new("RGB", (columns * cell_width, math.ceil(len(clips) / columns) * cell_height), BACKGROUND)
    pen = ImageDraw.Draw(empty)
    corners = [(place // columns * cell_height, place % columns * cell_width) for place in range(len(clips))]
    for clip, (top, left) in zip(clips, corners, strict=True):
        _write_caption(pen, (left + _GAP, top), clip.id, "", cell_width - 2 * _GAP)
    frames = np.repeat(np.asarray(empty)[None], len(moments), axis=0)
    for tiles, (top, left) in zip(playing, corners, strict=True):
        _, height, width, _ = tiles.shape
        frames[:, top + _LINE : top + _LINE + height, left : left + width] = tiles
    return frames, fps


# Where clips come from ---------------------------------------------------------------------------------------------


def _clips_of(
    source: Path,
    ids: Sequence[str],
    num_clips: int,
    seed: int,
    split: str | None,
    vqvae: Path | None,
    generation: int | None,
    device: str,
) -> list[ShownClip]:
    kind = kind_of(source)
    if kind == "frames":
        if vqvae is not None or generation is not None:
            option = "--vqvae" if vqvae is not None else "--at"
            raise ConfigError(f"{source} is a folder of frames; {option} belongs to code stores, leave it out")
        shards = FrameShards(source)
        frame_clips = [shards[id] for id in ids] or _at_random(shards.clips, num_clips, seed, split, source)
        return [_of_frames(shards, clip) for clip in frame_clips]
    if kind != "codes":
        raise ArtefactError(f"{source} is no folder of frames and no code store ({kind}); give one of these")
    store = open_codes(source, generation)
    clips = [store.clip(id) for id in ids] or _at_random(store.clips, num_clips, seed, split, source)
    model = _tokenizer(store, vqvae, device) if vqvae is not None else None
    return [_of_codes(store, clip, model) for clip in clips]


def _tokenizer(store: CodeStore, vqvae: Path, device: str) -> VQVAE:
    from lvt_pipeline.runs.compatibility import check_tokenizer  # torch loads only when there is something to decode
    from lvt_pipeline.runs.read import load_vqvae

    model = load_vqvae(vqvae, device=device)
    check_tokenizer(store, vqvae, model)
    return model


def _at_random(clips: Sequence[Any], num_clips: int, seed: int, split: str | None, source: Path) -> list[Any]:
    """Some of the clips, in their order; the same for the same seed."""
    among = [clip for clip in clips if split in (None, clip.split)]
    if not among:
        raise LVTError(f"{source} has no {split + ' ' if split else ''}clip to show")
    chosen = np.random.default_rng(seed).choice(len(among), min(num_clips, len(among)), replace=False)
    return [among[index] for index in sorted(chosen.tolist())]


def _of_frames(shards: FrameShards, clip: FrameClip) -> ShownClip:
    def read(indices: NDArray[np.int64]) -> Frames:
        if clip.codec != "raw" or len(indices) > clip.num_frames // 2:
            return shards.read(clip)[indices]
        return np.concatenate([shards.read(clip, int(index), int(index) + 1) for index in indices])

    about = _about(clip.split, clip.label, clip.num_frames, clip.fps)
    if clip.truncated:
        about += ", of a file cut short"
    return ShownClip(clip.id, about, clip.num_frames, clip.fps, read)


def _of_codes(store: CodeStore, clip: CodeClip, model: VQVAE | None) -> ShownClip:
    def read(indices: NDArray[np.int64]) -> Frames:
        codes = store.read(clip)[indices]
        if model is not None:
            pixels: Frames = model.decode(codes).numpy()
            return pixels
        return _tiled(colour_codes(codes, store.codebook_size))

    given = store.provenance.settings.get("priming_frames", 0) if store.provenance.stage == "sample" else 0
    about = _about(clip.split, clip.label, clip.length, clip.fps)
    if given:
        about += f", the first {given} given"
    return ShownClip(clip.id, about, clip.length, clip.fps, read, num_given=int(given))


def _about(split: str, label: str | None, num_frames: int, fps: float) -> str:
    named = f"{split}, {label}" if label else split
    return f"{named}, {num_frames} frames at {fps:.4g} per second"


def _tiled(colours: Frames) -> Frames:
    """Codebooks beside and below each other, a dark line between them: (N, h, w, n_c, 3) -> (N, H, W, 3)."""
    columns = math.ceil(math.sqrt(colours.shape[3]))
    padded = np.pad(colours, ((0, 0), (0, 1), (0, 1), (0, -colours.shape[3] % columns), (0, 0)))
    tiled: Frames = rearrange(padded, "n h w (r q) c -> n (r h) (q w) c", q=columns)
    return tiled[:, :-1, :-1]


# Drawing -----------------------------------------------------------------------------------------------------------


def _enlarged(frames: Frames, scale: int | None) -> Frames:
    return enlarge(frames, scale or max(1, round(TILE_PIXELS / frames.shape[1])))


def _framed(tile: Frames, is_given: bool) -> Frames:
    """A tile with an edge around it: amber for frames that were given."""
    edged = np.full((tile.shape[0] + _GAP, tile.shape[1] + _GAP, 3), GIVEN if is_given else BACKGROUND, np.uint8)
    half = _GAP // 2
    edged[half:-half, half:-half] = tile
    return edged


def _write_caption(pen: ImageDraw.ImageDraw, corner: tuple[int, int], name: str, about: str, width: int) -> None:
    font = ImageFont.load_default(size=11)
    while len(name) > 4 and pen.textlength(name, font) > width:
        name = "..." + name[4:]  # the end of an id tells more than its beginning
    pen.text(corner, name, TEXT, font)
    after = pen.textlength(name, font) + 2 * _GAP
    if after + pen.textlength(about, font) <= width:
        pen.text((corner[0] + after, corner[1]), about, FAINT, font)


def _write_number(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str) -> None:
    font = ImageFont.load_default(size=10)
    pen.text(corner, text, (255, 255, 255), font, stroke_width=2, stroke_fill=(0, 0, 0))

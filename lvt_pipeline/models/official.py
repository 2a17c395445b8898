"""State dicts of the paper's released code <-> ours. Mappings of tensors only; reading files is the caller's business.

The released files are `netE|netG|netC/model_final.pth` of the VQ-VAE (encoder, decoder, codebooks) and
`netG/model_final.pth` of the prior; each holds {"model": state dict, "iteration": int}. Geometry is read off shapes.
What the released code keeps as buffers but can be recomputed (masks, distance indices, time scales) is left out in both
directions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from lvt_pipeline.errors import CheckpointError, ConfigError
from lvt_pipeline.models.arguments import shown
from lvt_pipeline.models.prior.config import PriorConfig, Triple
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.model import VQVAE

State = Mapping[str, Tensor]
Config = TypeVar("Config", VQVAEConfig, PriorConfig)

# Buffers of the released prior that follow from the geometry.
_RECOMPUTED = re.compile(
    r"(encoder|decoder)\.(positional_encoder\.inv_timescales|block_local_attention\.\d+\.(dt|dh|dw|mask))"
)
LARGEST_BLOCK = 2**14  # positions of an attention block; its mask has the square of that
_PROJECTORS = ("encoder.linear_projector.weight", "decoder.linear_projector.weight")  # 1x1x1 convolutions there


class OfficialVQVAE(NamedTuple):
    """The three state dicts of a released VQ-VAE: netE, netG and netC."""

    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]
    codebook: dict[str, Tensor]


def vqvae_from_official(encoder: State, decoder: State, codebook: State) -> tuple[VQVAEConfig, dict[str, Tensor]]:
    """Config and state dict of our VQ-VAE for the three released ones.

    Raises:
        CheckpointError: a tensor is missing, unknown or of the wrong shape; the first one is named.
    """
    blocks = _count(encoder, r"layers\.(\d+)\.block\.1\.weight")
    is_sliced = any(key.startswith("ve.") for key in codebook)
    count = _count(codebook, r"ve\.(\d+)\.embedding\.weight") if is_sliced else 1
    first = "ve.0.embedding.weight" if is_sliced else "embedding.weight"
    code_width, stem_width = _shape(encoder, "layers.2.weight", 4, "encoder")[:2]
    residual_width = _shape(encoder, "layers.5.block.1.weight", 4, "encoder")[0] if blocks else 128
    config = _config(
        VQVAEConfig,
        num_codebooks=count,
        codebook_size=_shape(codebook, first, 2, "codebook")[0],
        code_width=code_width,
        stem_width=stem_width,
        residual_width=residual_width,
        num_residual_blocks=blocks,
    )
    with torch.device("meta"):
        ours = {name: value for name, value in VQVAE(config).state_dict().items() if not name.endswith(".updates")}
    names = _vqvae_names(config)
    state: dict[str, Tensor] = {}
    files = (("encoder", "encoder", encoder), ("decoder", "decoder", decoder), ("codebook", "quantizer", codebook))
    for where, part, given in files:
        mine = {name: value for name, value in ours.items() if name.startswith(f"{part}.")}
        pairs = {name: names[name] for name in mine}
        state |= _converted(given, pairs, {names[name]: tuple(value.shape) for name, value in mine.items()}, where)
    for j in range(count):
        state[f"quantizer.books.{j}.updates"] = torch.zeros((), dtype=torch.int64)
    return config, state


def vqvae_to_official(config: VQVAEConfig, state: State) -> OfficialVQVAE:
    """The three released state dicts for a state dict of ours.

    Raises:
        CheckpointError: a tensor is missing, or the residual blocks or the quantizer are not the released ones.
    """
    if config.quantizer == "fsq":
        raise CheckpointError("the released VQ-VAE has codebook tables; one with quantizer='fsq' cannot be exported")
    if config.residual != "reference":
        raise CheckpointError(f"the released VQ-VAE has no residual={config.residual!r} blocks")
    names = _vqvae_names(config)
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}, "quantizer": {}}
    for ours, theirs in names.items():
        parts[ours.split(".")[0]][theirs] = _tensor(state, ours, "the VQ-VAE").clone()
    return OfficialVQVAE(parts["encoder"], parts["decoder"], parts["quantizer"])


def prior_from_official(
    state: State, *, grid: tuple[int, int] | None = None, frames: int | None = None, subscale: Triple | None = None
) -> tuple[PriorConfig, dict[str, Tensor]]:
    """Config and state dict of our prior for a released one.

    Args:
        grid: (h, w) of the codes; unset: what the attention block and the subscale factor make.
        frames: clip length; unset: the same.
        subscale: (s_t, s_h, s_w); unset: read off the number of slices and the context kernel, which in every released
            model is one wider than the factor, and off the grid where that is given.

    Raises:
        CheckpointError: a tensor is missing, unknown or of the wrong shape (the first one is named), or the geometry
            does not fit `grid`, `frames` or `subscale`.
    """
    where = "the prior"
    sizes = _sizes_of(state, where)
    subscale, grid = _subscale_and_grid(sizes, subscale, grid)
    frames = subscale[0] * sizes.block[0] if frames is None else frames
    slice_shape = (frames // subscale[0], grid[0] // subscale[1], grid[1] // subscale[2])
    classes = "encoder.class_embedding.weight"
    config = _config(
        PriorConfig,
        frames=frames,
        grid=grid,
        num_codebooks=sizes.num_codebooks,
        codebook_size=sizes.codebook_size,
        subscale=subscale,
        kernel=sizes.kernel,
        block=None if sizes.block == slice_shape else sizes.block,
        width=sizes.width,
        head_width=sizes.head_width,
        num_heads=sizes.num_heads,
        embedding_width=sizes.embedding_width,
        encoder_layers=_count(state, r"encoder\.block_local_attention\.(\d+)\.mha\.w_q"),
        decoder_layers=_count(state, r"decoder\.block_local_attention\.(\d+)\.mha\.w_q"),
        head=_head(state, sizes.codebook_size, sizes.embedding_width, where),
        num_classes=_shape(state, classes, 2, where)[0] if classes in state else 0,
    )
    result = _converted(state, _prior_names(config), _prior_shapes(config), where)
    masked = "decoder.causal_convolution.weight"
    with torch.no_grad():
        result[masked][:, :, -1, -1, 1:] = 0  # the released weight may hold numbers there that it never uses
    return config, result


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What the shapes of a released prior's tensors say."""

    codebook_size: int
    num_codebooks: int
    embedding_width: int
    width: int
    head_width: int
    num_heads: int
    num_slices: int
    kernel: Triple
    block: Triple


def _sizes_of(state: State, where: str) -> _Sizes:
    width_in, one_hot, k_t, k_h, k_w = _shape(state, "encoder.conv.weight", 5, where)
    size, embedding_width = _shape(state, "decoder.ch_embedder.0.weight", 2, where)
    num_codebooks = _count(state, r"decoder\.ch_embedder\.(\d+)\.weight")
    if one_hot != num_codebooks * size or width_in != embedding_width:
        raise CheckpointError(
            f"encoder.conv.weight reads {one_hot} one-hot channels into {width_in}, but decoder.ch_embedder has "
            f"{num_codebooks} tables of {size} codes and width {embedding_width}"
        )
    num_slices = _shape(state, "encoder.slice_embedding.weight", 2, where)[0]
    layer = "decoder.block_local_attention.0"
    heads, width, head_width = _shape(state, f"{layer}.mha.w_q", 3, where)
    t, h, w = (_shape(state, f"{layer}.{bank}", 2, where)[1] for bank in ("dt_bank", "dh_bank", "dw_bank"))
    block = ((t + 1) // 2, (h + 1) // 2, (w + 1) // 2)
    if math.prod(block) > LARGEST_BLOCK:
        raise CheckpointError(
            f"{where} has attention blocks of {math.prod(block)} positions; at most {LARGEST_BLOCK} are supported"
        )
    return _Sizes(
        codebook_size=size,
        num_codebooks=num_codebooks,
        embedding_width=embedding_width,
        width=width,
        head_width=head_width,
        num_heads=heads,
        num_slices=num_slices,
        kernel=(k_t, k_h, k_w),
        block=block,
    )


def _subscale_and_grid(
    sizes: _Sizes, subscale: Triple | None, grid: tuple[int, int] | None
) -> tuple[Triple, tuple[int, int]]:
    """What is not given is read off the number of slices, the kernel and the attention block."""
    if subscale is None:
        subscale = _subscale_of(sizes.num_slices, sizes.kernel, sizes.block, grid)
    if grid is None:
        grid = (subscale[1] * sizes.block[1], subscale[2] * sizes.block[2])
    if math.prod(subscale) != sizes.num_slices:
        raise CheckpointError(
            f"encoder.slice_embedding.weight has {sizes.num_slices} slices, which subscale {subscale} on a {grid} grid "
            "does not make; give the model's grid and subscale"
        )
    return subscale, grid


def prior_to_official(config: PriorConfig, state: State) -> dict[str, Tensor]:
    """The released parameters for a state dict of ours; buffers that the released code makes itself are left out.

    Raises:
        CheckpointError: a tensor is missing, or the released code has no such model.
    """
    extras = {
        "attention": "query-key",
        "encoder_position": False,
        "kernel_reach": "centred",
        "decoder_input": "embedding",
        "class_dropout": 0.0,
        "actions": None,
    }
    foreign = [name for name, value in extras.items() if getattr(config, name) != value]
    if config.head not in ("separate", "shared", "tied"):
        foreign.append("head")
    if foreign:
        ours = ", ".join(f"{name}={getattr(config, name)!r}" for name in foreign)
        raise CheckpointError(f"the released prior has no {ours}; only models without can be exported")
    shapes = _prior_shapes(config)
    names = _prior_names(config)
    return {theirs: _tensor(state, ours, "the prior").reshape(shapes[theirs]).clone() for ours, theirs in names.items()}


def _subscale_of(num_slices: int, kernel: Sequence[int], block: Sequence[int], grid: tuple[int, int] | None) -> Triple:
    """(s_t, s_h, s_w) of a released model."""
    if grid is not None:  # the attention block spans rows and columns of the slice
        s_h, s_w = (max(grid[0] // block[1], 1), max(grid[1] // block[2], 1))
    else:
        s_h, s_w = (max(size - 1, 1) for size in kernel[1:])
    return max(num_slices // (s_h * s_w), 1), s_h, s_w


def _vqvae_names(config: VQVAEConfig) -> dict[str, str]:
    """Released name of each of our tensors, within its own file."""
    r = config.num_residual_blocks
    layers = {"encoder.down1": "layers.0", "encoder.down2": "layers.2", "encoder.mix": "layers.4"}
    layers |= {"decoder.mix": "layers.0", "decoder.up1": f"layers.{r + 2}", "decoder.up2": f"layers.{r + 4}"}
    for block in range(r):
        for part, start in (("encoder", 5), ("decoder", 1)):
            layers[f"{part}.blocks.{block}.spatial"] = f"layers.{start + block}.block.1"
            layers[f"{part}.blocks.{block}.pointwise"] = f"layers.{start + block}.block.3"
    names = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in layers.items() for kind in ("weight", "bias")}
    for j in range(config.num_codebooks):
        prefix = f"ve.{j}." if config.num_codebooks > 1 else ""
        for ours, theirs in (("table", "embedding.weight"), ("total", "running_sum"), ("size", "running_size")):
            names[f"quantizer.books.{j}.{ours}"] = f"{prefix}{theirs}"
    return names


def _prior_names(config: PriorConfig) -> dict[str, str]:
    """Released name of each of our tensors."""
    names = {
        "encoder.context.weight": "encoder.conv.weight",
        "encoder.context.bias": "encoder.conv.bias",
        "encoder.slice_embedding.weight": "encoder.slice_embedding.weight",
        "encoder.project.weight": "encoder.linear_projector.weight",
        "decoder.causal_convolution.weight": "decoder.conv.conv.weight",
        "decoder.causal_convolution.bias": "decoder.conv.conv.bias",
        "decoder.project.weight": "decoder.linear_projector.weight",
        "predictor.norm.weight": "ch_predictor.layer_norm.weight",
        "predictor.norm.bias": "ch_predictor.layer_norm.bias",
    }
    if config.num_classes:
        names["encoder.class_embedding.weight"] = "encoder.class_embedding.weight"
    for part, num_layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for number in range(num_layers):
            ours, theirs = f"{part}.blocks.layers.{number}", f"{part}.block_local_attention.{number}"
            for name, bank in (("time", "dt_bank"), ("row", "dh_bank"), ("column", "dw_bank")):
                names[f"{ours}.attention.bias.{name}"] = f"{theirs}.{bank}"
            for name in ("w_q", "w_k", "w_v"):
                names[f"{ours}.attention.{name}"] = f"{theirs}.mha.{name}"
            names[f"{ours}.attention.out.weight"] = f"{theirs}.mha.proj.weight"
            pairs = (("norm1", "mha.layer_norm"), ("norm2", "ffn.0"), ("linear1", "ffn.1"), ("linear2", "ffn.3"))
            for mine, module in pairs:
                for kind in ("weight", "bias"):
                    names[f"{ours}.{mine}.{kind}"] = f"{theirs}.{module}.{kind}"
    for j in range(config.num_codebooks):
        names[f"decoder.embeddings.{j}.weight"] = f"decoder.ch_embedder.{j}.weight"
        for kind in ("weight", "bias"):
            names[f"predictor.mixers.{j}.{kind}"] = f"ch_predictor.U.{j}.{kind}"
            if config.head == "separate":
                names[f"predictor.outputs.{j}.{kind}"] = f"ch_predictor.P.{j}.{kind}"
            else:
                names[f"predictor.outputs.0.{kind}"] = f"ch_predictor.P.{kind}"
    return names


def _prior_shapes(config: PriorConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every released parameter."""
    with torch.device("meta"):
        ours = Prior(config).state_dict()
    names = _prior_names(config)
    assert set(ours) == set(names)
    shapes = {names[name]: tuple(value.shape) for name, value in ours.items()}
    return {key: (*shape, 1, 1, 1) if key in _PROJECTORS else shape for key, shape in shapes.items()}


def _head(state: State, size: int, embedding_width: int, where: str) -> Literal["separate", "shared", "tied"]:
    if "ch_predictor.P.weight" not in state:
        return "separate"
    rows = _shape(state, "ch_predictor.P.weight", 2, where)[0]
    if size == embedding_width:
        raise CheckpointError(
            f"ch_predictor.P.weight has {rows} rows, and codes and embedding width are both {size}: shared and tied "
            "heads cannot be distinguished"
        )
    return "tied" if rows == embedding_width else "shared"


def _converted(
    given: State, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, Tensor]:
    """Copies of the given tensors under our names and shapes, after checking that nothing is missing or left over."""
    known = set(names.values())
    for key in given:
        if key not in known and not _RECOMPUTED.fullmatch(key):
            raise CheckpointError(f"{where} has a tensor {shown(key)} that the released model does not have")
    result = {}
    for ours, theirs in names.items():
        value = _tensor(given, theirs, where)
        if tuple(value.shape) != shapes[theirs]:
            raise CheckpointError(f"{theirs} of {where} has shape {tuple(value.shape)}, needed {shapes[theirs]}")
        shape = shapes[theirs][:2] if theirs in _PROJECTORS else shapes[theirs]
        result[ours] = value.detach().to(torch.float32).reshape(shape).clone()
    return result


def _tensor(state: State, key: str, where: str) -> Tensor:
    if key not in state:
        raise CheckpointError(f"{where} has no tensor {key}; is this the right file?")
    return state[key]


def _shape(state: State, key: str, ndim: int, where: str) -> tuple[int, ...]:
    shape = tuple(_tensor(state, key, where).shape)
    if len(shape) != ndim or min(shape) < 1:
        raise CheckpointError(f"{key} of {where} has shape {shape}, needed {ndim} axes, none of them empty")
    return shape


def _count(state: State, pattern: str) -> int:
    """How many keys match, each with its own number."""
    return len({match[1] for match in (re.fullmatch(pattern, key) for key in state) if match})


def _config(kind: type[Config], **values: Any) -> Config:
    try:
        return kind(**values)
    except ConfigError as error:
        raise CheckpointError(f"the released model's geometry does not fit: {error}") from error

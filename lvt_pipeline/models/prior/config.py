"""The shape of the prior: every choice the paper and its variants leave open (sections 3.2, 4.4 and 4.5).

Nothing here loads torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.settings import Settings, setting

Triple = tuple[int, int, int]
Reach = Literal["centred", "past"]


@dataclass(frozen=True, kw_only=True)
class PriorModelSettings(Settings):
    """`PriorConfig` before the codes are known, which decide K, n_c, the grid and the cut-offs of adaptive layers.

    The paper's three orders: single frame (frames, 1, 1) with kernel (7, 1, 1); spatiotemporal (4, 2, 2) with
    (5, 3, 3) and block (4, 8, 8); spatial (1, 2, 2) with (1, 3, 3).
    """

    frames: int = setting(16, "Length of a training window in frames (T).", at_least=1)
    grid: tuple[int, int] | None = setting(
        None, "Height and width of the code grid (h, w).", at_least=1, unset="that of the codes"
    )
    num_codebooks: int | None = setting(None, "Number of codebooks (n_c).", at_least=1, unset="that of the codes")
    codebook_size: int | None = setting(
        None, "Number of codes in a codebook (K).", at_least=1, unset="that of the codes"
    )
    subscale: tuple[int, int, int] = setting((16, 1, 1), "Subscale factor (s_t, s_h, s_w).")
    kernel: tuple[int, int, int] = setting((7, 1, 1), "Kernel of the context convolution; odd numbers.")
    kernel_reach: Reach = setting(
        "centred", "Reach of the kernel in time: centred on the frame as in the paper, or the frames before it only."
    )
    block: tuple[int, int, int] | None = setting(None, "Attention block.", unset="the whole slice")
    width: int = setting(512, "Width of the transformer (d).", at_least=1)
    head_width: int = setting(128, "Width of an attention head (d_a).", at_least=1)
    num_heads: int = setting(
        8, "Number of attention heads (n_a); num_heads * head_width may differ from the width.", at_least=1
    )
    embedding_width: int = setting(128, "Width of a code embedding (d_e).", at_least=1)
    encoder_layers: int = setting(8, "Number of encoder layers.", at_least=0)
    decoder_layers: int = setting(8, "Number of decoder layers.", at_least=0)
    attention: Literal["query-key", "key-only", "distance-only"] = setting("query-key", "Kind of attention.")
    decoder_input: Literal["embedding", "adaptive"] = setting(
        "embedding", "Embedding of codes. adaptive: rare codes have narrower embeddings."
    )
    head: Literal["separate", "shared", "tied", "adaptive", "adaptive-tied", "adaptive-tied-projections"] = setting(
        "separate",
        "Output projection of each codebook. adaptive: an adaptive softmax, which can share the embeddings of an "
        "adaptive input and also its projections (paper, Table 8).",
    )
    cutoffs: tuple[int, ...] | None = setting(
        None,
        "Frequency ranks at which a new cluster of codes starts, in adaptive layers.",
        unset="from the frequencies of the codes",
    )
    cluster_ratio: int = setting(
        4, "How many times narrower each cluster is than the one before, in adaptive layers.", at_least=1
    )
    num_classes: int | Literal["auto"] = setting(
        0, "Number of classes; 0: not conditioned on a class. auto: as many as the codes have labels.", at_least=0
    )
    class_dropout: float = setting(
        0.0, "Fraction of training windows that lose their class; needed for guidance.", at_least=0, below=1
    )
    actions: tuple[str, ...] | None = setting(
        None,
        "Side arrays of the code store that the prior is conditioned on, such as action; the row of a frame acts on "
        "the step to the next frame.",
        example="NAME,...",
        unset="not conditioned on actions",
    )
    action_widths: tuple[int, ...] | None = setting(
        None, "Numbers in a row of each of these arrays.", at_least=1, unset="those of the codes"
    )
    action_dropout: float | None = setting(
        None,
        "Fraction of training windows that lose their actions; needed for guidance.",
        at_least=0,
        below=1,
        unset="0.1 with actions",
    )
    encoder_position: bool = setting(False, "Sinusoidal positions in the encoder too; the released model has none.")
    qkv_init: Literal["reference", "standard"] = setting("reference", "Initialization of the attention projections.")
    priming_frames: int = setting(
        1, "Number of first frames (n_prime) that are never a target in training.", at_least=0
    )


@dataclass(frozen=True, kw_only=True)
class PriorConfig(PriorModelSettings):
    """Shape of the prior, with nothing left open. Defaults are the paper's single-frame model."""

    grid: tuple[int, int] = (16, 16)
    num_codebooks: int = 4
    codebook_size: int = 512
    num_classes: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.priming_frames >= self.frames:
            raise ConfigError(f"priming_frames={self.priming_frames} leaves nothing to learn in {self.frames} frames")
        if self.class_dropout and not self.num_classes:
            raise ConfigError("class_dropout needs num_classes; this prior is not conditioned on a class")
        if len(self.action_widths or ()) != len(self.actions or ()):
            raise ConfigError(
                f"actions={self.actions} and action_widths={self.action_widths} need one number per array"
            )
        if self.action_dropout is not None and not self.actions:
            raise ConfigError("action_dropout needs actions; this prior is not conditioned on actions")
        if self.actions and self.is_frame_by_frame and not self.encoder_layers:
            raise ConfigError("actions act inside the encoder's blocks; set encoder_layers to at least 1")
        self._check_clusters()
        slice_shape = require_slices((self.frames, *self.grid), self.subscale, self.kernel, self.kernel_reach)
        if any(size < 1 or length % size for size, length in zip(self.block_shape, slice_shape, strict=True)):
            raise ConfigError(f"attention blocks {self.block} do not tile slices of shape {slice_shape}")

    @property
    def block_shape(self) -> Triple:
        """The attention block: `block`, or the whole slice of a clip of `frames` frames."""
        if self.block is not None:
            return self.block
        (s_t, s_h, s_w), (h, w) = self.subscale, self.grid
        return self.frames // s_t, h // s_h, w // s_w

    @property
    def is_adaptive(self) -> bool:
        """Whether codes are clustered by frequency, which makes `cutoffs` necessary."""
        return uses_clusters(self.decoder_input, self.head)

    @property
    def label_rows(self) -> int:
        """Rows of the class embedding: the classes, and one for "no class" where training drops classes."""
        return self.num_classes + (1 if self.class_dropout else 0)

    @property
    def action_width(self) -> int:
        """Numbers in a row of all side arrays together (d); 0 for a prior that is not conditioned on any."""
        return sum(self.action_widths or ())

    @property
    def drops_actions(self) -> float:
        """Fraction of training windows without their actions; 0 for a prior that is not conditioned on any."""
        dropout = 0.1 if self.action_dropout is None else self.action_dropout
        return dropout if self.actions else 0.0

    @property
    def is_frame_by_frame(self) -> bool:
        """Whether every slice belongs to one frame, so that frames are sampled one after another."""
        return self.subscale[0] == self.frames > 1

    @property
    def action_steps(self) -> int:
        """How many actions before a frame are read: all since the earliest frame that its context or slice shows."""
        reach = self.kernel[0] if self.kernel_reach == "past" else self.kernel[0] // 2
        return max(1, min(reach, self.frames - 1)) if self.is_frame_by_frame else max(self.subscale[0], reach)

    @property
    def block_options(self) -> dict[str, Any]:
        """What the transformer blocks of encoder and decoder have in common."""
        return {
            "width": self.width,
            "num_heads": self.num_heads,
            "head_width": self.head_width,
            "kind": self.attention,
            "qkv_init": self.qkv_init,
        }

    def _check_clusters(self) -> None:
        if self.head in ("adaptive-tied", "adaptive-tied-projections") and self.decoder_input != "adaptive":
            raise ConfigError(f'head="{self.head}" shares the embeddings of decoder_input="adaptive"; set that too')
        if not self.is_adaptive:
            if self.cutoffs is not None:
                raise ConfigError(f"cutoffs={list(self.cutoffs)} needs an adaptive input or head")
            return
        if not self.cutoffs:
            raise ConfigError("an adaptive input or head needs cutoffs, such as [218, 400] of 512 codes")
        edges = (0, *self.cutoffs, self.codebook_size)
        if any(low >= high for low, high in pairwise(edges)):
            raise ConfigError(f"cutoffs={list(self.cutoffs)} must rise between 1 and codebook_size={edges[-1]}")


def uses_clusters(decoder_input: str, head: str) -> bool:
    """Whether codes are clustered by frequency."""
    return decoder_input == "adaptive" or head.startswith("adaptive")


def require_slices(shape: Triple, factor: Triple, kernel: Triple, reach: Reach) -> Triple:
    """The shape of a slice of a video of codes.

    Raises:
        ConfigError: the factor does not divide the shape, or the kernel cannot be used with it.
    """
    for axis, length, stride, size in zip(("frames", "rows", "columns"), shape, factor, kernel, strict=True):
        if length < 1 or stride < 1 or length % stride:
            raise ConfigError(f"the subscale factor {stride} does not divide {length} {axis}")
        if size < 1 or (size % 2 == 0 and not (reach == "past" and axis == "frames")):
            raise ConfigError(f"context kernel {kernel} must have odd sizes")
    if reach == "past" and factor != (shape[0], 1, 1):
        raise ConfigError(
            f'kernel_reach="past" needs one frame per slice, subscale {(shape[0], 1, 1)}, found {factor}: other '
            "orders also read the present frame"
        )
    return shape[0] // factor[0], shape[1] // factor[1], shape[2] // factor[2]

"""The shape of the prior: every choice the paper and its variants leave open (sections 3.2, 4.4 and 4.5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from lvt_pipeline.config import LATER
from lvt_pipeline.errors import ConfigError
from lvt_pipeline.models.prior.subscale import Triple, subscale
from lvt_pipeline.settings import check_fields


@dataclass(frozen=True, kw_only=True)
class PriorModelSettings:
    """`PriorConfig` before the codes are known, which decide K, n_c, the grid and the cut-offs of adaptive layers.

    The paper's three orders: single frame (frames, 1, 1) with kernel (7, 1, 1); spatiotemporal (4, 2, 2) with
    (5, 3, 3) and block (4, 8, 8); spatial (1, 2, 2) with (1, 3, 3).
    """

    frames: int = 16  # T
    grid: tuple[int, int] | None = None  # (h, w); unset: that of the codes
    num_codebooks: int | None = None  # n_c; unset: that of the codes
    codebook_size: int | None = None  # K; unset: that of the codes
    subscale: tuple[int, int, int] = (16, 1, 1)  # (s_t, s_h, s_w)
    kernel: tuple[int, int, int] = (7, 1, 1)  # of the context convolution, odd
    # In time, the kernel lies around the frame as in the paper, or only on the frames before it.
    kernel_reach: Literal["centred", "past"] = field(default="centred", metadata=LATER)
    block: tuple[int, int, int] | None = None  # attention block; unset: the whole slice
    width: int = 512  # d
    head_width: int = 128  # d_a
    num_heads: int = 8  # n_a; num_heads * head_width need not equal the width
    embedding_width: int = 128  # d_e
    encoder_layers: int = 8
    decoder_layers: int = 8
    attention: Literal["query-key", "key-only", "distance-only"] = "query-key"
    # "adaptive": rare codes get narrower embeddings.
    decoder_input: Literal["embedding", "adaptive"] = field(default="embedding", metadata=LATER)
    # The output projection P of each codebook: "adaptive" is an adaptive softmax, which can share the embeddings of an
    # adaptive input and also its projections (paper, Table 8).
    head: Literal["separate", "shared", "tied", "adaptive", "adaptive-tied", "adaptive-tied-projections"] = "separate"
    # Of adaptive layers: the frequency ranks at which a new cluster of codes starts.
    cutoffs: tuple[int, ...] | None = field(default=None, metadata=LATER)
    # Of adaptive layers: each cluster is so many times narrower than the one before.
    cluster_ratio: int = field(default=4, metadata=LATER)
    num_classes: int = 0  # 0: not conditioned on a class
    # Share of training windows that lose their class; needed for guidance when sampling.
    class_dropout: float = field(default=0.0, metadata=LATER)
    encoder_position: bool = False  # sinusoidal positions in the encoder too; the released model has none
    qkv_init: Literal["reference", "standard"] = "reference"
    priming_frames: int = 1  # n_prime: frames that are never a target in training

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class PriorConfig(PriorModelSettings):
    """Shape of the prior, with nothing left open. Defaults are the paper's single-frame model."""

    grid: tuple[int, int] = (16, 16)  # (h, w)
    num_codebooks: int = 4  # n_c
    codebook_size: int = 512  # K

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("frames", "num_codebooks", "codebook_size", "width", "head_width", "num_heads", "embedding_width")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("encoder_layers", "decoder_layers", "num_classes", "priming_frames"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if self.priming_frames >= self.frames:
            raise ConfigError(f"priming_frames={self.priming_frames} leaves nothing to learn in {self.frames} frames")
        if not 0 <= self.class_dropout < 1:
            raise ConfigError(f"class_dropout={self.class_dropout} must be at least 0 and below 1")
        if self.class_dropout and not self.num_classes:
            raise ConfigError("class_dropout needs num_classes; this prior is not conditioned on a class")
        self._check_clusters()
        geometry = subscale((self.frames, *self.grid), self.subscale, self.kernel, self.kernel_reach)
        slice_shape = geometry.slice_shape
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
        if self.cluster_ratio < 1:
            raise ConfigError(f"cluster_ratio={self.cluster_ratio} must be at least 1")
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

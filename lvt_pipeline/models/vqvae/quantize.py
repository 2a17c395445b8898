"""Vector quantisation of frame latents: sliced codebooks, trained by exponential moving averages (paper, section 3.1).

The paper's "decomposed" quantisation splits the D latent channels, in order, into n_c groups; each group has its own
table of K vectors. The tables receive no gradient: every training forward moves them towards the mean of the latents
that chose them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lvt_pipeline.errors import ConfigError, ShapeError
from lvt_pipeline.models.vqvae.kmeans import kmeans

# A code is resampled with an EMA count of this many thresholds: enough to live for log(2)/(1 - decay) steps unused.
RESAMPLED_COUNT = 2.0

# Averages have settled when their start weighs less than this. The reference start makes unused code vectors about 1e3
# times as long as latents; after as many steps they are back among them.
SETTLED_WEIGHT = 1e-3


class Quantized(NamedTuple):
    """What quantisation gives back.

    Attributes:
        vectors: float32 (B, D, h, w), the chosen code vectors; gradients pass straight through to the latents.
        codes: int64 (B, h, w, n_c) in [0, K).
        commitment_loss: scalar, mean squared distance between latents and code vectors, which get no gradient.
    """

    vectors: Tensor
    codes: Tensor
    commitment_loss: Tensor


def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the closest codebook entry for every latent vector.

    Args:
        latents: encoder output, float32 (B, D, h, w), any range.
        codebook: float32 (K, D).

    Returns:
        int64 (B, h, w) in [0, K). Ties go to the lowest index.

    Raises:
        ShapeError: the two arguments disagree on D.

    Source: Rakhimov et al. 2020, section 3.1.
    """
    batch, width, h, w = latents.shape
    if width != codebook.shape[1]:
        raise ShapeError(f"latents have D={width} but the codebook has D={codebook.shape[1]}")
    flat = rearrange(latents, "b d h w -> (b h w) d")
    # |z - e|^2 without |z|^2, which is the same for every e; avoids a (B*h*w, K, D) tensor.
    scores = codebook.pow(2).sum(1) - 2 * flat @ codebook.T
    return scores.argmin(1).reshape(batch, h, w)


class EMACodebook(nn.Module):
    """One table of K code vectors that follows the latents by exponential moving averages.

    `table`, `total` and `size` are buffers that never share memory: with shared memory the update multiplies its own
    result and overflows within a hundred steps.

    Args:
        codebook_size: K.
        width: length of a code vector.
        decay: share of the old statistics kept per step.
        epsilon: Laplace smoothing of the counts.
        ema_init: "reference" starts the counts at 0, so that a code not chosen in the first step is flung far out and
            sweeps back through the data hundreds of steps later; "consistent" starts them at 1, so that an unchosen
            code stays where it is.
        dead_code: "none", or "resample": a code whose EMA count falls below `dead_code_threshold` times the mean count
            is replaced by a random latent of the batch.
        dead_code_threshold: share of the mean EMA count.
    """

    table: Tensor
    total: Tensor
    size: Tensor
    updates: Tensor

    def __init__(
        self,
        codebook_size: int,
        width: int,
        *,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        ema_init: Literal["reference", "consistent"] = "reference",
        dead_code: Literal["none", "resample"] = "none",
        dead_code_threshold: float = 0.03,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.epsilon = epsilon
        self.dead_code = dead_code
        self.dead_code_threshold = dead_code_threshold
        bound = 1 / codebook_size
        table = torch.empty(codebook_size, width).uniform_(-bound, bound)
        self.register_buffer("table", table)
        self.register_buffer("total", table.clone())
        self.register_buffer("size", torch.full((codebook_size,), float(ema_init == "consistent")))
        # Counts updates: the seed of resampling, so that a resumed run draws what an uninterrupted one would.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.table.shape[0]

    @property
    def is_settled(self) -> bool:
        """Whether the averages have forgotten where they started."""
        return self.decay ** int(self.updates) < SETTLED_WEIGHT

    def lookup(self, codes: Tensor) -> Tensor:
        """Code vectors of `codes` (B, h, w), as float32 (B, D, h, w)."""
        return rearrange(F.embedding(codes, self.table), "b h w d -> b d h w")

    @torch.no_grad()
    def start_from(
        self, vectors: Tensor, step_size: int, generator: torch.Generator, advance: Callable[[], object] = lambda: None
    ) -> None:
        """Make the table the k-means centres of `vectors`, as if the averages had followed them for long.

        With data-parallel workers, all take the result of worker 0.

        Args:
            vectors: float32 (N, width), latents of training frames.
            step_size: vectors in a training step; sets the scale of the counts.
            generator: on the CPU.
            advance: see `kmeans`.
        """
        centres, sizes = kmeans(vectors, self.codebook_size, generator, advance=advance)
        # At least one, as with the consistent start, so that a centre that nothing chooses stays where it is.
        counts = (sizes * (step_size / len(vectors))).to(self.size.dtype).clamp(min=1)
        if _is_distributed():
            torch.distributed.broadcast(centres, src=0)
            torch.distributed.broadcast(counts, src=0)
        self.table.copy_(centres)
        self.size.copy_(counts)
        self.total.copy_(centres * counts[:, None])

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor) -> None:
        """Move the statistics by one step and recompute the table.

        Counts and sums are added up over data-parallel workers first, so every worker ends with the same table.

        Args:
            latents: float32 (B, D, h, w).
            codes: int64 (B, h, w), the codes of the latents under the table before this step.
        """
        flat = rearrange(latents.detach(), "b d h w -> (b h w) d")
        chosen = codes.reshape(-1)
        counts = torch.zeros_like(self.size).index_add_(0, chosen, torch.ones_like(chosen, dtype=self.size.dtype))
        sums = torch.zeros_like(self.total).index_add_(0, chosen, flat)
        if _is_distributed():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        self.size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        if self.dead_code == "resample":
            self._resample_dead_codes(flat)
        number = self.size.sum()
        smoothed = (self.size + self.epsilon) / (number + self.codebook_size * self.epsilon) * number
        self.table.copy_(self.total / smoothed[:, None])
        self.updates += 1

    def _resample_dead_codes(self, flat: Tensor) -> None:
        threshold = self.dead_code_threshold * self.size.mean()
        dead = self.size < threshold
        generator = torch.Generator().manual_seed(int(self.updates))
        workers, rank = (
            (torch.distributed.get_world_size(), torch.distributed.get_rank()) if _is_distributed() else (1, 0)
        )
        # Latents of the whole batch, each of which one worker has, so that their number makes no difference.
        picked = torch.randint(workers * len(flat), (self.codebook_size,), generator=generator).to(flat.device)
        owner, row = picked // len(flat), picked % len(flat)
        candidates = torch.where((owner == rank)[:, None], flat[row].to(self.total.dtype), 0.0)
        if workers > 1:
            torch.distributed.all_reduce(candidates)
        count = RESAMPLED_COUNT * threshold
        self.size.copy_(torch.where(dead, count, self.size))
        self.total.copy_(torch.where(dead[:, None], candidates * count, self.total))


class SlicedQuantizer(nn.Module):
    """n_c codebooks, each quantising its own group of D / n_c latent channels.

    Raises:
        ConfigError: the width does not divide into that many codebooks.
    """

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        code_width: int,
        *,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        ema_init: Literal["reference", "consistent"] = "reference",
        dead_code: Literal["none", "resample"] = "none",
        dead_code_threshold: float = 0.03,
    ) -> None:
        super().__init__()
        if code_width % num_codebooks:
            raise ConfigError(f"code_width={code_width} does not divide into {num_codebooks} codebooks")
        self.books = nn.ModuleList(
            EMACodebook(
                codebook_size,
                code_width // num_codebooks,
                decay=decay,
                epsilon=epsilon,
                ema_init=ema_init,
                dead_code=dead_code,
                dead_code_threshold=dead_code_threshold,
            )
            for _ in range(num_codebooks)
        )

    @property
    def codebooks(self) -> list[EMACodebook]:
        """The codebooks in channel order."""
        return [book for book in self.books if isinstance(book, EMACodebook)]

    @property
    def is_settled(self) -> bool:
        """Whether the averages of all codebooks have forgotten where they started."""
        return all(book.is_settled for book in self.codebooks)

    def deciding_weights(self) -> dict[str, Tensor]:
        """What decides the codes of latents: the tables."""
        return {f"table.{j}": book.table for j, book in enumerate(self.codebooks)}

    def start_from(
        self, latents: Tensor, step_size: int, generator: torch.Generator, advance: Callable[[], object] = lambda: None
    ) -> None:
        """Start every codebook from its channels of latents float32 (B, D, h, w). See `EMACodebook.start_from`."""
        groups = latents.chunk(len(self.books), dim=1)
        for group, book in zip(groups, self.codebooks, strict=True):
            book.start_from(rearrange(group, "b d h w -> (b h w) d").contiguous(), step_size, generator, advance)

    def codes(self, latents: Tensor) -> Tensor:
        """Nearest codes, int64 (B, h, w, n_c), of latents float32 (B, D, h, w)."""
        groups = latents.chunk(len(self.books), dim=1)
        nearest = [nearest_codes(group, book.table) for group, book in zip(groups, self.codebooks, strict=True)]
        return torch.stack(nearest, dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Code vectors float32 (B, D, h, w) of codes int64 (B, h, w, n_c)."""
        return torch.cat([book.lookup(codes[..., j]) for j, book in enumerate(self.codebooks)], dim=1)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise latents float (B, D, h, w); in training mode the tables then move by one step.

        The vectors come from the tables before the step, the commitment loss from the tables after it.
        """
        # Nearest codes are compared in full precision, whatever the caller's autocast.
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            codes = self.codes(latents.detach())
            vectors = self.lookup(codes)
            if self.training:
                groups = latents.chunk(len(self.books), dim=1)
                for j, book in enumerate(self.codebooks):
                    book.update(groups[j], codes[..., j])
            commitment_loss = F.mse_loss(latents, self.lookup(codes) if self.training else vectors)
        # The difference is exactly zero, so the decoder sees the code vectors and the gradient reaches the latents.
        return Quantized(vectors + (latents - latents.detach()), codes, commitment_loss)


def integer_codes(
    codes: Tensor | np.ndarray[Any, Any], layout: str, ndim: int, num_codebooks: int, codebook_size: int | None
) -> Tensor:
    """Codes as int64, after checking that they are codes.

    Args:
        layout: the expected axes, for the message; the last one is the codebooks.
        ndim: number of expected axes.
        codebook_size: K, or None to leave the range unchecked.

    Raises:
        ShapeError: not integers, another shape, or values outside [0, K).
    """
    if not isinstance(codes, (Tensor, np.ndarray)):
        raise ShapeError(f"codes are an array of integers {layout}, found {type(codes).__name__}")
    if str(codes.dtype).removeprefix("torch.").rstrip("0123456789") not in ("int", "uint"):
        raise ShapeError(f"codes are integers {layout}, found {codes.dtype} {tuple(codes.shape)}")
    tensor = codes if isinstance(codes, Tensor) else torch.from_numpy(codes.astype(np.int64))
    if tensor.ndim != ndim or tensor.shape[-1] != num_codebooks:
        raise ShapeError(f"codes are {layout} with n_c={num_codebooks}, found {tuple(codes.shape)}")
    tensor = tensor.to(torch.int64)
    if codebook_size is not None and tensor.numel() and (int(tensor.min()) < 0 or int(tensor.max()) >= codebook_size):
        raise ShapeError(
            f"codes must be in [0, {codebook_size}), found values from {int(tensor.min())} to {int(tensor.max())}"
        )
    return tensor


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()

"""How a code is drawn from logits and a random number: temperature, top-k, top-p and classifier-free guidance.

The paper draws from the model's own distribution (temperature 1, nothing else); so does the default here. What else is
asked for applies in the order guidance, temperature, top-k, top-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lvt_pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DrawingRule:
    """What is done to the model's distribution before a code is drawn.

    Attributes:
        temperature: divides the logits, one number or one per codebook.
        top_k: only the k likeliest codes; ties keep the lowest codes. 1 is greedy.
        top_p: only the likeliest codes that together hold this probability, at least one.
        guidance: strength w of classifier-free guidance, logits = none + w * (class - none) (Ho and Salimans 2022); 1
            leaves the class's own logits.

    Raises:
        ConfigError: a value is out of range.
    """

    temperature: float | tuple[float, ...] = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        temperatures = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        if not temperatures or not all(value > 0 for value in temperatures):
            raise ConfigError(f"temperature={self.temperature} must be above 0")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be above 0 and at most 1")

    @property
    def streams(self) -> int:
        """How often each clip passes through the model: with its class, and for guidance also without."""
        return 1 if self.guidance is None else 2

    def check_codebooks(self, num_codebooks: int) -> None:
        """Refuse a number of temperatures that does not fit.

        Raises:
            ConfigError: neither one nor `num_codebooks`.
        """
        if isinstance(self.temperature, tuple) and len(self.temperature) not in (1, num_codebooks):
            raise ConfigError(
                f"temperature has {len(self.temperature)} values for {num_codebooks} codebooks; give one, or one each"
            )

    def draw(self, logits: Tensor, numbers: Tensor, codebook: int) -> Tensor:
        """Codes int64 (B,) for logits (streams * B, K), conditional ones first, and numbers (B,)."""
        if self.guidance is not None:
            conditional, unconditional = logits.double().log_softmax(-1).chunk(2)
            logits = unconditional + self.guidance * (conditional - unconditional)
        if isinstance(self.temperature, tuple):
            temperature = self.temperature[codebook if len(self.temperature) > 1 else 0]
        else:
            temperature = self.temperature
        return draw(logits, numbers, temperature, self.top_k, self.top_p)


def draw(
    logits: Tensor, numbers: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """First code whose cumulative probability exceeds its number: int64 (B,) for logits (B, K) and numbers (B,)."""
    probabilities = (logits.double() / temperature).softmax(-1)
    if top_k is None and top_p is None:
        cumulative = probabilities.cumsum(-1)
    else:
        kept = _filtered(probabilities, top_k, top_p).cumsum(-1)
        cumulative = kept / kept[..., -1:]
    return (cumulative <= numbers[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)


def as_rule(
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: float | None = None,
) -> DrawingRule:
    """The rule of a call's arguments.

    Raises:
        ConfigError: a value is out of range.
    """
    one_each = tuple(temperature) if isinstance(temperature, Sequence) else temperature
    return DrawingRule(temperature=one_each, top_k=top_k, top_p=top_p, guidance=guidance)


def _filtered(probabilities: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Probabilities with those of unlikely codes at 0, not normalised."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered = ordered.clone()
        ordered[..., top_k:] = 0
    if top_p is not None:
        ordered = ordered / ordered.sum(-1, keepdim=True)
        # A code stays if those before it do not hold the share yet.
        ordered = torch.where(ordered.cumsum(-1) - ordered < top_p, ordered, 0)
    return torch.zeros_like(probabilities).scatter_(-1, order, ordered)

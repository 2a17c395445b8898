"""How a code is sampled from logits and a random number: temperature, top-k, top-p and classifier-free guidance.

The paper samples from the model's own distribution (temperature 1, nothing else), and so does the default. The other
options apply in the order guidance, temperature, top-k, top-p. torch is not imported here, so that settings can be
checked without loading it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lvt_pipeline.errors import ConfigError
from lvt_pipeline.models.arguments import real_number, shown, whole_number

if TYPE_CHECKING:
    from torch import Tensor

# Beyond these, a distribution has long become the likeliest code or uniform, and float64 is near its limits.
COLDEST, HOTTEST = 1e-6, 1e6
STRONGEST_GUIDANCE = 1e6


@dataclass(frozen=True, kw_only=True)
class SamplingRule:
    """Changes to the model's distribution before a code is sampled.

    Attributes:
        temperature: divides the logits, one number or one per codebook, in [1e-6, 1e6].
        top_k: only the k likeliest codes; ties keep the lowest codes. 1 is greedy.
        top_p: only the likeliest codes that together hold this probability, at least one.
        guidance: strength w of classifier-free guidance, logits = none + w * (class - none) (Ho and Salimans 2022); 1
            leaves the class's own logits.

    Raises:
        ConfigError: a value is not a number, not finite or out of range.
    """

    temperature: float | Sequence[float] = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        self._set("temperature", _temperatures(self.temperature))
        if self.top_k is not None:
            self._set("top_k", whole_number("top_k", self.top_k, minimum=1))
        if self.top_p is not None:
            self._set("top_p", real_number("top_p", self.top_p))
            if not 0 < self.top_p <= 1:
                raise ConfigError(f"top_p={self.top_p} must be above 0 and at most 1")
        if self.guidance is not None:
            self._set("guidance", real_number("guidance", self.guidance))
            if abs(self.guidance) > STRONGEST_GUIDANCE:
                raise ConfigError(f"guidance={self.guidance} must be between -{STRONGEST_GUIDANCE:g} and 1e+06")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # NumPy's numbers as Python's

    @property
    def streams(self) -> int:
        """How often each clip passes through the model: with its class, and for guidance also without."""
        return 1 if self.guidance is None else 2

    def require_codebooks(self, num_codebooks: int) -> None:
        """Refuse a number of temperatures that does not fit.

        Raises:
            ConfigError: neither one nor `num_codebooks`.
        """
        if isinstance(self.temperature, tuple) and len(self.temperature) not in (1, num_codebooks):
            raise ConfigError(
                f"temperature has {len(self.temperature)} values for {num_codebooks} codebooks; give one, or one each"
            )

    def sample(self, logits: Tensor, numbers: Tensor, codebook: int = 0) -> Tensor:
        """Codes int64 (B,) for logits (streams * B, K), conditional ones first, and numbers float64 (B,) in [0, 1)."""
        return first_above(self.cumulative(logits, codebook), numbers)

    def cumulative(self, logits: Tensor, codebook: int = 0) -> Tensor:
        """Cumulative probabilities of the codes, float64 (B, K), for logits (streams * B, K).

        The last one is not finite where the logits hold NaN or +infinity.
        """
        logits = logits.double()
        if self.guidance is not None:
            conditional, unconditional = logits.log_softmax(-1).chunk(2)
            logits = unconditional + self.guidance * (conditional - unconditional)
        temperature = self._temperature_of(codebook)
        probabilities = (logits if temperature == 1 else logits / temperature).softmax(-1)
        if self.top_k is None and self.top_p is None:
            return probabilities.cumsum(-1)
        kept = self._kept(probabilities).cumsum(-1)
        return kept / kept[..., -1:]

    def _temperature_of(self, codebook: int) -> float:
        if isinstance(self.temperature, Sequence):
            return self.temperature[codebook if len(self.temperature) > 1 else 0]
        return self.temperature

    def _kept(self, probabilities: Tensor) -> Tensor:
        """Probabilities with those of unlikely codes at 0, not normalised."""
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            ordered = ordered.clone()
            ordered[..., min(self.top_k, ordered.shape[-1]) :] = 0
        if self.top_p is not None:
            ordered = ordered / ordered.sum(-1, keepdim=True)
            # A code stays if those before it do not hold the share yet.
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self.top_p, 0)
        return probabilities.new_zeros(probabilities.shape).scatter_(-1, order, ordered)


def first_above(cumulative: Tensor, numbers: Tensor) -> Tensor:
    """First code whose cumulative probability exceeds its number: int64 (B,) for (B, K) and (B,)."""
    return (cumulative <= numbers[:, None]).sum(-1).clamp(max=cumulative.shape[-1] - 1)


def _temperatures(value: object) -> float | tuple[float, ...]:
    if isinstance(value, Iterable) and not isinstance(value, str):
        several = tuple(_temperature(item) for item in value)
        if not several:
            raise ConfigError("temperature has no value; give one, or one per codebook")
        return several
    return _temperature(value)


def _temperature(value: object) -> float:
    number = real_number("temperature", value)
    if number <= 0:
        raise ConfigError(f"temperature={shown(value)} must be above 0; top_k=1 takes the likeliest code")
    if not COLDEST <= number <= HOTTEST:
        raise ConfigError(
            f"temperature={shown(value)} must be between {COLDEST:g} and {HOTTEST:g}; top_k=1 takes the likeliest code"
        )
    return number

"""Scaled rotary frequencies, by which models read rows beyond their first training.

A pair that turns often within the first training's rows keeps its frequency; a pair
that turns rarely is slowed by the factor; between the two the share changes linearly.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """The scaling of a checkpoint.

    "llama3" is Llama 3.1's, linear in the number of turns; "yarn" is that of arXiv
    2309.00071, linear in the number of the pair. Both as in transformers'
    `modeling_rope_utils`.
    """

    kind: str  # "llama3" or "yarn"
    factor: float  # divisor of the frequencies of rarely turning pairs
    original_length: int  # tokens in a row of the first training
    slow: float  # turns within these tokens, below which the factor holds in full
    fast: float  # turns within these tokens, above which nothing changes
    attention_factor: float = 1.0  # factor of queries and of keys after their turn
    truncate: bool = True  # True rounds yarn's bounds outwards to whole pairs

    def __post_init__(self) -> None:
        if self.kind not in ("llama3", "yarn"):
            raise ValueError(f"rope_scaling: kind={self.kind!r}: not llama3 or yarn.")
        for field in ("factor", "slow", "fast", "attention_factor"):
            number = getattr(self, field)
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if not is_number or not 0 < number < math.inf:
                raise ValueError(f"rope_scaling: {field}={number!r}: not above 0.")
        length = self.original_length
        if type(length) is not int or not 1 <= length < 2**63:
            raise ValueError(f"rope_scaling: original_length={length!r}: not above 0.")
        if not isinstance(self.truncate, bool):
            raise ValueError(f"rope_scaling: truncate={self.truncate!r}: not a bool.")
        if self.slow >= self.fast:
            raise ValueError(f"rope_scaling: {self.slow=} is not below {self.fast=}.")

    def frequencies(self, base: float, dims: int) -> Float[np.ndarray, " C"]:
        """Return the scaled frequencies of the pairs (C = dims / 2), float64."""
        frequencies = base ** -(np.arange(0, dims, 2) / dims)
        kept: np.ndarray  # the share of the frequency that is not divided
        if self.kind == "llama3":
            turns = self.original_length * frequencies / (2 * np.pi)
            kept = (turns - self.slow) / (self.fast - self.slow)
        else:
            first, last = (
                dims
                * math.log(self.original_length / (2 * math.pi * turns))
                / (2 * math.log(base))
                for turns in (self.fast, self.slow)
            )
            if self.truncate:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, dims - 1)
            last += 0.001 * (first == last)
            kept = 1 - (np.arange(dims // 2) - first) / (last - first)
        kept = np.clip(kept, 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)

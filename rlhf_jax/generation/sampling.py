"""From logits to the next token: temperature, top-k, top-p, minimum length.

Letters: B batch, V vocabulary.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

NEVER = -1e30  # a finite minus infinity: exp(NEVER) is 0, and 0 * NEVER is not NaN
SMALLEST = float(np.finfo(np.float32).tiny)  # devices flush smaller numbers to 0
BLOCK = 128  # tokens per block of the cumulative distribution


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The options of sampling. Hashable, since each is compiled into the program.

    Args:
        max_new_tokens: the length at which a response is cut.
        temperature: divides the logits; 0 is greedy, as is what float32 rounds to 0.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability
            (arXiv 1904.09751), after top-k; 1 keeps all.
        min_new_tokens: the number of tokens before which no stop token is sampled.
        stop_ids: the tokens that end a response and belong to it.
        pad_id: the token after the end of a response.
        num_tokens: the size of the vocabulary; the logits beyond it (of a padded
            vocabulary) belong to no token.
    """

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_new_tokens: int
    stop_ids: tuple[int, ...]
    pad_id: int
    num_tokens: int

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"{self.max_new_tokens=} must be at least 1.")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"{self.temperature=} must be 0 (greedy) or positive, and finite."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"{self.top_p=} must be above 0 and at most 1.")
        if not 0 <= self.top_k <= self.num_tokens:
            raise ValueError(f"{self.top_k=} must be 0 (off) up to {self.num_tokens=}.")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"{self.min_new_tokens=} must lie in 0..{self.max_new_tokens=}."
            )
        bad = [i for i in (*self.stop_ids, self.pad_id) if not 0 <= i < self.num_tokens]
        if bad:
            raise ValueError(f"stop or pad ids {bad} are outside {self.num_tokens=}.")


def sampling_with(
    tokenizer,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Sampling:
    """Return the options of sampling with a tokenizer's ids, by default from the whole
    distribution."""
    return Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_new_tokens=0,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        num_tokens=tokenizer.vocab_size,
    )


class Sampled(NamedTuple):
    """Sampled tokens with their log-probabilities: `logprobs` under the distribution
    that was sampled from, `model_logprobs` under the model at temperature 1 without
    top-k and top-p."""

    tokens: Int[Array, " B"]
    logprobs: Float[Array, " B"]
    model_logprobs: Float[Array, " B"]


def sample(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    sampling: Sampling,
    allow_stop: Bool[Array, ""] | Bool[Array, " B"],
) -> Sampled:
    """Sample one token for each row with the row's own key."""
    logits = logits.astype(jnp.float32)[:, : sampling.num_tokens]
    stops = jnp.isin(jnp.arange(sampling.num_tokens), jnp.array(sampling.stop_ids, int))
    allowed = jnp.where(stops[None] & ~allow_stop.reshape(-1, 1), NEVER, logits)
    if sampling.temperature < SMALLEST:
        tokens = allowed.argmax(-1).astype(jnp.int32)
        logprobs = jnp.zeros(len(tokens))
    else:
        filtered = filter_logits(_heat(allowed, sampling.temperature), sampling)
        tokens = _categorical(filtered, keys)
        logprobs = _logprob(filtered, tokens)
    return Sampled(tokens, logprobs, _logprob(logits, tokens))


def _heat(logits, temperature):
    """Divide logits by the temperature. At a temperature other than 1 the row's largest
    logit is subtracted first, so that no quotient overflows; the distribution depends
    on differences alone. NEVER stays unchanged."""
    if temperature == 1:
        return logits
    largest = logits.max(-1, keepdims=True)
    heated = jnp.maximum((logits - largest) / temperature, NEVER)
    return jnp.where(logits <= NEVER, NEVER, heated)


def filter_logits(
    logits: Float[Array, "B V"], sampling: Sampling
) -> Float[Array, "B V"]:
    """Replace the logits that top-k and top-p exclude with NEVER. Ties are kept."""
    if not sampling.top_k and sampling.top_p == 1:
        return logits
    if not sampling.top_k:
        return jnp.where(_nucleus(logits, sampling.top_p), logits, NEVER)
    best = jax.lax.top_k(logits, sampling.top_k)[0]  # descending
    kept = best
    if sampling.top_p < 1:
        probabilities = jax.nn.softmax(best, axis=-1)
        before = (
            jnp.cumsum(probabilities, axis=-1) - probabilities
        )  # 0 for the likeliest
        kept = jnp.where(before < max(sampling.top_p, SMALLEST), best, jnp.inf)
    # A minimum instead of the last column, for which the compiler sorts all logits.
    return jnp.where(logits >= kept.min(-1, keepdims=True), logits, NEVER)


def _nucleus(logits, top_p):
    """Return the mask [B, V] of the likeliest tokens that together reach `top_p`.

    The threshold is the largest float32 logit such that the tokens at or above it reach
    `top_p`. The search is a bisection over the bits of the logits, mapped to integers
    of the same order, because sorting a vocabulary takes longer than a whole model.
    """
    logits = jnp.where(logits == 0, 0.0, logits)  # -0.0 equals 0.0 and has other bits
    bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    order = jnp.where(bits < sign, bits | sign, ~bits)
    probabilities = jax.nn.softmax(logits, axis=-1)

    def halve(_, bounds):
        low, high = bounds  # tokens from low on reach top_p, from high on not
        middle = low + (high - low) // 2
        mass = jnp.where(order >= middle[:, None], probabilities, 0.0).sum(-1)
        reached = mass >= top_p
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    bounds = order.min(-1), order.max(-1) + 1
    low, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    return order >= low[:, None]


def _categorical(logits, keys):
    """Sample by inverting the cumulative distribution at one uniform number per row.

    One random number instead of the V of the Gumbel trick, and cumulative sums over
    blocks of the vocabulary and then within one block, make sampling several times
    faster on a CPU; the resolution of a float32 uniform, 2^-23, is far below sampling
    noise.
    """
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, -logits.shape[-1] % BLOCK)))
    weights = weights.reshape(len(weights), -1, BLOCK)
    blocks = jnp.cumsum(weights.sum(-1), axis=-1)
    target = jax.vmap(jax.random.uniform)(keys) * blocks[:, -1]
    block = _first_above(blocks, target)
    before = jnp.where(block > 0, _pick(blocks, block - 1), 0.0)
    within = jnp.cumsum(jax.vmap(jnp.take, (0, 0, None))(weights, block, 0), axis=-1)
    return block * BLOCK + _first_above(within, target - before)


def _first_above(cumulative, target):
    """Return the first index [B] at which the cumulative sum [B, N] exceeds the target
    [B]; where rounding leaves no such index, the last index that adds to the sum."""
    first = (cumulative <= target[:, None]).sum(-1, dtype=jnp.int32)
    last = (cumulative < cumulative[:, -1:]).sum(-1, dtype=jnp.int32)
    return jnp.minimum(first, last)


def _logprob(logits, tokens):
    return _pick(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)


def _pick(values, index):  # [B, N], [B] -> [B]
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]

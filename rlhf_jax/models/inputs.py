"""Checks of a model's weights and of its input batches on the host."""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.parallel.sharding import fetch


def check_finite(model, where: str) -> None:
    """Refuse weights that are NaN or infinite, by name.

    Args:
        model: any pytree of arrays.
        where: the folder of the weights, for the message.

    Raises:
        ValueError: some weights are not finite.
    """
    finite = jax.jit(lambda x: jax.tree.map(lambda x: jnp.isfinite(x).all(), x))(model)
    leaves = jax.tree_util.tree_leaves_with_path(fetch(finite))
    wrong = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, is_finite in leaves
        if not is_finite
    ]
    if wrong:
        names = ", ".join(name.removesuffix(".value") for name in wrong[:5])
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{where} holds weights that are NaN or infinite, in {names}{more}: the "
            "file is broken, its training diverged, or the dtype is too narrow for it."
        )


def check_inputs(
    tokens: np.ndarray, mask: np.ndarray | None, config: ChatGLMConfig
) -> None:
    """Refuse a batch [B, T] that a model would silently misread.

    Raises:
        ValueError: ids outside the vocabulary, rows longer than the context, empty
            rows, masks with holes, and for ChatGLM-6B rows without its start token.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"{tokens.shape=} {tokens.dtype=}: integers [B, T] are needed."
        )
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask)
    if mask.shape != tokens.shape or mask.dtype != bool:
        raise ValueError(f"{mask.shape=} {mask.dtype=}: needs bool, {tokens.shape=}.")
    lengths = mask.sum(axis=1)
    empty = np.flatnonzero(lengths == 0)
    if empty.size:
        raise ValueError(
            f"Rows {empty.tolist()} are empty: the mask is False at all their tokens."
        )
    long = np.flatnonzero(lengths > config.context_length)
    if long.size:
        raise ValueError(
            f"Rows {long.tolist()} have {lengths[long].tolist()} tokens; the model's "
            f"context is {config.context_length}. Truncate them."
        )
    # The real tokens of a row are contiguous if the mask changes to True only once.
    edges = np.diff(mask.astype(np.int8), axis=1, prepend=0)
    holes = np.flatnonzero((edges == 1).sum(axis=1) > 1)
    if holes.size:
        raise ValueError(
            f"The masks of rows {holes.tolist()} have holes: padding belongs on the "
            "left or on the right."
        )
    outside = mask & ((tokens < 0) | (tokens >= config.vocab_size))
    if outside.any():
        rows, places = np.nonzero(outside)
        raise ValueError(
            f"Token {tokens[rows[0], places[0]]} in row {rows[0]} (and {len(rows) - 1} "
            f"more) is outside the vocabulary of {config.vocab_size}: is this the "
            "model's tokenizer?"
        )
    if config.has_prefix:
        without = ~(mask & (tokens == config.start_token)).any(axis=1)
        if without.any():
            raise ValueError(
                f"Rows {np.flatnonzero(without).tolist()} lack the start token "
                f"{config.start_token}, after which ChatGLM-6B writes its response."
            )

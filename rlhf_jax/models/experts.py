"""A mixture of experts in place of the MLP (GLM-4.5, transformers' `glm4_moe`).

A router gives every token a score for every expert, the sigmoid of a product in
float32. A token goes to the experts with the largest scores, after a correction bias
that pre-training has balanced the load with and that stays fixed here. Groups of
experts may be chosen first, by the sum of their two best. The outputs of a token's
experts are summed by its scores, which carry no correction, divided by their sum and
scaled. A shared expert, an ordinary MLP, sees every token. No expert has a limit of
tokens: none is dropped, and padding or other rows change nothing.

Letters: B batch, T tokens, D width, E experts, K experts of a token, F FFN width of an
expert, M = B T K pairs of a token and an expert.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.layers import MLP, normal, quantise_kernel
from rlhf_jax.parallel.mesh import platform
from rlhf_jax.parallel.sharding import activation_spec, layer_specs

ROOM = 2  # of a round of the exchange, see `_exchange`
_routed: contextvars.ContextVar = contextvars.ContextVar("routed", default=(None, None))
_loads: contextvars.ContextVar = contextvars.ContextVar("loads", default=None)


class Correction(nnx.Variable):
    """A variable that pre-training has set and nothing here trains."""


class Router(nnx.Module):
    """The choice of experts, in float32 whatever the model's dtypes are."""

    def __init__(self, config: ChatGLMConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        shape = (c.width, c.num_experts)
        self.kernel = nnx.Param(normal(rngs.params(), shape, 0.02, jnp.float32))
        self.correction = Correction(jnp.zeros(c.num_experts, jnp.float32))

    def __call__(
        self, x: Float[Array, "B T D"], given: Int[Array, "B T K"] | None = None
    ) -> tuple[Int[Array, "B T K"], Float[Array, "B T K"]]:
        """Return the experts of each token and their weights, float32.

        Args:
            given: experts that take the place of the router's choice, which stays where
                they are -1. The weights are the router's in either case.
        """
        c = self.config
        logits = jnp.einsum(
            "btd,de->bte",
            x.astype(jnp.float32),
            self.kernel[...].astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        scores = jax.nn.sigmoid(logits)
        choice = jax.lax.stop_gradient(scores + self.correction[...][None, None])
        if c.expert_groups > 1:
            choice = _within_best_groups(choice, c.expert_groups, c.groups_per_token)
        _, chosen = jax.lax.top_k(choice, c.experts_per_token)
        if given is not None:
            chosen = jnp.where(given < 0, chosen, given.astype(chosen.dtype))
        weights = jnp.take_along_axis(scores, chosen, axis=-1)
        if c.normalise_weights:
            weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
        return chosen, c.routed_scale * weights


def _within_best_groups(
    choice: Float[Array, "B T E"], groups: int, kept: int
) -> Float[Array, "B T E"]:
    """Return the scores with -inf outside each token's best groups."""
    grouped = choice.reshape(*choice.shape[:-1], groups, -1)
    worth = jax.lax.top_k(grouped, 2)[0].sum(-1)
    _, best = jax.lax.top_k(worth, kept)
    is_best = jax.nn.one_hot(best, groups, dtype=bool).any(-2)
    return jnp.where(is_best[..., None], grouped, -jnp.inf).reshape(choice.shape)


class Grouped(nnx.Module):
    """One matrix for each expert: each row is multiplied by the matrix of its
    expert."""

    kernel_scale: nnx.Param | None

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        std: float,
        config: ChatGLMConfig,
        rngs: nnx.Rngs,
    ):
        """Draw the matrices of a shape (E, inputs, outputs...)."""
        self.dtype = config.dtype
        key = rngs.params()
        if config.quantised:
            kernel, scale = quantise_kernel(normal(key, shape, std, jnp.float32), [1])
            self.kernel, self.kernel_scale = nnx.Param(kernel), nnx.Param(scale)
        else:
            self.kernel = nnx.Param(normal(key, shape, std, config.param_dtype))
            self.kernel_scale = None

    def __call__(
        self,
        rows: Float[Array, "M D"],
        experts: Int[Array, " M"],
        sizes: Int[Array, " E"],
    ) -> Float[Array, "M ..."]:
        """Return [M, outputs...] for rows [M, inputs] in the order of their experts.

        Args:
            experts: the expert of each row, [M], ascending; E and above is none, and
                what comes out of such a row is arbitrary.
            sizes: the number of rows of each expert, [E].
        """
        kernel = self.kernel[...]
        outputs = kernel.shape[2:]
        flat = kernel.reshape(*kernel.shape[:2], -1)
        if platform() == "tpu":
            out = jax.lax.ragged_dot(rows, flat.astype(self.dtype), sizes)
        else:
            out = in_blocks(rows, flat, experts, sizes)
        out = out.reshape(-1, *outputs)
        if self.kernel_scale is not None:
            scale = self.kernel_scale[...].reshape(-1, *outputs)
            scale = jnp.take(scale, experts, axis=0, mode="clip")
            out = (out * scale).astype(self.dtype)
        return out


def in_blocks(
    rows: Float[Array, "M D"],
    kernel: Shaped[Array, "E D F"],
    experts: Int[Array, " M"],
    sizes: Int[Array, " E"],
) -> Float[Array, "M F"]:
    """Compute `ragged_dot` as a batched product, for devices whose compiler would
    multiply each row by the matrices of all experts.

    Each expert's rows fill blocks of half the mean number of rows, the last of them
    with zeros, so that at most half as much again is multiplied as there are rows.
    """
    count, total = len(rows), len(sizes)
    size = max(1, -(-count // (2 * total)))
    blocks = count // size + min(total, count) if size > 1 else count
    filled = -(-sizes // size)  # blocks of each expert
    ends = jnp.cumsum(filled)
    known = jnp.minimum(experts, total - 1)
    first = jnp.cumsum(sizes) - sizes
    place = (ends - filled)[known] * size + jnp.arange(count) - first[known]
    place = jnp.where(experts < total, place, blocks * size)
    padded = jnp.zeros_like(rows, shape=(blocks * size, rows.shape[1]))
    padded = padded.at[place].set(rows, mode="drop", unique_indices=True)
    owner = jnp.searchsorted(ends, jnp.arange(blocks), side="right")
    matrices = kernel[jnp.minimum(owner, total - 1)].astype(rows.dtype)
    out = jnp.einsum("nmd,ndf->nmf", padded.reshape(blocks, size, -1), matrices)
    return jnp.take(out.reshape(blocks * size, -1), place, axis=0, mode="clip")


class ExpertBank(nnx.Module):
    """The routed experts: down(silu(gate) * up) of each.

    On a mesh each device of the fsdp axis holds some experts (the table of
    `parallel.sharding`), each with a part of its FFN width if there is a tensor axis.
    Where the rows of the batch are split over fsdp, each token goes to the devices of
    its experts and the outputs come back, by all-to-all. Where all these devices have
    the same rows, as in decoding, each computes its own experts, and the outputs are
    summed.
    """

    def __init__(self, config: ChatGLMConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        size, deep = (c.num_experts, c.expert_width), math.sqrt(2 * c.num_layers)
        how: dict[str, Any] = {"config": c, "rngs": rngs}
        self.up = Grouped((size[0], c.width, 2, size[1]), std=0.02, **how)
        self.down = Grouped((*size, c.width), std=0.02 / deep, **how)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        chosen: Int[Array, "B T K"],
        weights: Float[Array, "B T K"],
    ) -> Float[Array, "B T D"]:
        """Return the sum of the outputs of each token's experts by their weights."""
        sizes = dict(jax.sharding.get_abstract_mesh().shape)
        if math.prod(sizes.values()) == 1:
            return _mix(self, x, chosen, weights)
        rows = activation_spec(("rows", "length", "width"), x.shape, sizes)
        bank = layer_specs(self, ".blocks.mlp.experts", sizes)
        experts, _, _, ffn = bank.up.kernel.get_value()
        split = _axes(rows[0])
        return jax.shard_map(
            functools.partial(
                _mix,
                split=split,
                exchanged=experts if experts in split else None,
                held=experts if experts not in split else None,
                summed=ffn,
            ),
            in_specs=(bank, rows, rows, rows),
            out_specs=rows,
        )(self, x, chosen, weights)

    def of_rows(
        self, rows: Float[Array, "M D"], experts: Int[Array, " M"]
    ) -> Float[Array, "M D"]:
        """Return the outputs [M, D] of rows [M, D], each by its own expert of those
        that this device holds; 0 where the number of the expert is none of them."""
        local = self.up.kernel.shape[0]
        order = jnp.argsort(experts)
        experts = experts[order]
        sizes = jnp.bincount(experts, length=local + 1)[:-1]
        up = self.up(rows[order], experts, sizes)
        out = self.down(jax.nn.silu(up[:, 0]) * up[:, 1], experts, sizes)
        out = jnp.where((experts < local)[:, None], out, 0)
        return out[jnp.argsort(order)]


def _mix(
    bank: ExpertBank,
    x: Float[Array, "B T D"],
    chosen: Int[Array, "B T K"],
    weights: Float[Array, "B T K"],
    *,
    split: tuple[str, ...] = (),
    exchanged: str | None = None,
    held: str | None = None,
    summed: str | None = None,
) -> Float[Array, "B T D"]:
    """Compute what `ExpertBank` computes, on one device of a mesh.

    Args:
        split: the axes over which rows are split.
        exchanged: the one over which tokens go to their experts; None: they stay.
        held: the axis over which experts are split and tokens are not.
        summed: the axis over which the FFN width is split.
    """
    local, per_token = bank.up.kernel.shape[0], chosen.shape[-1]
    rows, pairs = x.reshape(-1, x.shape[-1]), chosen.reshape(-1)
    if exchanged is not None:
        start = jnp.zeros_like(rows, shape=(len(pairs), rows.shape[-1]))
        if summed is not None:
            start = jax.lax.pcast(start, summed, to="varying")
        out = _exchange(bank, rows, pairs, start, axis=exchanged, split=split)
    else:
        if held is not None:
            pairs = pairs - jax.lax.axis_index(held) * local
            pairs = jnp.where((pairs >= 0) & (pairs < local), pairs, local)
        out = bank.of_rows(jnp.repeat(rows, per_token, axis=0), pairs)
    out = out.reshape(*chosen.shape, -1).astype(jnp.float32)
    out = (out * weights[..., None]).sum(-2)
    axes = [axis for axis in (held, summed) if axis is not None]
    return (jax.lax.psum(out, axes) if axes else out).astype(x.dtype)


def _exchange(
    bank: ExpertBank,
    rows: Float[Array, "N D"],
    pairs: Int[Array, " M"],
    out: Float[Array, "M D"],
    *,
    axis: str,
    split: tuple[str, ...],
) -> Float[Array, "M D"]:
    """Send each row to the devices of its experts, and return the outputs, [M, D].

    A round has room for `ROOM` times the pairs that each device would get if all
    experts were chosen alike; there are as many rounds as the fullest device needs, so
    that no pair is dropped.

    Args:
        rows: [M / K, D], the rows of this device.
        pairs: the expert of each pair, of all experts, [M].
        out: zeros [M, D].
        split: the axes over which rows are split, `axis` among them.
    """
    devices, local = jax.lax.axis_size(axis), bank.up.kernel.shape[0]
    count, tokens = len(pairs), len(rows)
    per_token = count // tokens
    most = tokens * min(per_token, local)  # pairs that one device can get from here
    room = min(most, math.ceil(ROOM * count / devices))
    order = jnp.argsort(pairs)
    target, expert = jnp.divmod(pairs[order], local)  # targets ascend
    amounts = jnp.bincount(target, length=devices)
    starts = jnp.cumsum(amounts) - amounts
    place = jnp.arange(count) - starts[target]  # among the pairs for its target

    def swap(x: Array) -> Array:
        return jax.lax.all_to_all(x, axis, 0, 0)

    def go(number: int | Array, out: Array) -> Array:
        sent = number * room + jnp.arange(room)[None]  # places of this round
        index = jnp.minimum(starts[:, None] + sent, count - 1)
        there = sent < amounts[:, None]
        visitors = swap(rows[order[index] // per_token])  # [devices, room, D]
        wanted = swap(jnp.where(there, expert[index], local))
        done = bank.of_rows(visitors.reshape(-1, rows.shape[-1]), wanted.reshape(-1))
        done = swap(done.reshape(visitors.shape))
        slot = place - number * room
        mine = done[target, jnp.clip(slot, 0, room - 1)]
        return out + jnp.where(((slot >= 0) & (slot < room))[:, None], mine, 0)

    out = go(0, out)
    rounds = -(-most // room)
    if rounds > 1:
        fullest = jax.lax.pmax(amounts.max(), split)

        @jax.checkpoint
        def step(out: Array, number: Array) -> Array:
            needed = number * room < fullest
            return jax.lax.cond(
                needed, lambda out: go(number, out), lambda out: out, out
            )

        @jax.jit
        def spare_rounds(out: Array) -> Array:  # `planning.flops` knows this name
            numbers = jnp.arange(1, rounds)
            return jax.lax.scan(lambda out, i: (step(out, i), None), out, numbers)[0]

        out = spare_rounds(out)
    return out[jnp.argsort(order)]


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


class Experts(nnx.Module):
    """The MLP of a layer with experts: the routed ones and the shared one."""

    def __init__(self, config: ChatGLMConfig, *, rngs: nnx.Rngs):
        shared = config.num_shared_experts * config.expert_width
        self.router = Router(config, rngs=rngs)
        self.experts = ExpertBank(config, rngs=rngs)
        self.shared = MLP(config, rngs=rngs, width=shared) if shared else None

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        given, choices = _routed.get()
        chosen, weights = self.router(x, given)
        if choices is not None:
            choices.append(chosen)
        out = self.experts(x, chosen, weights)
        return out if self.shared is None else out + self.shared(x)


@contextlib.contextmanager
def routed(given: Int[Array, "B T K"] | None = None) -> Iterator[list]:
    """Collect the experts [B, T, K] of every layer with experts that is traced inside;
    those that are `given` take the place of the routers' choices."""
    choices: list[Int[Array, "B T K"]] = []
    token = _routed.set((given, choices))
    try:
        yield choices
    finally:
        _routed.reset(token)


@contextlib.contextmanager
def recorded_loads() -> Iterator[list[Float[Array, "2"]]]:
    """Collect the loads of every forward pass of a mixture that is traced inside: the
    shares of the busiest and of the least used expert in the choices of real tokens,
    each the mean over the layers with experts. All alike have 1 / E."""
    loads: list[Float[Array, 2]] = []
    token = _loads.set(loads)
    try:
        yield loads
    finally:
        _loads.reset(token)


def loads_of(config: ChatGLMConfig) -> list | None:
    """Return the list that collects the loads of a forward pass; None: nobody asks."""
    return _loads.get() if config.num_experts else None


def through_experts(apply: Callable, config: ChatGLMConfig) -> Callable:
    """Return the function `apply(block, x, rows) -> x` of a layer as one whose x goes
    with two numbers: the sum of the loads of the layers so far, and how many of them
    have experts (a float, since the fused update differentiates all that goes through
    layers). Its rows go with the mask of real tokens [B, T], and with the experts of
    each token in each of these layers, [B, T, layers, K], or None for the routers'
    choices."""
    layers = config.num_layers - config.num_dense_layers

    def applied(block: Any, x: Any, rows: Any) -> Any:
        (x, loads, layer), (rows, mask, routing) = x, rows
        given = None
        if routing is not None:
            index = layer.astype(jnp.int32)
            given = jax.lax.dynamic_index_in_dim(routing, index, 2, keepdims=False)
        with routed(given) as choices:
            x = apply(block, x, rows)
        for chosen in choices:
            loads += _load(chosen, mask, config.num_experts) / layers
            layer += 1
        return x, loads, layer

    return applied


def _load(
    chosen: Int[Array, "B T K"], mask: Bool[Array, "B T"], experts: int
) -> Float[Array, "2"]:
    """Return the shares of the busiest and of the least used expert."""
    real = jnp.broadcast_to(mask[..., None], chosen.shape)
    counts = jnp.zeros(experts, jnp.float32).at[chosen].add(real.astype(jnp.float32))
    shares = counts / jnp.maximum(counts.sum(), 1.0)
    return jnp.stack([shares.max(), shares.min()])

"""The start of a run: what is alive while its models are loaded and its state is made,
as shapes; nothing is loaded."""

import dataclasses
from collections.abc import Iterator
from types import ModuleType

import jax
from ml_collections import ConfigDict

from rlhf_jax import algorithms
from rlhf_jax.batches import Experience, PackedPairs
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.presets import preset
from rlhf_jax.planning import programs
from rlhf_jax.planning.roofline import Program, bytes_per_device, size
from rlhf_jax.training import optimizers, weights
from rlhf_jax.training.placement import with_opt_states


def of(config: ConfigDict, model: ChatGLMConfig | None = None) -> Program:
    """Return the moment of a run's start at which most is alive, as the arguments of a
    program that does nothing.

    Args:
        config: that of a stage that trains.
        model: the config of the model that the stage starts from; that of
            `config.model` by default.
    """
    algorithm = algorithms.find(config.stage)
    if model is None:
        model = preset(config.model, **weights.computation(config))
    moments = _moments(algorithm, config, model)
    return Program("start", lambda *_: (), max(moments, key=size))


def _moments(
    algorithm: ModuleType, config: ConfigDict, model: ChatGLMConfig
) -> Iterator[tuple]:
    """Yield what is alive at the moments of the start, in the order of the stages."""
    if algorithm.Batch is Experience:
        yield from _moments_of_ppo(algorithm, config, model)
        return
    yield from _moments_of_base(model)
    is_score = algorithm.Batch is PackedPairs
    optimizer = optimizers.from_config(config.optimizer)
    state = programs.train_state(model, optimizer, score=is_score)
    if is_score:  # its backbone is copied out of a policy; then the best so far
        yield programs.parameters(model), state.model
        yield (
            state,
            state.model,
            () if model.lora is None else programs.reference(model),
        )
    elif config.get("reference") == "on_the_fly":
        yield state, programs.reference(model)
    else:
        yield (state,)


def _moments_of_base(model: ChatGLMConfig) -> Iterator[tuple]:
    """Yield what is alive while an int8 base under adapters is loaded."""
    if model.lora is not None and model.quantised:
        int8 = dataclasses.replace(model, lora=None)
        yield programs.parameters(int8), _layer_read(int8)


def _layer_read(model: ChatGLMConfig) -> jax.ShapeDtypeStruct:
    """Return the shape of a layer's largest matrix as it is read, before it is
    quantised."""
    layer = dataclasses.replace(
        model,
        num_layers=1,
        num_dense_layers=0,
        lora=None,
        quantised=False,
        param_dtype=model.dtype,
    )
    matrices = jax.tree.leaves(programs.parameters(layer).blocks)
    return max(matrices, key=bytes_per_device)


def _moments_of_ppo(
    algorithm: ModuleType, config: ConfigDict, model: ChatGLMConfig
) -> Iterator[tuple]:
    yield from _moments_of_base(model)
    frozen = programs.frozen_models(config, model)
    judge = programs.judge_model(config, model)
    if model.lora is None and config.frozen_param_dtype == "int8":
        yield frozen, _layer_read(model)
    yield frozen, judge  # and the reference answers
    alive = () if config.offload_frozen else (frozen, judge)
    state = programs.first_state(algorithm, config, model)
    at_rest = state
    if config.offload_moments:
        at_rest = with_opt_states(state, lambda moments: {})
    yield alive, state.policy
    if state.value is not None:
        yield alive, at_rest.policy, state.value
    yield alive, at_rest

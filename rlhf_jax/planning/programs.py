"""The programs of a stage's run, with the shapes of their arguments: nothing is loaded.

`of(config)` uses the current mesh, so every argument lies where the stage puts it.
"""

import dataclasses
import functools
from types import ModuleType

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax import algorithms
from rlhf_jax.batches import (
    Experience,
    PackedPairs,
    PreferenceBatch,
    Rollout,
    SFTBatch,
)
from rlhf_jax.generation import rows as rows_
from rlhf_jax.generation.responses import Layout, first_layout, ring_sizes
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.adapters import named, on_base, own_part
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.mesh import check_batch, check_experts, check_heads, check_layers
from rlhf_jax.parallel.sharding import (
    activation_spec,
    batch_sharding,
    decoding,
    shapes_of,
)
from rlhf_jax.planning.roofline import Program
from rlhf_jax.ppo.forward import run_models
from rlhf_jax.ppo.options import check_replay
from rlhf_jax.ppo.state import Frozen, PPOState, first_numbers
from rlhf_jax.rewards.spec import uses_model
from rlhf_jax.training import optimizers, weights
from rlhf_jax.training.placement import COPIES, with_opt_states
from rlhf_jax.training.state import TrainState, first_shapes


def of(
    config, model: ChatGLMConfig | None = None, *, recompute: bool = True
) -> list[Program]:
    """Return the longest-running programs of the stage that a config is for. The
    stage's name leads to its algorithm, whose kind of batch leads to the programs.

    Args:
        model: the config of the model that the stage starts from; that of
            `config.model` by default.
        recompute: False plans without recomputation, which leaves the useful work.

    Raises:
        ValueError: a stage that trains nothing, or sizes that the mesh does not share
            out.
    """
    algorithm = algorithms.find(config.stage)
    if model is None:
        model = preset(config.model, **weights.computation(config))
    if not recompute:
        model = dataclasses.replace(model, remat="none")
        config = config.copy_and_resolve_references()
        for name in ("optimizer", "value_optimizer"):
            if name in config:
                config[name].fused = False
    check_heads(model.num_heads)
    check_layers(model.num_layers)
    check_experts(model.num_experts)
    parts = config.microbatches * config.get("minibatches", 1)
    check_batch("batch_size", config.batch_size, parts=parts)
    programs = {
        SFTBatch: of_dialogues,
        PackedPairs: of_packed_pairs,
        PreferenceBatch: of_preferences,
        Experience: of_experience,
    }
    return programs[algorithm.Batch](algorithm, config, model)


def of_dialogues(algorithm: ModuleType, config, model: ChatGLMConfig) -> list[Program]:
    optimizer = optimizers.from_config(config.optimizer)
    batch = dialogues(config.batch_size, config.max_tokens)
    arguments = (train_state(model, optimizer), batch, replicated(()))
    return [update_of(algorithm, config, model, arguments, optimizer=optimizer)]


def of_packed_pairs(
    algorithm: ModuleType, config, model: ChatGLMConfig
) -> list[Program]:
    optimizer = optimizers.from_config(config.optimizer)
    rows = config.batch_size
    shape = (rows, config.max_prompt_tokens + 2 * config.max_response_tokens)
    batch = PackedPairs(
        tokens=array(shape),
        mask=array(shape, bool),
        segments=array(shape),
        ends=array((rows, 2)),
        valid=array((rows,), bool),
    )
    state = train_state(model, optimizer, score=True)
    arguments = (state, batch, replicated(()))
    # A copy of the best model so far; the output matrix of a base is not given back.
    held = (state.model, () if model.lora is None else reference(model))
    return [
        update_of(algorithm, config, model, arguments, held=held, optimizer=optimizer)
    ]


def of_preferences(
    algorithm: ModuleType, config, model: ChatGLMConfig
) -> list[Program]:
    optimizer = optimizers.from_config(config.optimizer)
    rows = config.batch_size
    prompts = (rows, config.max_prompt_tokens)
    responses = (rows, 2, config.max_response_tokens)
    batch = PreferenceBatch(
        prompts=array(prompts),
        prompt_mask=array(prompts, bool),
        responses=array(responses),
        response_mask=array(responses, bool),
        valid=array((rows,), bool),
    )
    on_the_fly = config.reference == "on_the_fly"
    sft_batch = None
    if config.beta_sft:
        sft_batch = dialogues(config.sft_batch_size, config.max_sft_tokens)
    arguments = (
        train_state(model, optimizer),
        batch,
        None if on_the_fly else array((rows, 2), jnp.float32),
        sft_batch,
        reference(model) if on_the_fly else None,
        replicated(()),
    )
    return [update_of(algorithm, config, model, arguments, optimizer=optimizer)]


def update_of(
    algorithm: ModuleType,
    config,
    model: ChatGLMConfig,
    arguments: tuple,
    *,
    held=(),
    **optimizers_of_step,
) -> Program:
    """Return the train step, by the names that every algorithm has."""
    hyper = algorithm.Hyper.from_config(config, model.vocab_size)
    step = functools.partial(algorithm.train_step, hyper=hyper, **optimizers_of_step)
    return Program("update", step, arguments, donate=True, held=held)


def of_experience(algorithm: ModuleType, config, model: ChatGLMConfig) -> list[Program]:
    hyper = algorithm.Hyper.from_config(config, model.vocab_size)
    state = first_state(algorithm, config, model)
    frozen = frozen_models(config, model)
    waiting = () if config.offload_frozen else frozen
    judge = () if config.offload_frozen else judge_model(config, model)
    # While the reference answers, or responses are sampled beside scoring, the frozen
    # models and the policy are on the devices.
    beside = config.baseline == "reference" or config.one_step_off_policy
    there = frozen if beside else waiting
    trained = () if config.offload_moments else (state.policy, state.value)
    moments = [x.opt_state for x in trained if x is not None]
    # Scoring reads no moments.
    bare = with_opt_states(state, lambda opt_state: {})
    policy = state.policy.model
    values = () if state.value is None else state.value.model
    moving = () if state.reference is None else state.reference
    copy = COPIES[config.rollout_param_dtype]
    answering = policy if copy is None else shapes_of(copy, policy)
    copied = () if copy is None else policy
    rows, width = config.batch_size, config.max_prompt_tokens
    length, routing = width + config.max_response_tokens, None
    check_replay(config, model)
    if config.replay_routing:
        routing = array((rows, length, *model.routing_shape), jnp.int16)
    prompts, responses = (rows, width), (rows, config.max_response_tokens)
    rolled = Rollout(
        prompts=array(prompts),
        prompt_mask=array(prompts, bool),
        responses=array(responses),
        response_mask=array(responses, bool),
        logprobs=array(responses, jnp.float32),
        ended=array((rows,), bool),
        routing=routing,
    )
    number = array(responses, jnp.float32)
    experience = Experience(
        prompts=rolled.prompts,
        prompt_mask=rolled.prompt_mask,
        responses=rolled.responses,
        response_mask=rolled.response_mask,
        old_logprobs=number,
        ref_logprobs=number,
        advantages=number,
        weights=None if hyper.correction_level is None else number,
        old_values=number if hyper.has_critic else None,
        returns=number if hyper.has_critic else None,
        routing=routing,
    )
    rooms = ring_sizes(config.max_response_tokens)[-2:]
    prompts_of_step = rows // config.samples_per_prompt + config.prompts_ahead
    layout = first_layout(
        prompts_of_step, config.samples_per_prompt, config.rollout_rows
    )
    side_by_side = layout.prompts * layout.share
    steps = config.max_response_tokens * max(-(-rows // side_by_side), 1)
    sampling = Sampling(
        max_new_tokens=config.max_response_tokens,
        temperature=config.temperature,
        top_k=0,
        top_p=1.0,
        min_new_tokens=0,
        stop_ids=(2,),
        pad_id=0,
        num_tokens=model.vocab_size,
    )
    updates = hyper.num_updates
    sft_batches = None
    if config.beta_sft:
        sft_batches = dialogues(config.sft_batch_size, config.max_sft_tokens, updates)
    key = jax.eval_shape(lambda: jax.random.key(0))
    learning_rates = (replicated((updates,)), replicated((updates,)))
    return [
        update_of(
            algorithm,
            config,
            model,
            (state, experience, sft_batches, replicated((), key.dtype), learning_rates),
            held=(waiting, judge),
            policy_optimizer=optimizers.from_config(config.optimizer),
            value_optimizer=optimizers.from_config(config.value_optimizer),
        ),
        Program(
            "score",
            functools.partial(run_models, hyper=hyper),
            (bare, frozen, rolled),
            held=(moments, judge),
        ),
        Program(
            "generate",
            functools.partial(generation, share=layout.share, sampling=sampling),
            (
                answering,
                array((layout.prompts, width)),
                array((layout.prompts, width), bool),
                replicated((), key.dtype),
            ),
            held=(moments, values, moving, there, judge, copied),
            loop_steps=steps // len(rooms),
            loop_reads=[
                decoding_reads(answering.config, layout, width, room) for room in rooms
            ],
        ),
    ]


def generation(
    model: ChatGLM, tokens, mask, key, *, share: int, sampling: Sampling
) -> rows_.Drawn:
    """Read prompts and decode responses of the largest length, `share` to each prompt,
    in one program: those of `generation.rows` one after the other, with a ring that
    grows once."""
    prompts, width = tokens.shape
    decoder = rows_.for_decoding(model)
    small, *large = ring_sizes(sampling.max_new_tokens)[-2:]
    rows = rows_.empty(decoder, prompts=prompts, share=share, width=width, slots=small)
    rows, _ = rows_.read_prompts(model, rows, jnp.arange(prompts), tokens, mask)
    numbers = jnp.arange(prompts * share)
    everywhere = jnp.ones(prompts * share, bool)
    decode = functools.partial(rows_.decode_round, decoder, sampling=sampling)
    rows, drawn = decode(rows, key, everywhere, numbers, steps=small)
    for slots in large:
        rows = rows_.resize(rows, numbers, jnp.arange(prompts), slots=slots)
        rest = slots - small
        rows, later = decode(rows, key, ~everywhere, numbers, steps=rest)
        drawn = jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1), drawn, later)
    return drawn


def first_state(algorithm: ModuleType, config, model: ChatGLMConfig):
    """Return the shapes of a PPOState."""
    hyper = algorithm.Hyper.from_config(config, model.vocab_size)
    critic = None
    if hyper.has_critic:
        optimizer = optimizers.from_config(config.value_optimizer)
        critic = train_state(model, optimizer, score=True)
    return PPOState(
        policy=train_state(model, optimizers.from_config(config.optimizer)),
        value=critic,
        reference=parameters(model) if config.reference_rate else None,
        **shapes_of(functools.partial(first_numbers, hyper)),
    )


def frozen_models(config, model: ChatGLMConfig):
    """Return the shapes of the reference and the reward model as they are stored; with
    adapters, on the base of the policy."""
    stored, first = stored_frozen(config, model), None
    if model.lora is not None:
        first = reference(model)
    elif not config.reference_rate:
        first = parameters(stored)
    reward = parameters(stored, score=True) if uses_model(config.rewards) else None
    return Frozen(first, reward)


def judge_model(config, model: ChatGLMConfig) -> dict[str, ScoreModel]:
    """Return the shapes of the judge of a run's evaluations, if it has one."""
    if not config.judge_model:
        return {}
    return {"judge": parameters(stored_frozen(config, model), score=True)}


def stored_frozen(config, model: ChatGLMConfig) -> ChatGLMConfig:
    """Return the config of a model that is never updated, as it is stored."""
    if model.lora is not None:
        return model
    is_quantised = config.frozen_param_dtype == "int8"
    dtype = model.dtype if is_quantised else config.frozen_param_dtype
    return dataclasses.replace(model, param_dtype=dtype, quantised=is_quantised)


def decoding_reads(config: ChatGLMConfig, layout: Layout, width: int, slots: int):
    """Return the arrays that a decoding step reads: the model in `dtype`, and the
    caches of prompts of `width` tokens and of a ring of `slots`."""
    model = parameters(config)
    with decoding():
        model = shapes_of(ChatGLM.for_decoding, model)
    rows = layout.prompts * layout.share
    caches = jax.eval_shape(
        lambda: (model.init_cache(layout.prompts, width), model.init_cache(rows, slots))
    )
    mesh = jax.sharding.get_mesh()

    def place(x, *names):
        names = ("layers", "batch", "kv_heads", *names)[-x.ndim :]
        spec = activation_spec(names, x.shape, dict(mesh.shape))
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def placed(cache):
        keys = jax.tree.map(lambda x: place(x, "head_dim", "slots"), cache.keys)
        values = jax.tree.map(lambda x: place(x, "slots", "head_dim"), cache.values)
        return keys, values

    return model, *map(placed, caches)


def parameters(config: ChatGLMConfig, *, score: bool = False):
    """Return the sharded shapes of a model. Those of a base are the same objects for
    all models on it."""

    def make():
        backbone = ChatGLM(config, rngs=nnx.Rngs(0))
        return ScoreModel(backbone, rngs=nnx.Rngs(0)) if score else backbone

    if config.lora is not None:
        own = shapes_of(lambda: own_part(make()))
        return on_base(own, named(reference(config)))
    return shapes_of(make)


def reference(config: ChatGLMConfig) -> ChatGLM:
    """Return the shapes of the reference of a model at the start: with adapters, of
    their base."""
    if config.lora is None:
        return parameters(config)
    base = dataclasses.replace(config, lora=None)
    return _base(base, jax.sharding.get_mesh())


@functools.cache
def _base(config: ChatGLMConfig, _) -> ChatGLM:
    return parameters(config)


def train_state(config: ChatGLMConfig, optimizer, *, score: bool = False) -> TrainState:
    return first_shapes(parameters(config, score=score), optimizer)


def dialogues(rows: int, width: int, stacked: int | None = None) -> SFTBatch:
    shape, axis = ((rows, width), 0) if stacked is None else ((stacked, rows, width), 1)
    mask = array(shape, bool, axis=axis)
    return SFTBatch(array(shape, axis=axis), mask, mask)


def array(shape, dtype=jnp.int32, *, axis: int = 0) -> jax.ShapeDtypeStruct:
    """Return the shape of a batch's array, in the layout of `batch_sharding`."""
    sharding = batch_sharding(shape, jax.sharding.get_mesh(), axis=axis)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def replicated(shape, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(jax.sharding.get_mesh(), P())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

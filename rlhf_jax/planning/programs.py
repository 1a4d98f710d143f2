"""The programs of a stage's run, with the shapes of what they take: nothing is loaded.

`of(config)` asks for the current mesh, so every argument is where the stage puts it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.batches import (
    Experience,
    PackedPairs,
    PreferenceBatch,
    Rollout,
    SFTBatch,
)
from rlhf_jax.generation.generate import generate_program, growth
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.losses.advantages import init_moments
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.mesh import check_batch, check_heads, check_layers
from rlhf_jax.parallel.sharding import (
    ACTIVATIONS,
    activation_spec,
    decoding,
    shard_parameters,
)
from rlhf_jax.planning.roofline import Program
from rlhf_jax.stages import dpo, reward, sft
from rlhf_jax.training import optimizers, ppo, weights
from rlhf_jax.training.state import TrainState


def of(config, *, recompute: bool = True) -> list[Program]:
    """The programs of the stage that a config is for, the longest-running ones.

    Args:
        recompute: False: nothing is computed twice; what is left is useful work.

    Raises:
        ValueError: a stage without a plan, or sizes that the mesh does not share out.
    """
    stages = {"sft": of_sft, "reward": of_reward, "dpo": of_dpo, "ppo": of_ppo}
    if config.stage not in stages:
        raise ValueError(f"A plan is for {', '.join(stages)}, not {config.stage!r}.")
    model = preset(config.model, **weights.computation(config))
    if not recompute:
        model = dataclasses.replace(model, remat="none")
        config = config.copy_and_resolve_references()
        config.optimizer.fused = False
        if config.stage == "ppo":
            config.value_optimizer.fused = False
    check_heads(model.num_heads)
    check_layers(model.num_layers)
    parts = config.microbatches
    if config.stage == "ppo":
        parts *= config.minibatches
    check_batch("batch_size", config.batch_size, parts=parts)
    return stages[config.stage](config, model)


def of_sft(config, model: ChatGLMConfig) -> list[Program]:
    optimizer = optimizers.from_config(config.optimizer)
    step = functools.partial(
        sft.train_step,
        optimizer=optimizer,
        microbatches=config.microbatches,
        num_tokens=model.vocab_size,
        chunk_size=config.chunk_size,
    )
    batch = dialogues(config.batch_size, config.max_tokens)
    arguments = (train_state(model, optimizer), batch, replicated(()))
    return [Program("update", step, arguments, donate=True)]


def of_reward(config, model: ChatGLMConfig) -> list[Program]:
    optimizer = optimizers.from_config(config.optimizer)
    step = functools.partial(
        reward.train_step,
        optimizer=optimizer,
        microbatches=config.microbatches,
        margin=0.0,
        label_smoothing=0.0,
        score_regularisation=config.score_regularisation,
    )
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
    return [Program("update", step, (state, batch, replicated(())), donate=True)]


def of_dpo(config, model: ChatGLMConfig) -> list[Program]:
    optimizer = optimizers.from_config(config.optimizer)
    fields = {f.name for f in dataclasses.fields(dpo.Hyper)} - {"num_tokens"}
    hyper = dpo.Hyper(
        num_tokens=model.vocab_size, **{name: config[name] for name in fields}
    )
    step = functools.partial(
        dpo.train_step,
        optimizer=optimizer,
        microbatches=config.microbatches,
        hyper=hyper,
    )
    rows = config.batch_size
    prompts, responses = (
        (rows, config.max_prompt_tokens),
        (rows, 2, config.max_response_tokens),
    )
    batch = PreferenceBatch(
        prompts=array(prompts),
        prompt_mask=array(prompts, bool),
        responses=array(responses),
        response_mask=array(responses, bool),
        valid=array((rows,), bool),
    )
    on_the_fly = config.reference == "on_the_fly"
    arguments = (
        train_state(model, optimizer),
        batch,
        None if on_the_fly else array((rows, 2), jnp.float32),
        dialogues(config.sft_batch_size, config.max_sft_tokens),
        parameters(model) if on_the_fly else None,
        replicated(()),
    )
    return [Program("update", step, arguments, donate=True)]


def of_ppo(config, model: ChatGLMConfig) -> list[Program]:
    policy_optimizer = optimizers.from_config(config.optimizer)
    value_optimizer = optimizers.from_config(config.value_optimizer)
    fields = {f.name for f in dataclasses.fields(ppo.Hyper)} - {"num_tokens"}
    hyper = ppo.Hyper(
        num_tokens=model.vocab_size, **{name: config[name] for name in fields}
    )
    value = None
    if config.advantage == "gae":
        value = train_state(model, value_optimizer, score=True)
    state = ppo.PPOState(
        policy=train_state(model, policy_optimizer),
        value=value,
        kl_coef=replicated(()),
        moments=shard_parameters(jax.eval_shape(init_moments)),
        rollbacks=replicated((), jnp.int32),
    )
    in_8_bits = dataclasses.replace(model, quantised=True)
    stored = dataclasses.replace(model, param_dtype=config.frozen_param_dtype)
    if config.frozen_param_dtype == "int8":
        stored = dataclasses.replace(in_8_bits, param_dtype=model.dtype)
    frozen = ppo.Frozen(parameters(stored), parameters(stored, score=True))
    waiting = () if config.offload_frozen else frozen
    # The reference answers too: then they are on the devices, and the policy beside.
    there = frozen if config.baseline == "reference" else waiting
    trained = () if config.offload_moments else (state.policy, value)
    moments = [x.opt_state for x in trained if x is not None]
    bare = ppo.with_opt_states(state, lambda opt_state: {})  # what scoring reads
    policy = state.policy.model
    is_copied = config.rollout_param_dtype != "same"
    answering = parameters(in_8_bits) if is_copied else policy
    rows, width = config.batch_size, config.max_prompt_tokens
    prompts, responses = (rows, width), (rows, config.max_response_tokens)
    rolled = Rollout(
        prompts=array(prompts),
        prompt_mask=array(prompts, bool),
        responses=array(responses),
        response_mask=array(responses, bool),
        logprobs=array(responses, jnp.float32),
        ended=array((rows,), bool),
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
        old_values=None if value is None else number,
        returns=None if value is None else number,
    )
    rooms = growth(config.max_response_tokens)
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
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    keys = array(keys.shape, keys.dtype)
    updates = config.ppo_epochs * config.minibatches
    sft_batches = None
    if config.beta_sft:
        sft_batches = dialogues(config.sft_batch_size, config.max_sft_tokens, updates)
    update = functools.partial(
        ppo.update,
        hyper=hyper,
        policy_optimizer=policy_optimizer,
        value_optimizer=value_optimizer,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    learning_rates = (replicated((updates,)), replicated((updates,)))
    return [
        Program(
            "update",
            update,
            (state, experience, sft_batches, replicated((), key.dtype), learning_rates),
            donate=True,
            held=waiting,
        ),
        Program(
            "score",
            functools.partial(ppo.make_experience, hyper=hyper),
            (bare, frozen, rolled, array((rows,), jnp.float32)),
            held=moments,
        ),
        Program(
            "generate",
            functools.partial(generate_program, sampling=sampling),
            (answering, rolled.prompts, rolled.prompt_mask, keys),
            held=(moments, value and value.model, there, policy if is_copied else ()),
            loop_steps=config.max_response_tokens // len(rooms),
            loop_reads=[
                decoding_reads(answering.config, rows, width + room) for room in rooms
            ],
        ),
    ]


def decoding_reads(config: ChatGLMConfig, rows: int, slots: int):
    """What a step of decoding reads: the model in its `dtype`, and the whole cache."""
    model = parameters(config)
    with decoding():
        model = shard_parameters(jax.eval_shape(ChatGLM.for_decoding, model))
    cache = jax.eval_shape(lambda: model.init_cache(rows, slots))
    mesh = jax.sharding.get_mesh()

    def place(x, *names):
        names = ("layers", "batch", "kv_heads", *names)[-x.ndim :]
        spec = activation_spec(names, x.shape, dict(mesh.shape))
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    keys = jax.tree.map(lambda x: place(x, "head_dim", "slots"), cache.keys)
    values = jax.tree.map(lambda x: place(x, "slots", "head_dim"), cache.values)
    return model, keys, values


def parameters(config: ChatGLMConfig, *, score: bool = False):
    """A model's shapes, sharded."""

    def make():
        backbone = ChatGLM(config, rngs=nnx.Rngs(0))
        return ScoreModel(backbone, rngs=nnx.Rngs(0)) if score else backbone

    return shard_parameters(jax.eval_shape(make))


def train_state(config: ChatGLMConfig, optimizer, *, score: bool = False) -> TrainState:
    create = functools.partial(TrainState.create, optimizer=optimizer)
    return shard_parameters(jax.eval_shape(create, parameters(config, score=score)))


def dialogues(rows: int, width: int, stacked: int | None = None) -> SFTBatch:
    shape, axis = ((rows, width), 0) if stacked is None else ((stacked, rows, width), 1)
    mask = array(shape, bool, axis=axis)
    return SFTBatch(array(shape, axis=axis), mask, mask)


def array(shape, dtype=jnp.int32, *, axis: int = 0) -> jax.ShapeDtypeStruct:
    """A batch's array, its rows (axis `axis`) over data and fsdp."""
    spec = P(*[None] * axis, ACTIVATIONS["batch"])
    sharding = NamedSharding(jax.sharding.get_mesh(), spec)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def replicated(shape, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(jax.sharding.get_mesh(), P())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

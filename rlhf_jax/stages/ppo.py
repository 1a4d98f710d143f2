"""PPO with a reference-reward baseline, a KL penalty and an SFT term.

ChatGLM-RLHF (arXiv 2404.00934), section 3. One iteration, whose functions are in
training/ppo.py:
1. rollout: the policy answers a batch of prompts. So does the reference, when a prompt
   is first drawn; the reward model's score of that answer is kept.
2. make_experience: old log-probabilities, reference log-probabilities, scores and
   values in one program. Score minus the reference answer's score at the last token,
   minus kl_coef * KL at every token; generalised advantage estimation.
3. update: epochs x minibatches of the clipped policy loss plus beta_sft * the SFT
   loss, and of the clipped value loss, in one program.

The paper does not give kl_coef, the clip ranges, GAE's lambda or the critic's design;
we start the value model from the reward model and take the usual values.

Without a critic: advantage="rloo" (arXiv 2402.14740), "grpo" (2402.03300) or "remax"
(2310.10505) gives every token of a response the same advantage, from its score minus
kl_coef * its KL (the GRPO paper has the KL in the loss: kl_in_loss), in the same
clipped loss; there is no value model then, in memory or in the programs. ReMax's
baseline is the policy's greedy answer (baseline="greedy"); with baseline="reference"
it is the paper's idea in another dress: the same baseline, without a critic.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from rlhf_jax.batches import PromptBatch
from rlhf_jax.data import sources
from rlhf_jax.data.batching import BatchOrder, prompt_batch, round_up
from rlhf_jax.data.encoding import encode_prompts, sft_batches
from rlhf_jax.data.records import Dialogue, Prompt
from rlhf_jax.evaluation.rollouts import answer_scores, evaluate
from rlhf_jax.generation.rollout import repeat_prompts, rollout
from rlhf_jax.generation.sampling import sampling_with
from rlhf_jax.losses.advantages import init_moments
from rlhf_jax.models.quantise import quantise
from rlhf_jax.parallel.mesh import check_batch
from rlhf_jax.parallel.pipelining import pipe_size
from rlhf_jax.parallel.sharding import (
    create,
    creator,
    shard_batch,
    to_memory,
)
from rlhf_jax.training import optimizers, options, weights
from rlhf_jax.training.cache import OnDemand, fingerprint, weights_fingerprint
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.metrics import Mean, Stopwatch, Writer
from rlhf_jax.training.ppo import (
    Frozen,
    Hyper,
    PPOState,
    make_experience,
    update,
    with_opt_states,
)
from rlhf_jax.training.progress import ProgressBar
from rlhf_jax.training.state import TrainState, from_items, to_items
from rlhf_jax.training.workdir import due, finish, open_workdir


def run(config, workdir: str) -> None:
    """Improve `config.init_from` (an SFT policy) against `config.reward_model`; leave
    policy ("model") and value model ("value") in `workdir/checkpoints`."""
    check_options(config)
    workdir = open_workdir(workdir, config)
    init_key, head_key, reference_key, rollout_key, update_key, eval_key = (
        jax.random.split(jax.random.key(config.seed), 6)
    )

    # Data
    data = sources.open_data(config.data, workdir)
    read = sources.reader(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.init_from, workdir)
    weights.check_models(
        tokenizer,
        sources.tokenizer_fingerprint,
        policies=[config.init_from, config.reference],
        reward_models=[config.reward_model],
    )
    records = read(config.prompts or data / "prompts.jsonl", Prompt)
    _, prompts = encode_prompts(records, tokenizer, config.max_prompt_tokens)
    logging.info("%d prompts, %d of them short enough.", len(records), len(prompts))
    records = read(config.eval_prompts or data / "eval_prompts.jsonl", Prompt)
    eval_records, eval_prompts = encode_prompts(
        records[: config.batch_size], tokenizer, config.max_prompt_tokens
    )
    width = round_up(max(map(len, prompts + eval_prompts)), config.pad_to_multiple)
    order = BatchOrder(
        len(prompts),
        batch_size=config.batch_size // config.samples_per_prompt,
        seed=config.seed,
    )

    def prompts_at(index: np.ndarray) -> PromptBatch:
        rows = [prompts[i] for i in index]
        return prompt_batch(rows, index, pad_id=tokenizer.pad_id, width=width)

    num_updates = config.ppo_epochs * config.minibatches
    sft = None
    if config.beta_sft:
        sft = sft_batches(
            read(data / "sft.jsonl", Dialogue),
            tokenizer,
            max_tokens=config.max_sft_tokens,
            multiple=config.pad_to_multiple,
            batch_size=config.sft_batch_size,
            seed=config.seed,
        )

    # Models
    load = functools.partial(
        weights.load_policy,
        model=config.model,
        num_tokens=tokenizer.vocab_size,
        key=init_key,
        **weights.computation(config),
    )
    load_scorer = functools.partial(
        weights.load_score_model,
        config.reward_model,
        num_tokens=tokenizer.vocab_size,
        key=head_key,
    )
    reference_from = config.reference or config.init_from
    if reference_from != config.init_from:
        logging.warning(
            "The reference, %s, is not where the policy starts, %s.",
            weights.fingerprint(reference_from),
            weights.fingerprint(config.init_from),
        )
    if not config.reward_model:
        logging.warning("No reward_model: a random one, good for trying out only.")
    reference = load(reference_from, param_dtype=config.frozen_param_dtype)
    frozen = Frozen(reference, load_scorer(backbone=reference))
    del reference

    # State
    total_steps = config.total_steps
    total_updates = total_steps * num_updates
    policy_optimizer = optimizers.from_config(config.optimizer)
    policy_rates = optimizers.learning_rates(config.optimizer, total_updates)
    value_optimizer = optimizers.from_config(config.value_optimizer)
    value_rates = optimizers.learning_rates(config.value_optimizer, total_updates)
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints, best="eval/scores")
    waiting_room = "pinned_host" if config.offload_moments else "device"

    def first_state(policy, value):
        # Copies: the state's buffers are donated, so no other model may share them.
        policy, value = jax.tree.map(jnp.copy, (policy, value))
        return PPOState(
            policy=TrainState.create(policy, policy_optimizer),
            value=value and TrainState.create(value, value_optimizer),
            kl_coef=jnp.float32(config.kl_coef),
            moments=init_moments(),
            rollbacks=jnp.int32(0),
        )

    def newest_state() -> tuple[PPOState, int]:
        """The newest checkpoint's, else the start; and its step."""
        policy = load(config.init_from)
        value = load_scorer(backbone=policy) if config.advantage == "gae" else None
        state = create(first_state, policy, value)
        step = checkpoints.latest_step()
        if step:
            state = from_checkpoint(checkpoints.restore(step, to_checkpoint(state)))
        return with_moments_in(waiting_room, state), step

    state, start = newest_state()
    meta = {"models": {"model": weights.describe(state.policy.model, tokenizer)}}
    if state.value is not None:
        meta["models"]["value"] = weights.describe(state.value.model, tokenizer)

    # Steps
    fields = [field.name for field in dataclasses.fields(Hyper)]
    hyper = Hyper(
        num_tokens=tokenizer.vocab_size,
        **{name: config[name] for name in fields if name != "num_tokens"},
    )
    sampling = sampling_with(
        tokenizer,
        max_new_tokens=config.max_response_tokens,
        temperature=config.temperature,
    )
    greedy = dataclasses.replace(sampling, temperature=0.0)
    in_8_bits = None
    if config.rollout_param_dtype == "int8":
        in_8_bits = creator(quantise, state.policy.model)
    experience_step = jax.jit(functools.partial(make_experience, hyper=hyper))
    update_step = jax.jit(
        functools.partial(
            update,
            hyper=hyper,
            policy_optimizer=policy_optimizer,
            value_optimizer=value_optimizer,
        ),
        donate_argnums=0,
    )

    # Reference answers, each when its prompt is first drawn
    def score_reference(index: np.ndarray) -> np.ndarray:
        asked, batch = to_memory(frozen, "device"), prompts_at(index)
        return answer_scores(
            asked.reference, asked.reward, batch, reference_key, sampling
        )

    reference_scores = None
    if config.baseline == "reference":
        reference_scores = OnDemand(
            workdir / "reference_scores.npz",
            {
                "reference": weights_fingerprint(frozen.reference),
                "reward model": weights_fingerprint(frozen.reward),
                "set of prompts": fingerprint(prompts),
                "way to sample": fingerprint(dataclasses.astuple(sampling)),
            },
            score_reference,
            size=len(prompts),
            batch_size=config.batch_size,
        )

    if config.offload_frozen:
        frozen = to_memory(frozen, "pinned_host")

    # Loop
    step, watch = start, Stopwatch()
    open_writer = functools.partial(
        Writer,
        workdir,
        max_skipped=config.max_skipped_updates,
        spike_zscore=config.spike_zscore,
    )
    writer = open_writer(step=step)
    show = {"score": "objective/baselined_scores", "kl": "objective/kl"}
    with ProgressBar("ppo", total_steps, start, show) as bar:
        while step < total_steps:
            index = order.indices(step)
            batch = prompts_at(index)
            key = jax.random.fold_in(rollout_key, step)
            several = repeat_prompts(batch, config.samples_per_prompt)
            watch.lap()
            baseline_scores = np.zeros(len(index), np.float32)
            if config.baseline == "reference":
                baseline_scores = reference_scores.at(index)
            answering = state.policy.model
            if in_8_bits:
                answering = in_8_bits(answering)
            rolled = rollout(answering, several, key, sampling)
            if config.baseline == "greedy":
                scorer = to_memory(frozen.reward, "device")
                baseline_scores = answer_scores(answering, scorer, batch, key, greedy)
            del answering  # or it stays through the update
            num_generated = float(rolled.response_mask.sum())
            seconds = {"time/generate": watch.lap()}
            experience, changes, metrics = experience_step(
                state,
                to_memory(frozen, "device"),
                rolled,
                np.repeat(baseline_scores, config.samples_per_prompt),
            )
            observed_kl = metrics["objective/kl"].value()
            seconds["time/score"] = watch.lap()

            if observed_kl > config.kl_ceiling:
                writer.close()
                logging.error(
                    "Step %d: objective/kl %.1f is above kl_ceiling %.1f, with kl_coef "
                    "%.3g. Raise kl_coef or lower optimizer.learning_rate.",
                    step, observed_kl, config.kl_ceiling, state.kl_coef,
                )  # fmt: skip
                if step == 0:
                    raise ValueError(
                        f"{config.kl_ceiling=} is below the policy's KL of "
                        f"{observed_kl:.1f} before any update: it starts too far from "
                        f"its reference, {weights.fingerprint(reference_from)}."
                    )
                checkpoints.delete_from(step)  # that are of this policy
                if state.rollbacks == config.max_rollbacks:
                    checkpoints.save(step, to_checkpoint(state), meta)
                    break
                kl_coef, rollbacks = 2 * state.kl_coef, state.rollbacks + 1
                state, step = newest_state()
                state = dataclasses.replace(state, kl_coef=kl_coef, rollbacks=rollbacks)
                writer = open_writer(step=step)
                logging.warning("Rolled back to step %d; kl_coef %.3g.", step, kl_coef)
                continue

            updates = slice(step * num_updates, (step + 1) * num_updates)
            sft_batch = sft and sft.stack(updates.start, num_updates)
            state, update_metrics = update_step(
                with_moments_in("device", dataclasses.replace(state, **changes)),
                experience,
                sft and shard_batch(sft_batch, axis=1),
                jax.random.fold_in(update_key, step),
                (policy_rates[updates], value_rates[updates]),
            )
            state = with_moments_in(waiting_room, state)
            jax.block_until_ready(update_metrics)
            seconds["time/update"] = watch.lap()
            metrics |= update_metrics | seconds
            metrics["optim/lr"] = policy_rates[updates.start]
            metrics["optim/rollbacks"] = int(state.rollbacks)
            metrics["tokens_per_second"] = Mean(num_generated, sum(seconds.values()))
            step += 1
            learned_from = {"experience": experience, "sft": sft_batch}
            bar.update(*writer.write(step, metrics, learned_from))
            if due(step, config.eval_every, total_steps):
                eval_metrics, samples = evaluate(
                    state.policy.model,
                    to_memory(frozen.reward, "device"),
                    eval_records,
                    eval_prompts,
                    eval_key,
                    sampling,
                    tokenizer,
                    width=width,
                )
                writer.write(step, eval_metrics)
                writer.write_samples(step, samples[: config.num_samples])
            if checkpoints.due(step, config.save_every, total_steps):
                checkpoints.save(step, to_checkpoint(state), meta, writer.flush())
    numbers = writer.close()
    checkpoints.close()
    finish(workdir, numbers)


def with_moments_in(memory: str, state: PPOState) -> PPOState:
    """The state with its optimizers' moments in a memory, see `to_memory`."""
    return with_opt_states(state, lambda moments: to_memory(moments, memory))


def to_checkpoint(state: PPOState) -> dict:
    items = to_items(state.policy)
    if state.value is not None:
        items |= to_items(state.value, "value")
    names = ("kl_coef", "moments", "rollbacks")
    return items | {"rest": {name: getattr(state, name) for name in names}}


def from_checkpoint(items: dict) -> PPOState:
    value = from_items(items, "value") if "value" in items else None
    return PPOState(policy=from_items(items), value=value, **items["rest"])


def check_options(config) -> None:
    """Refuse options that contradict each other, before anything is read or compiled.

    Raises:
        ValueError: which, and what to set instead.
    """
    if pipe_size() > 1:
        raise ValueError(
            "PPO has no pipeline: it generates in every iteration, which through a "
            "pipeline is bubbles for about 80 % of the time (ChatGLM-RLHF, section 5). "
            f"Give the mesh's pipe={pipe_size()} to data, fsdp or tensor."
        )
    options.one_of(config, "advantage", ("gae", "rloo", "grpo", "remax"))
    options.one_of(config, "baseline", ("reference", "greedy", "none"))
    options.multiple_of(config, "batch_size", "samples_per_prompt")
    parts = config.minibatches * config.microbatches
    check_batch("batch_size", config.batch_size, parts=parts)
    if config.beta_sft:
        check_batch("sft_batch_size", config.sft_batch_size, parts=config.microbatches)
    if config.advantage in ("rloo", "grpo"):
        if config.samples_per_prompt < 2:
            raise ValueError(
                f"advantage={config.advantage!r} compares the responses to one prompt: "
                "set samples_per_prompt to 2 or more."
            )
        if config.baseline != "none":
            raise ValueError(
                f"baseline={config.baseline!r} cancels out of advantage="
                f"{config.advantage!r}, which subtracts the group's mean: set "
                "baseline='none'."
            )
    if config.advantage == "remax" and config.baseline == "none":
        raise ValueError(
            "advantage='remax' is the score less a baseline's: set baseline='greedy', "
            "or 'reference'."
        )
    if config.whiten_rewards and config.advantage != "gae":
        raise ValueError("whiten_rewards needs the token rewards of advantage='gae'.")
    if 0 < config.dual_clip <= 1:
        raise ValueError(f"{config.dual_clip=} must be above 1, or 0 for none.")

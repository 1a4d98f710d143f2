"""PPO with a reference-reward baseline, a KL penalty and an SFT term.

ChatGLM-RLHF (arXiv 2404.00934), section 3. Before the first iteration the reference
answers every prompt once, and the reward model scores the answers. One iteration:
1. rollout: the policy answers a batch of prompts.
2. make_experience: old log-probabilities, reference log-probabilities, scores and
   values in one program. Score minus the reference answer's score at the last token,
   minus kl_coef * KL at every token; generalised advantage estimation.
3. update: epochs x minibatches of the clipped policy loss plus beta_sft * the SFT
   loss, and of the clipped value loss, in one program.

The paper does not give kl_coef, the clip ranges, GAE's lambda or the critic's design;
we start the value model from the reward model and take the usual values.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from rlhf_jax.batches import Experience, PromptBatch, Rollout, SFTBatch
from rlhf_jax.data import sources
from rlhf_jax.data.batching import BatchOrder, SFTBatches, prompt_batch, round_up
from rlhf_jax.data.encoding import encode_dialogues, encode_prompts
from rlhf_jax.data.records import Prompt, read_records
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.generation.scoring import (
    dialogue_logprobs,
    response_logprobs,
    response_scores,
    response_values,
)
from rlhf_jax.losses import kl, masked
from rlhf_jax.losses.advantages import gae, reference_baseline
from rlhf_jax.losses.ppo import explained_variance, ppo_policy_loss, ppo_value_loss
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.training import optimizers, weights
from rlhf_jax.training.accumulate import value_and_grad
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.metrics import Mean, Stopwatch, Writer
from rlhf_jax.training.progress import ProgressBar
from rlhf_jax.training.state import TrainState, apply_gradients, from_items, to_items
from rlhf_jax.training.workdir import due, finish, open_workdir


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PPOState:
    """What changes: the policy, the value model and the KL coefficient."""

    policy: TrainState
    value: TrainState
    kl_coef: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """What does not: the policy's start, and the reward model."""

    reference: object
    reward: object


@dataclasses.dataclass(frozen=True)
class Hyper:
    """The numbers that the compiled programs depend on; see configs/ppo.py."""

    temperature: float
    num_tokens: int
    chunk_size: int
    gamma: float
    lam: float
    clip_range: float
    value_clip_range: float
    beta_sft: float
    whiten_advantages: bool
    missing_end_penalty: float
    score_clip: float
    ppo_epochs: int
    minibatches: int
    microbatches: int


def make_experience(
    state: PPOState,
    frozen: Frozen,
    rolled: Rollout,
    reference_scores: jax.Array,
    *,
    hyper: Hyper,
) -> tuple[Experience, dict]:
    """Everything the update needs, fixed before it.

    Args:
        reference_scores: float32 [B], the score of the reference's answer to each
            prompt; zeros switch the baseline off.
    """
    mask = rolled.response_mask
    row = (
        rolled.prompts,
        rolled.prompt_mask,
        rolled.responses[:, None],
        mask[:, None],
    )  # K = 1 response a prompt
    logprobs = functools.partial(
        response_logprobs,
        temperature=hyper.temperature,
        num_tokens=hyper.num_tokens,
        chunk_size=hyper.chunk_size,
    )
    old = logprobs(state.policy.model, *row)
    old_logprobs = masked.keep(old.logprobs[:, 0], mask)
    ref_logprobs = masked.keep(logprobs(frozen.reference, *row).logprobs[:, 0], mask)
    scores = response_scores(frozen.reward, *row)[:, 0]
    values = masked.keep(response_values(state.value.model, *row)[:, 0], mask)

    rewarded = kl.missing_end_penalty(
        scores=reference_baseline(scores=scores, reference_scores=reference_scores),
        ended=rolled.ended,
        penalty=hyper.missing_end_penalty,
    )
    rewarded = kl.clip_scores(rewarded, hyper.score_clip)
    rewards = kl.penalised_rewards(
        scores=rewarded,
        logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        mask=mask,
        kl_coef=state.kl_coef,
    )
    estimate = functools.partial(gae, gamma=hyper.gamma, lam=hyper.lam)
    advantages, returns = jax.vmap(
        lambda rewards, values, mask: estimate(
            rewards=rewards, values=values, mask=mask
        )
    )(rewards, values, mask)
    if hyper.whiten_advantages:
        advantages = masked.whiten(advantages, mask, shift_mean=True)

    token_kl = kl.k1(old_logprobs, ref_logprobs)
    sampler_gap = jnp.abs(old_logprobs - rolled.logprobs)
    sequence_kl = token_kl.sum(-1)  # 0 where masked, like both log-probabilities
    metrics = {
        "objective/kl": Mean.of(sequence_kl),
        "objective/scores": Mean.of(scores),
        "objective/rlhf_reward": Mean.of(rewarded - state.kl_coef * sequence_kl),
        "objective/non_score_reward": Mean.of(-state.kl_coef * sequence_kl),
        "objective/baselined_scores": Mean.of(scores - reference_scores),
        "objective/entropy": Mean.of(old.entropy[:, 0], mask),
        "objective/kl_coef": Mean.of(state.kl_coef),
        "response/length_mean": Mean.of(mask.sum(-1)),
        "response/ended_fraction": Mean.of(rolled.ended),
        "rollout/logprob_gap_mean": Mean.of(sampler_gap, mask),
        "rollout/logprob_gap_max": jnp.where(mask, sampler_gap, 0.0).max(),
        "val/explained_variance": explained_variance(
            values=values, returns=returns, mask=mask
        ),
    }
    experience = Experience(
        prompts=rolled.prompts,
        prompt_mask=rolled.prompt_mask,
        responses=rolled.responses,
        response_mask=mask,
        old_logprobs=old_logprobs,
        old_values=values,
        advantages=advantages,
        returns=returns,
    )
    return experience, metrics


def policy_loss_fn(policy, batch, *, num_tokens_in_batch, num_sft_tokens, hyper: Hyper):
    """The share of L_ppo + beta_sft * L_sft of (experience, SFT batch)."""
    experience, sft = batch
    mask = experience.response_mask
    new = response_logprobs(
        policy,
        experience.prompts,
        experience.prompt_mask,
        experience.responses[:, None],
        mask[:, None],
        temperature=hyper.temperature,
        num_tokens=hyper.num_tokens,
        chunk_size=hyper.chunk_size,
    )
    out = ppo_policy_loss(
        logprobs=new.logprobs[:, 0],
        old_logprobs=experience.old_logprobs,
        advantages=experience.advantages,
        mask=mask,
        clip_range=hyper.clip_range,
    )
    loss = Mean.of(out.loss, mask)
    metrics = {
        "loss/policy": loss,
        "policy/approxkl": Mean.of(out.approxkl, mask),
        "policy/clipfrac": Mean.of(out.clipped, mask),
        "val/ratio": Mean.of(out.ratio, mask),
    }
    total = loss.total / num_tokens_in_batch
    if hyper.beta_sft:
        logprobs = dialogue_logprobs(
            policy, sft, num_tokens=hyper.num_tokens, chunk_size=hyper.chunk_size
        )
        metrics["loss/sft"] = Mean.of(sft_loss(logprobs=logprobs), sft.loss_mask)
        total += hyper.beta_sft * metrics["loss/sft"].total / num_sft_tokens
    return total, metrics


def value_loss_fn(value_model, experience: Experience, *, num_tokens_in_batch, hyper):
    mask = experience.response_mask
    values = response_values(
        value_model,
        experience.prompts,
        experience.prompt_mask,
        experience.responses[:, None],
        mask[:, None],
    )[:, 0]
    out = ppo_value_loss(
        values=values,
        old_values=experience.old_values,
        returns=experience.returns,
        mask=mask,
        value_clip_range=hyper.value_clip_range,
    )
    loss = Mean.of(out.loss, mask)
    return loss.total / num_tokens_in_batch, {
        "loss/value": loss,
        "val/clipfrac": Mean.of(out.clipped, mask),
    }


def update(
    state: PPOState,
    experience: Experience,
    sft_batches: SFTBatch,
    key: jax.Array,
    *,
    hyper: Hyper,
    policy_optimizer,
    value_optimizer,
) -> tuple[PPOState, dict]:
    """All epochs and minibatches of one iteration.

    Args:
        sft_batches: one SFT batch for each update, stacked: leaves [updates, b, T].
    """
    rows = experience.prompts.shape[0]

    def one_update(models, inputs):
        policy, value = models
        indices, sft = inputs
        batch = jax.tree.map(lambda x: x[indices], experience)
        num_tokens_in_batch = jnp.maximum(batch.response_mask.sum(), 1)
        policy_share = functools.partial(
            policy_loss_fn,
            num_tokens_in_batch=num_tokens_in_batch,
            num_sft_tokens=sft.loss_mask.sum() if sft else 1,
            hyper=hyper,
        )
        value_share = functools.partial(
            value_loss_fn, num_tokens_in_batch=num_tokens_in_batch, hyper=hyper
        )
        _, metrics, gradients = value_and_grad(
            policy_share, policy.model, (batch, sft), microbatches=hyper.microbatches
        )
        policy, policy_update = apply_gradients(policy, gradients, policy_optimizer)
        _, value_metrics, gradients = value_and_grad(
            value_share, value.model, batch, microbatches=hyper.microbatches
        )
        value, value_update = apply_gradients(value, gradients, value_optimizer)
        metrics |= value_metrics
        metrics["optim/grad_norm"] = policy_update["optim/grad_norm"]
        metrics["optim/value_grad_norm"] = value_update["optim/grad_norm"]
        return (policy, value), metrics

    keys = jax.random.split(key, hyper.ppo_epochs)
    order = jax.vmap(lambda k: jax.random.permutation(k, rows))(keys)
    indices = order.reshape(hyper.ppo_epochs * hyper.minibatches, -1)
    (policy, value), metrics = jax.lax.scan(
        one_update, (state.policy, state.value), (indices, sft_batches)
    )
    first = jax.tree.map(lambda x: x[0], metrics["val/ratio"])
    metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    metrics["val/ratio_first"] = first
    metrics["optim/skipped"] = jnp.maximum(policy.skipped, value.skipped)
    return dataclasses.replace(state, policy=policy, value=value), metrics


def run(config, workdir: str) -> None:
    """Improve `config.init_from` (an SFT policy) against `config.reward_model`; leave
    policy ("model") and value model ("value") in `workdir/checkpoints`."""
    workdir = open_workdir(workdir, config)
    key = jax.random.key(config.seed)
    init_key, head_key, reference_key, rollout_key, update_key, eval_key = (
        jax.random.split(key, 6)
    )

    # Data
    data = sources.open_data(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.init_from, workdir)
    prompts_file = config.prompts or data / "prompts.jsonl"
    eval_file = config.eval_prompts or data / "eval_prompts.jsonl"
    records = read_records(prompts_file, Prompt)
    _, prompts = encode_prompts(records, tokenizer, config.max_prompt_tokens)
    logging.info("%d prompts, %d of them short enough.", len(records), len(prompts))
    _, eval_prompts = encode_prompts(
        read_records(eval_file, Prompt)[: config.batch_size],
        tokenizer,
        config.max_prompt_tokens,
    )
    width = round_up(max(map(len, prompts + eval_prompts)), config.pad_to_multiple)
    order = BatchOrder(len(prompts), batch_size=config.batch_size, seed=config.seed)
    make_prompts = functools.partial(prompt_batch, pad_id=tokenizer.pad_id, width=width)
    num_updates = config.ppo_epochs * config.minibatches
    check_divides(config)
    sft = None
    if config.beta_sft:
        dialogues, _ = encode_dialogues(
            data / "sft.jsonl", tokenizer, config.max_sft_tokens
        )
        sft = SFTBatches(
            dialogues,
            batch_size=config.sft_batch_size,
            width=config.max_sft_tokens,
            pad_id=tokenizer.pad_id,
            seed=config.seed,
        )

    # Model
    load = functools.partial(
        weights.load_policy,
        model=config.model,
        num_tokens=tokenizer.vocab_size,
        key=init_key,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
    )
    policy = load(config.init_from)
    if config.reference and config.reference != config.init_from:
        logging.warning(
            "The reference, %s, is not where the policy starts, %s.",
            weights.fingerprint(config.reference),
            weights.fingerprint(config.init_from),
        )
    reference = load(config.reference or config.init_from)
    reward = weights.load_score_model(
        config.reward_model,
        backbone=reference,
        num_tokens=tokenizer.vocab_size,
        key=head_key,
    )
    if not config.reward_model:
        logging.warning("No reward_model: a random one, good for trying out only.")
    frozen = Frozen(reference, reward)

    # State
    total_steps = config.total_steps
    total_updates = total_steps * num_updates
    policy_optimizer, schedule = optimizers.from_config(config.optimizer, total_updates)
    value_optimizer, _ = optimizers.from_config(config.value_optimizer, total_updates)

    @jax.jit
    def create(policy, value):
        return PPOState(
            policy=TrainState.create(policy, policy_optimizer),
            value=TrainState.create(value, value_optimizer),
            kl_coef=jnp.float32(config.kl_coef),
        )

    # The state's buffers are donated: it must not share any with the frozen models.
    state = create(policy, jax.tree.map(jnp.copy, reward))
    del policy

    # Steps
    hyper = Hyper(
        num_tokens=tokenizer.vocab_size,
        **{
            field.name: config[field.name]
            for field in dataclasses.fields(Hyper)
            if field.name != "num_tokens"
        },
    )
    sampling = Sampling(
        max_new_tokens=config.max_response_tokens,
        temperature=config.temperature,
        top_k=0,
        top_p=1.0,
        min_new_tokens=0,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        num_tokens=tokenizer.vocab_size,
    )
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

    # Restore
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
    meta = {
        "models": {
            "model": weights.describe(state.policy.model),
            "value": weights.describe(state.value.model),
        }
    }
    start = checkpoints.latest_step()
    if start:
        items = checkpoints.restore(start, state_items(state))
        state = PPOState(
            from_items(items), from_items(items, "value"), items["kl_coef"]["kl_coef"]
        )

    # Reference answers
    reference_scores = np.zeros(len(prompts), np.float32)
    if config.baseline == "reference":
        reference_scores = score_reference(
            workdir / "reference_scores.npy",
            frozen,
            prompts,
            make_prompts,
            reference_key,
            sampling,
            config.batch_size,
        )
    elif config.baseline != "none":
        raise ValueError(f"{config.baseline=} must be 'reference' or 'none'.")

    # Loop
    writer = Writer(workdir, start, config.max_skipped_updates)
    show = {"score": "objective/baselined_scores", "kl": "objective/kl"}
    with ProgressBar("ppo", total_steps, start, show) as bar:
        for step in range(start, total_steps):
            index = order.indices(step)
            batch = make_prompts([prompts[i] for i in index], index)
            watch = Stopwatch()
            rolled = rollout(
                state.policy.model,
                batch,
                jax.random.fold_in(rollout_key, step),
                sampling,
            )
            num_generated = float(rolled.response_mask.sum())
            seconds = {"time/generate": watch.lap()}
            experience, metrics = experience_step(
                state, frozen, rolled, reference_scores[index]
            )
            jax.block_until_ready(metrics)
            seconds["time/score"] = watch.lap()
            state, update_metrics = update_step(
                state,
                experience,
                sft.stack(step * num_updates, num_updates) if sft else None,
                jax.random.fold_in(update_key, step),
            )
            jax.block_until_ready(update_metrics)
            seconds["time/update"] = watch.lap()
            if config.kl_target:
                state = adapt_kl_coef(state, metrics["objective/kl"], config)
            metrics |= update_metrics | seconds
            metrics["optim/lr"] = schedule(step * num_updates)
            metrics["tokens_per_second"] = Mean(num_generated, sum(seconds.values()))
            done, numbers = writer.write(step + 1, metrics)
            bar.update(done, numbers)
            if due(step + 1, config.eval_every, total_steps):
                eval_metrics, samples = evaluate(
                    state.policy.model,
                    frozen,
                    eval_prompts,
                    make_prompts,
                    eval_key,
                    sampling,
                    tokenizer,
                )
                writer.write(step + 1, eval_metrics)
                writer.write_samples(step + 1, samples[: config.num_samples])
            ceiling = numbers.get("objective/kl", 0.0) > config.kl_ceiling
            if ceiling or due(step + 1, config.save_every, total_steps):
                writer.flush()
                checkpoints.save(step + 1, state_items(state), meta)
            if ceiling:
                logging.error(
                    "Stopped at step %d: objective/kl %.1f is above kl_ceiling %.1f. "
                    "Raise kl_coef or lower optimizer.learning_rate.",
                    done, numbers["objective/kl"], config.kl_ceiling,
                )  # fmt: skip
                break
    numbers = writer.close()
    checkpoints.close()
    finish(workdir, numbers)


def state_items(state: PPOState) -> dict:
    items = to_items(state.policy) | to_items(state.value, "value")
    return items | {"kl_coef": {"kl_coef": state.kl_coef}}


def adapt_kl_coef(state: PPOState, observed: Mean, config) -> PPOState:
    kl_coef = kl.update_kl_coef(
        kl_coef=state.kl_coef,
        kl=observed.total / observed.count,
        target=config.kl_target,
        horizon=config.kl_horizon,
        batch_size=config.batch_size,
    )
    return dataclasses.replace(state, kl_coef=kl_coef)


def score_reference(
    path, frozen: Frozen, prompts, make_prompts, key, sampling, batch_size
) -> np.ndarray:
    """The score of the reference's answer to each prompt: float32 [prompts], kept on
    disk."""
    if path.exists():
        return np.load(path, allow_pickle=False)
    scores = np.zeros(len(prompts), np.float32)
    for first in range(0, len(prompts), batch_size):
        index = np.arange(first, first + batch_size) % len(prompts)
        batch: PromptBatch = make_prompts([prompts[i] for i in index], index)
        rolled = rollout(frozen.reference, batch, key, sampling)
        scores[index] = np.asarray(score_rollout(frozen.reward, rolled))
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, scores)
    temporary.replace(path)
    return scores


@jax.jit
def score_rollout(reward_model, rolled: Rollout) -> jax.Array:
    return response_scores(
        reward_model,
        rolled.prompts,
        rolled.prompt_mask,
        rolled.responses[:, None],
        rolled.response_mask[:, None],
    )[:, 0]


def evaluate(policy, frozen, prompts, make_prompts, key, sampling, tokenizer):
    """Mean score on held-out prompts, and the conversations; the same every time."""
    batch = make_prompts(prompts, np.arange(len(prompts)))
    rolled = rollout(policy, batch, key, sampling)
    scores = np.asarray(score_rollout(frozen.reward, rolled))
    responses = np.asarray(rolled.responses)
    lengths = np.asarray(rolled.response_mask).sum(-1)
    samples = [
        {
            "prompt": tokenizer.decode(prompt),
            "response": tokenizer.decode(responses[i, : lengths[i]]),
            "reward": float(scores[i]),
        }
        for i, prompt in enumerate(prompts)
    ]
    metrics = {
        "eval/scores": Mean.of(scores),
        "eval/response_length": Mean.of(lengths),
    }
    return metrics, samples


def check_divides(config) -> None:
    """Batch sizes that the compiled update can cut evenly."""
    parts = config.minibatches * config.microbatches
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size={config.batch_size} must be a multiple of minibatches * "
            f"microbatches = {parts}."
        )
    if config.beta_sft and config.sft_batch_size % config.microbatches:
        raise ValueError(
            f"sft_batch_size={config.sft_batch_size} must be a multiple of "
            f"microbatches={config.microbatches}."
        )

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

Without a critic: advantage="rloo" (arXiv 2402.14740), "grpo" (2402.03300) or "remax"
(2310.10505) gives every token of a response the same advantage, from its score minus
kl_coef * its KL; there is no value model then, in memory or in the programs. ReMax's
baseline is the policy's greedy answer (baseline="greedy"); with baseline="reference"
it is the paper's idea in another dress: the same baseline, without a critic.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from rlhf_jax.batches import Experience, Rollout, SFTBatch
from rlhf_jax.data import sources
from rlhf_jax.data.batching import BatchOrder, SFTBatches, prompt_batch, round_up
from rlhf_jax.data.encoding import encode_dialogues, encode_prompts
from rlhf_jax.data.records import Dialogue, Prompt
from rlhf_jax.evaluation.rollouts import evaluate, rollout_scores, scored_rollouts
from rlhf_jax.generation.rollout import repeat_prompts, rollout
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.generation.scoring import (
    dialogue_logprobs,
    one_response,
    response_logprobs,
    response_scores,
    response_values,
)
from rlhf_jax.losses import advantages as advantages_
from rlhf_jax.losses import kl, masked
from rlhf_jax.losses.ppo import (
    dual_clip_policy_loss,
    explained_variance,
    ppo_policy_loss,
    ppo_value_loss,
)
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.training import optimizers, weights
from rlhf_jax.training.accumulate import value_and_grad
from rlhf_jax.training.cache import cached, fingerprint, weights_fingerprint
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.metrics import Mean, Stopwatch, Writer
from rlhf_jax.training.progress import ProgressBar
from rlhf_jax.training.state import TrainState, apply_gradients, from_items, to_items
from rlhf_jax.training.workdir import due, finish, open_workdir


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PPOState:
    """What changes. `value` is None without a critic; `moments` are of all scores so
    far (with normalise_scores)."""

    policy: TrainState
    value: TrainState | None
    kl_coef: jax.Array
    moments: advantages_.RunningMoments


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """What does not: the policy's start, and the reward model."""

    reference: object
    reward: object


@dataclasses.dataclass(frozen=True)
class Hyper:
    """What the compiled programs depend on; see configs/ppo.py."""

    num_tokens: int
    temperature: float
    chunk_size: int
    advantage: str
    samples_per_prompt: int
    normalise_scores: bool
    whiten_rewards: bool
    whiten_advantages: bool
    missing_end_penalty: float
    score_clip: float
    kl_in_loss: bool
    gamma: float
    lam: float
    clip_range: float
    dual_clip: float
    value_clip_range: float
    beta_sft: float
    ppo_epochs: int
    minibatches: int
    microbatches: int


def policy_logprobs(policy, batch: Rollout | Experience, *, hyper: Hyper):
    """Log-probability and entropy of every response token, [B, R]: the function that
    the rollout sampled from, at its temperature."""
    out = response_logprobs(
        policy,
        *one_response(batch),
        temperature=hyper.temperature,
        num_tokens=hyper.num_tokens,
        chunk_size=hyper.chunk_size,
    )
    return out._replace(logprobs=out.logprobs[:, 0], entropy=out.entropy[:, 0])


def make_experience(
    state: PPOState,
    frozen: Frozen,
    rolled: Rollout,
    baseline_scores: jax.Array,
    *,
    hyper: Hyper,
) -> tuple[Experience, advantages_.RunningMoments, dict]:
    """Everything the update needs, fixed before it, and the moments of the scores.

    Args:
        baseline_scores: float32 [B], the score of another answer to each row's prompt
            (the reference's, or the policy's greedy one); zeros for no baseline.
    """
    mask = rolled.response_mask
    old = policy_logprobs(state.policy.model, rolled, hyper=hyper)
    old_logprobs = masked.keep(old.logprobs, mask)
    ref = policy_logprobs(frozen.reference, rolled, hyper=hyper)
    ref_logprobs = masked.keep(ref.logprobs, mask)
    scores = response_scores(frozen.reward, *one_response(rolled))[:, 0]
    values = None
    if state.value is not None:
        values = response_values(state.value.model, *one_response(rolled))[:, 0]
        values = masked.keep(values, mask)

    rewarded = advantages_.reference_baseline(
        scores=scores, reference_scores=baseline_scores
    )
    moments = state.moments
    if hyper.normalise_scores:
        moments = advantages_.update_moments(
            moments, rewarded, jnp.ones(rewarded.shape, bool)
        )
        rewarded = advantages_.normalise(rewarded, moments)
    rewarded = kl.missing_end_penalty(
        scores=rewarded, ended=rolled.ended, penalty=hyper.missing_end_penalty
    )
    rewarded = kl.clip_scores(rewarded, hyper.score_clip)
    rewards = kl.penalised_rewards(
        scores=rewarded,
        logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        mask=mask,
        kl_coef=0.0 if hyper.kl_in_loss else state.kl_coef,
    )
    advantages, returns = estimate_advantages(rewards, values, mask, hyper=hyper)

    sequence_kl = kl.k1(old_logprobs, ref_logprobs).sum(-1)  # 0 where masked
    gap = old_logprobs - masked.keep(rolled.logprobs, mask)  # sampler and trainer
    metrics = {
        "objective/kl": Mean.of(sequence_kl),
        "objective/scores": Mean.of(scores),
        "objective/rlhf_reward": Mean.of(rewarded - state.kl_coef * sequence_kl),
        "objective/non_score_reward": Mean.of(-state.kl_coef * sequence_kl),
        "objective/baselined_scores": Mean.of(scores - baseline_scores),
        "objective/entropy": Mean.of(old.entropy, mask),
        "objective/kl_coef": Mean.of(state.kl_coef),
        "response/length_mean": Mean.of(mask.sum(-1)),
        "response/ended_fraction": Mean.of(rolled.ended),
        "rollout/logprob_gap_mean": Mean.of(jnp.abs(gap), mask),
        "rollout/logprob_gap_max": jnp.abs(gap).max(),
        "rollout/ratio_outside": Mean.of(jnp.abs(jnp.expm1(gap)) > 0.1, mask),
    }
    if values is not None:
        metrics["val/explained_variance"] = explained_variance(
            values=values, returns=returns, mask=mask
        )
    experience = Experience(
        prompts=rolled.prompts,
        prompt_mask=rolled.prompt_mask,
        responses=rolled.responses,
        response_mask=mask,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        advantages=advantages,
        old_values=values,
        returns=returns,
    )
    return experience, moments, metrics


def estimate_advantages(rewards, values, mask, *, hyper: Hyper):
    """Advantages [B, R], and the returns [B, R] that the value model learns (None
    without one), from rewards and values [B, R]."""
    if hyper.advantage == "gae":
        if hyper.whiten_rewards:
            rewards = masked.whiten(rewards, mask, shift_mean=False)
        advantages, returns = jax.vmap(
            lambda rewards, values, mask: advantages_.gae(
                rewards=rewards,
                values=values,
                mask=mask,
                gamma=hyper.gamma,
                lam=hyper.lam,
            )
        )(rewards, values, mask)
    else:
        totals = rewards.sum(-1)  # of a response: its score less its KL
        groups = totals.reshape(-1, hyper.samples_per_prompt)
        if hyper.advantage == "rloo":
            groups = advantages_.rloo_advantages(scores=groups)
        elif hyper.advantage == "grpo":
            groups = advantages_.grpo_advantages(scores=groups, epsilon=1e-4)
        advantages = masked.keep(
            jnp.broadcast_to(groups.reshape(-1, 1), mask.shape), mask
        )
        returns = None
    if hyper.whiten_advantages:
        advantages = masked.whiten(advantages, mask, shift_mean=True)
    return advantages, returns


def policy_loss_fn(
    policy, batch, *, num_tokens_in_batch, num_sft_tokens, kl_coef, hyper: Hyper
):
    """The share of L_ppo + beta_sft * L_sft of (experience, SFT batch)."""
    experience, sft = batch
    mask = experience.response_mask
    logprobs = policy_logprobs(policy, experience, hyper=hyper).logprobs
    clipped_loss = ppo_policy_loss
    if hyper.dual_clip:
        clipped_loss = functools.partial(
            dual_clip_policy_loss, dual_clip=hyper.dual_clip
        )
    out = clipped_loss(
        logprobs=logprobs,
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
    if hyper.kl_in_loss:
        token_kl = kl.k3(masked.keep(logprobs, mask), experience.ref_logprobs)
        metrics["loss/kl"] = Mean.of(token_kl, mask)
        total += kl_coef * metrics["loss/kl"].total / num_tokens_in_batch
    if hyper.beta_sft:
        sft_logprobs = dialogue_logprobs(
            policy, sft, num_tokens=hyper.num_tokens, chunk_size=hyper.chunk_size
        )
        metrics["loss/sft"] = Mean.of(sft_loss(logprobs=sft_logprobs), sft.loss_mask)
        total += hyper.beta_sft * metrics["loss/sft"].total / num_sft_tokens
    return total, metrics


def value_loss_fn(value_model, experience: Experience, *, num_tokens_in_batch, hyper):
    """The share of the clipped value loss of a part of a batch."""
    mask = experience.response_mask
    out = ppo_value_loss(
        values=response_values(value_model, *one_response(experience))[:, 0],
        old_values=experience.old_values,
        returns=experience.returns,
        mask=mask,
        value_clip_range=hyper.value_clip_range,
    )
    loss = Mean.of(out.loss, mask)
    metrics = {"loss/value": loss, "val/clipfrac": Mean.of(out.clipped, mask)}
    return loss.total / num_tokens_in_batch, metrics


def update(
    state: PPOState,
    experience: Experience,
    sft_batches: SFTBatch | None,
    key: jax.Array,
    *,
    hyper: Hyper,
    policy_optimizer,
    value_optimizer,
) -> tuple[PPOState, dict]:
    """All epochs and minibatches of one iteration, in one scan.

    Args:
        sft_batches: one SFT batch for each update, stacked: leaves [updates, b, T].
    """

    def one_update(models, inputs):
        policy, value = models
        indices, sft = inputs
        batch = jax.tree.map(lambda x: x[indices], experience)
        num_tokens_in_batch = jnp.maximum(batch.response_mask.sum(), 1)
        policy_share = functools.partial(
            policy_loss_fn,
            num_tokens_in_batch=num_tokens_in_batch,
            num_sft_tokens=sft.loss_mask.sum() if sft else 1,
            kl_coef=state.kl_coef,
            hyper=hyper,
        )
        _, metrics, gradients = value_and_grad(
            policy_share, policy.model, (batch, sft), microbatches=hyper.microbatches
        )
        policy, applied = apply_gradients(policy, gradients, policy_optimizer)
        metrics["optim/grad_norm"] = applied["optim/grad_norm"]
        if value is not None:
            value_share = functools.partial(
                value_loss_fn, num_tokens_in_batch=num_tokens_in_batch, hyper=hyper
            )
            _, value_metrics, gradients = value_and_grad(
                value_share, value.model, batch, microbatches=hyper.microbatches
            )
            value, applied = apply_gradients(value, gradients, value_optimizer)
            metrics |= value_metrics
            metrics["optim/value_grad_norm"] = applied["optim/grad_norm"]
        return (policy, value), metrics

    rows = experience.prompts.shape[0]
    keys = jax.random.split(key, hyper.ppo_epochs)
    order = jax.vmap(lambda k: jax.random.permutation(k, rows))(keys)
    indices = order.reshape(hyper.ppo_epochs * hyper.minibatches, -1)
    (policy, value), metrics = jax.lax.scan(
        one_update, (state.policy, state.value), (indices, sft_batches)
    )
    first_ratio = jax.tree.map(lambda x: x[0], metrics["val/ratio"])
    metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    metrics["val/ratio_first"] = first_ratio
    skipped = [model.skipped for model in (policy, value) if model is not None]
    metrics["optim/skipped"] = jnp.stack(skipped).max()
    return dataclasses.replace(state, policy=policy, value=value), metrics


def run(config, workdir: str) -> None:
    """Improve `config.init_from` (an SFT policy) against `config.reward_model`; leave
    policy ("model") and value model ("value") in `workdir/checkpoints`."""
    check_options(config)
    workdir = open_workdir(workdir, config)
    key = jax.random.key(config.seed)
    init_key, head_key, reference_key, rollout_key, update_key, eval_key = (
        jax.random.split(key, 6)
    )

    # Data
    data = sources.open_data(config.data, workdir)
    read = sources.reader(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.init_from, workdir)
    records = read(config.prompts or data / "prompts.jsonl", Prompt)
    _, prompts = encode_prompts(records, tokenizer, config.max_prompt_tokens)
    logging.info("%d prompts, %d of them short enough.", len(records), len(prompts))
    records = read(config.eval_prompts or data / "eval_prompts.jsonl", Prompt)
    _, eval_prompts = encode_prompts(
        records[: config.batch_size], tokenizer, config.max_prompt_tokens
    )
    width = round_up(max(map(len, prompts + eval_prompts)), config.pad_to_multiple)
    prompts_a_step = config.batch_size // config.samples_per_prompt
    order = BatchOrder(len(prompts), batch_size=prompts_a_step, seed=config.seed)
    num_updates = config.ppo_epochs * config.minibatches
    sft = None
    if config.beta_sft:
        dialogues, _ = encode_dialogues(
            read(data / "sft.jsonl", Dialogue),
            tokenizer,
            config.max_sft_tokens,
        )
        sft = SFTBatches(
            dialogues,
            batch_size=config.sft_batch_size,
            width=config.max_sft_tokens,
            pad_id=tokenizer.pad_id,
            seed=config.seed,
        )

    # Models
    load = functools.partial(
        weights.load_policy,
        model=config.model,
        num_tokens=tokenizer.vocab_size,
        key=init_key,
        dtype=config.dtype,
    )
    load_scorer = functools.partial(
        weights.load_score_model,
        config.reward_model,
        num_tokens=tokenizer.vocab_size,
        key=head_key,
    )
    policy = load(config.init_from, param_dtype=config.param_dtype)
    reference = load(
        config.reference or config.init_from, param_dtype=config.frozen_param_dtype
    )
    if config.reference and config.reference != config.init_from:
        logging.warning(
            "The reference, %s, is not where the policy starts, %s.",
            weights.fingerprint(config.reference),
            weights.fingerprint(config.init_from),
        )
    frozen = Frozen(reference, load_scorer(backbone=reference))
    if not config.reward_model:
        logging.warning("No reward_model: a random one, good for trying out only.")
    value = load_scorer(backbone=policy) if config.advantage == "gae" else None

    # State
    total_steps = config.total_steps
    total_updates = total_steps * num_updates
    policy_optimizer, schedule = optimizers.from_config(config.optimizer, total_updates)
    value_optimizer, _ = optimizers.from_config(config.value_optimizer, total_updates)

    @jax.jit
    def create(policy, value):
        # Copies: the state's buffers are donated, so no other model may share them.
        policy, value = jax.tree.map(jnp.copy, (policy, value))
        return PPOState(
            policy=TrainState.create(policy, policy_optimizer),
            value=value and TrainState.create(value, value_optimizer),
            kl_coef=jnp.float32(config.kl_coef),
            moments=advantages_.init_moments(),
        )

    state = create(policy, value)
    del policy, value

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
    greedy = dataclasses.replace(sampling, temperature=0.0)
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
    models = {"model": state.policy.model}
    models |= {"value": state.value.model} if state.value else {}
    meta = {"models": {name: weights.describe(model) for name, model in models.items()}}
    start = checkpoints.latest_step()
    if start:
        state = from_checkpoint(checkpoints.restore(start, to_checkpoint(state)))

    # Reference answers
    reference_scores = np.zeros(len(prompts), np.float32)
    if config.baseline == "reference":

        def score_reference():
            answers = scored_rollouts(
                reference,
                frozen.reward,
                prompts,
                reference_key,
                sampling,
                samples_per_prompt=1,
                batch_size=config.batch_size,
                width=width,
            )
            return np.concatenate([found.scores[:, 0] for found in answers])

        reference_scores = cached(
            workdir / "reference_scores.npz",
            {
                "reference": weights_fingerprint(reference),
                "reward model": weights_fingerprint(frozen.reward),
                "set of prompts": fingerprint(prompts),
                "way to sample": fingerprint(dataclasses.astuple(sampling)),
            },
            score_reference,
        )

    # Loop
    writer = Writer(workdir, start, config.max_skipped_updates)
    show = {"score": "objective/baselined_scores", "kl": "objective/kl"}
    with ProgressBar("ppo", total_steps, start, show) as bar:
        for step in range(start, total_steps):
            index = order.indices(step)
            batch = prompt_batch(
                [prompts[i] for i in index], index, pad_id=tokenizer.pad_id, width=width
            )
            step_key = jax.random.fold_in(rollout_key, step)
            watch = Stopwatch()
            rolled = rollout(
                state.policy.model,
                repeat_prompts(batch, config.samples_per_prompt),
                step_key,
                sampling,
            )
            baseline_scores = reference_scores[index]
            if config.baseline == "greedy":
                answers = rollout(state.policy.model, batch, step_key, greedy)
                baseline_scores = np.asarray(rollout_scores(frozen.reward, answers))
            num_generated = float(rolled.response_mask.sum())
            seconds = {"time/generate": watch.lap()}
            experience, moments, metrics = experience_step(
                state,
                frozen,
                rolled,
                np.repeat(baseline_scores, config.samples_per_prompt),
            )
            state = dataclasses.replace(state, moments=moments)
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
                    frozen.reward,
                    eval_prompts,
                    eval_key,
                    sampling,
                    tokenizer,
                    width=width,
                )
                writer.write(step + 1, eval_metrics)
                writer.write_samples(step + 1, samples[: config.num_samples])
            ceiling = numbers.get("objective/kl", 0.0) > config.kl_ceiling
            if ceiling or due(step + 1, config.save_every, total_steps):
                writer.flush()
                checkpoints.save(step + 1, to_checkpoint(state), meta)
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


def to_checkpoint(state: PPOState) -> dict:
    items = to_items(state.policy)
    items |= to_items(state.value, "value") if state.value else {}
    return items | {"rest": {"kl_coef": state.kl_coef, "moments": state.moments}}


def from_checkpoint(items: dict) -> PPOState:
    value = from_items(items, "value") if "value" in items else None
    return PPOState(policy=from_items(items), value=value, **items["rest"])


def adapt_kl_coef(state: PPOState, observed: Mean, config) -> PPOState:
    kl_coef = kl.update_kl_coef(
        kl_coef=state.kl_coef,
        kl=observed.total / observed.count,
        target=config.kl_target,
        horizon=config.kl_horizon,
        batch_size=config.batch_size,
    )
    return dataclasses.replace(state, kl_coef=kl_coef)


def check_options(config) -> None:
    """Refuse options that contradict each other, before anything is read or compiled.

    Raises:
        ValueError: which, and what to set instead.
    """
    for name, known in {
        "advantage": ("gae", "rloo", "grpo", "remax"),
        "baseline": ("reference", "greedy", "none"),
    }.items():
        if config[name] not in known:
            raise ValueError(f"{name}={config[name]!r} must be one of {known}.")
    grouped = config.advantage in ("rloo", "grpo")
    if grouped and config.samples_per_prompt < 2:
        raise ValueError(
            f"advantage={config.advantage!r} compares the responses to one prompt: "
            "set samples_per_prompt to 2 or more."
        )
    if grouped and config.baseline != "none":
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
        raise ValueError(
            "whiten_rewards is of advantage='gae', with its token rewards."
        )
    if 0 < config.dual_clip <= 1:
        raise ValueError(f"{config.dual_clip=} must be above 1, or 0 for none.")
    for name, parts in {
        "batch_size": ("samples_per_prompt",),
        "batch_size ": ("minibatches", "microbatches"),
        "sft_batch_size": ("microbatches",) if config.beta_sft else (),
    }.items():
        whole, divisor = config[name.strip()], 1
        for part in parts:
            divisor *= config[part]
        if whole % divisor:
            raise ValueError(
                f"{name.strip()}={whole} must be a multiple of "
                f"{' * '.join(f'{part}={config[part]}' for part in parts)}."
            )

"""DPO on pairs that the reward model labelled, with an SFT term.

ChatGLM-RLHF (arXiv 2404.00934), section 4; DPO: arXiv 2305.18290, equation 7. Before
the first step the reference's log-probabilities of every pair are computed once. One
step:
1. A batch of pairs of similar length; the two responses share their prompt.
2. Summed log-probabilities of both responses under the policy, in one pass.
3. -log sigmoid(beta * (chosen log-ratio - rejected log-ratio)) + beta_sft * SFT loss.
4. AdamW.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from rlhf_jax.batches import PreferenceBatch
from rlhf_jax.data import sources
from rlhf_jax.data.batching import BatchOrder, SFTBatches, preference_batch
from rlhf_jax.data.encoding import encode_dialogues, encode_pairs
from rlhf_jax.data.records import Comparison, read_records
from rlhf_jax.evaluation.answers import sample_conversations
from rlhf_jax.generation.scoring import dialogue_logprobs, response_logprobs
from rlhf_jax.losses.dpo import dpo_loss
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.training import optimizers, weights
from rlhf_jax.training.accumulate import value_and_grad
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.metrics import Mean, Stopwatch, Writer
from rlhf_jax.training.progress import ProgressBar
from rlhf_jax.training.state import TrainState, apply_gradients, from_items, to_items
from rlhf_jax.training.workdir import due, finish, open_workdir


@dataclasses.dataclass(frozen=True)
class Hyper:
    """The numbers that the compiled step depends on; see configs/dpo.py."""

    num_tokens: int
    chunk_size: int
    beta: float
    label_smoothing: float
    beta_sft: float


def pair_logprobs(policy, batch: PreferenceBatch, *, hyper: Hyper):
    """Summed log-probabilities [B, 2] of chosen and rejected."""
    out = response_logprobs(
        policy,
        batch.prompts,
        batch.prompt_mask,
        batch.responses,
        batch.response_mask,
        temperature=1.0,
        num_tokens=hyper.num_tokens,
        chunk_size=hyper.chunk_size,
    )
    return jnp.where(batch.response_mask, out.logprobs, 0.0).sum(-1)


def loss_fn(policy, inputs, *, num_pairs, num_sft_tokens, hyper: Hyper):
    """The share of L_dpo + beta_sft * L_sft of (pairs, their reference's
    log-probabilities [B, 2], SFT batch)."""
    batch, reference, sft = inputs
    logprobs = pair_logprobs(policy, batch, hyper=hyper)
    out = dpo_loss(
        chosen_logprobs=logprobs[:, 0],
        rejected_logprobs=logprobs[:, 1],
        ref_chosen_logprobs=reference[:, 0],
        ref_rejected_logprobs=reference[:, 1],
        beta=hyper.beta,
        label_smoothing=hyper.label_smoothing,
    )
    loss = Mean.of(out.loss, batch.valid)
    metrics = {
        "loss/dpo": loss,
        "rewards/chosen": Mean.of(out.chosen_rewards, batch.valid),
        "rewards/rejected": Mean.of(out.rejected_rewards, batch.valid),
        "rewards/margins": Mean.of(out.margin, batch.valid),
        "rewards/accuracies": Mean.of(out.accuracy, batch.valid),
        "logps/chosen": Mean.of(logprobs[:, 0], batch.valid),
        "logps/rejected": Mean.of(logprobs[:, 1], batch.valid),
    }
    total = loss.total / num_pairs
    if hyper.beta_sft:
        sft_logprobs = dialogue_logprobs(
            policy, sft, num_tokens=hyper.num_tokens, chunk_size=hyper.chunk_size
        )
        metrics["loss/sft"] = Mean.of(sft_loss(logprobs=sft_logprobs), sft.loss_mask)
        total += hyper.beta_sft * metrics["loss/sft"].total / num_sft_tokens
    return total, metrics


def train_step(state, batch, reference, sft, *, optimizer, microbatches, hyper: Hyper):
    share = functools.partial(
        loss_fn,
        num_pairs=batch.valid.sum(),
        num_sft_tokens=sft.loss_mask.sum() if sft else 1,
        hyper=hyper,
    )
    _, metrics, gradients = value_and_grad(
        share, state.model, (batch, reference, sft), microbatches=microbatches
    )
    state, update_metrics = apply_gradients(state, gradients, optimizer)
    return state, metrics | update_metrics


def reference_logprobs(path, reference, pairs, make_batch, batch_size, logprob_step):
    """The reference's log-probabilities of all pairs, float32 [pairs, 2]: computed
    once and kept on disk."""
    if path.exists():
        return np.load(path, allow_pickle=False)
    order = np.argsort(
        [max(len(chosen), len(rejected)) for _, chosen, rejected in pairs]
    )
    found = np.zeros((len(pairs), 2), np.float32)
    for i in range(0, len(pairs), batch_size):
        index = order[i : i + batch_size]
        batch = make_batch([pairs[j] for j in index])
        found[index] = np.asarray(logprob_step(reference, batch))[: len(index)]
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, found)
    temporary.replace(path)
    return found


def run(config, workdir: str) -> None:
    """Improve `config.init_from` (an SFT policy) on labelled pairs; leave it in
    `workdir/checkpoints`."""
    workdir = open_workdir(workdir, config)

    # Data
    data = sources.open_data(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.init_from, workdir)
    pairs, dropped = encode_pairs(
        read_records(config.pairs or data / "comparisons.jsonl", Comparison),
        tokenizer=tokenizer,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    logging.info("%d pairs; dropped: %s.", len(pairs), dict(dropped))
    order = BatchOrder(
        len(pairs),
        batch_size=config.batch_size,
        seed=config.seed,
        lengths=[max(len(chosen), len(rejected)) for _, chosen, rejected in pairs],
    )
    make_batch = functools.partial(
        preference_batch,
        pad_id=tokenizer.pad_id,
        multiple=config.pad_to_multiple,
        batch_size=config.batch_size,
    )
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
    policy = weights.load_policy(
        config.init_from,
        model=config.model,
        num_tokens=tokenizer.vocab_size,
        key=jax.random.key(config.seed),
        dtype=config.dtype,
        param_dtype=config.param_dtype,
    )

    # Steps
    hyper = Hyper(
        num_tokens=tokenizer.vocab_size,
        chunk_size=config.chunk_size,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        beta_sft=config.beta_sft,
    )
    total_steps = config.epochs * order.batches_per_epoch
    optimizer, schedule = optimizers.from_config(config.optimizer, total_steps)
    step_fn = jax.jit(
        functools.partial(
            train_step,
            optimizer=optimizer,
            microbatches=config.microbatches,
            hyper=hyper,
        ),
        donate_argnums=0,
    )

    # Reference: needed for these numbers alone, then its memory is free
    reference = reference_logprobs(
        workdir / "reference_logprobs.npy",
        policy,
        pairs,
        make_batch,
        config.batch_size,
        jax.jit(functools.partial(pair_logprobs, hyper=hyper)),
    )

    # State
    state = jax.jit(functools.partial(TrainState.create, optimizer=optimizer))(policy)
    del policy

    # Restore
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
    meta = {"models": {"model": weights.describe(state.model)}}
    start = checkpoints.latest_step()
    if start:
        state = from_items(checkpoints.restore(start, to_items(state)))

    # Loop
    writer, watch = Writer(workdir, start, config.max_skipped_updates), Stopwatch()
    show = {"loss": "loss/dpo", "margin": "rewards/margins"}
    with ProgressBar("dpo", total_steps, start, show) as bar:
        for step in range(start, total_steps):
            index = order.indices(step)
            batch = make_batch([pairs[i] for i in index])
            state, metrics = step_fn(
                state, batch, reference[index], sft.batch(step) if sft else None
            )
            metrics["optim/lr"] = schedule(step)
            metrics["tokens_per_second"] = watch.rate(batch.response_mask.sum())
            bar.update(*writer.write(step + 1, metrics))
            if due(step + 1, config.save_every, total_steps):
                writer.flush()
                checkpoints.save(step + 1, to_items(state), meta)
    numbers = writer.flush()
    samples = sample_conversations(
        state.model,
        data / "eval_prompts.jsonl",
        tokenizer,
        count=config.num_samples,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    writer.write_samples(total_steps, samples)
    writer.close()
    checkpoints.close()
    finish(workdir, numbers)

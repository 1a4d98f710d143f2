"""The reward model: a scalar score that ranks responses as people do.

ChatGLM-RLHF (arXiv 2404.00934), section 2. One step:
1. A batch of comparisons of similar length; the two responses share their prompt.
2. One forward pass; the score is read at each response's last token.
3. -log sigmoid(chosen - rejected), plus a penalty on large scores.
4. AdamW.
After the last step the scores are centred: mean 0 over the training responses.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from rlhf_jax.batches import PreferenceBatch
from rlhf_jax.data import sources
from rlhf_jax.data.batching import BatchOrder, preference_batch
from rlhf_jax.data.encoding import encode_pairs
from rlhf_jax.data.records import Comparison, read_records
from rlhf_jax.evaluation.preferences import pair_accuracy
from rlhf_jax.generation.scoring import response_scores
from rlhf_jax.losses.reward import ranking_loss
from rlhf_jax.training import optimizers, weights
from rlhf_jax.training.accumulate import value_and_grad
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.metrics import Mean, Stopwatch, Writer
from rlhf_jax.training.progress import ProgressBar
from rlhf_jax.training.state import TrainState, apply_gradients, from_items, to_items
from rlhf_jax.training.workdir import due, finish, open_workdir


def loss_fn(model, batch: PreferenceBatch, *, num_pairs, score_regularisation):
    """The batch's share of the loss, and what to log."""
    scores = pair_scores(model, batch)
    out = ranking_loss(
        chosen_scores=scores[:, 0],
        rejected_scores=scores[:, 1],
        margin=0.0,
        label_smoothing=0.0,
        score_regularisation=score_regularisation,
    )
    loss = Mean.of(out.loss, batch.valid)
    metrics = {
        "loss/reward": loss,
        "loss/ranking": Mean.of(out.ranking, batch.valid),
        "rewards/accuracies": Mean.of(out.margin > 0, batch.valid),
        "rewards/margins": Mean.of(out.margin, batch.valid),
        "rewards/chosen": Mean.of(scores[:, 0], batch.valid),
        "rewards/rejected": Mean.of(scores[:, 1], batch.valid),
    }
    return loss.total / num_pairs, metrics


def train_step(state, batch, *, optimizer, microbatches, score_regularisation):
    share = functools.partial(
        loss_fn,
        num_pairs=batch.valid.sum(),
        score_regularisation=score_regularisation,
    )
    _, metrics, gradients = value_and_grad(
        share, state.model, batch, microbatches=microbatches
    )
    state, update_metrics = apply_gradients(state, gradients, optimizer)
    return state, metrics | update_metrics


def pair_scores(model, batch: PreferenceBatch):
    """Scores [B, 2] of chosen and rejected."""
    return response_scores(
        model,
        batch.prompts,
        batch.prompt_mask,
        batch.responses,
        batch.response_mask,
    )


def evaluate(model, batches, score_step) -> dict:
    """Accuracy with its interval, margin and spread of scores on held-out pairs."""
    scores = np.concatenate(
        [np.asarray(score_step(model, b))[np.asarray(b.valid)] for b in batches]
    )
    return {f"eval/{name}": x for name, x in pair_accuracy(scores).items()}


def run(config, workdir: str) -> None:
    """Train a reward model from `config.init_from` (an SFT policy) on comparisons;
    leave it in `workdir/checkpoints`."""
    workdir = open_workdir(workdir, config)

    # Data
    data = sources.open_data(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.init_from, workdir)
    encode = functools.partial(
        encode_pairs,
        tokenizer=tokenizer,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    train_file = config.comparisons or data / "comparisons.jsonl"
    test_file = config.comparisons_test or data / "comparisons_test.jsonl"
    _, pairs, dropped = encode(read_records(train_file, Comparison))
    _, held_out, _ = encode(read_records(test_file, Comparison))
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
    eval_batches = [
        make_batch(held_out[i : i + config.batch_size])
        for i in range(0, len(held_out), config.batch_size)
    ]

    # Model
    policy_key, head_key = jax.random.split(jax.random.key(config.seed))
    policy = weights.load_policy(
        config.init_from,
        model=config.model,
        num_tokens=tokenizer.vocab_size,
        key=policy_key,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
    )
    model = weights.load_score_model(
        "", backbone=policy, num_tokens=tokenizer.vocab_size, key=head_key
    )
    del policy

    # State
    total_steps = config.epochs * order.batches_per_epoch
    optimizer, schedule = optimizers.from_config(config.optimizer, total_steps)
    state = jax.jit(functools.partial(TrainState.create, optimizer=optimizer))(model)
    del model

    # Steps
    step_fn = jax.jit(
        functools.partial(
            train_step,
            optimizer=optimizer,
            microbatches=config.microbatches,
            score_regularisation=config.score_regularisation,
        ),
        donate_argnums=0,
    )
    score_step = jax.jit(pair_scores)

    # Restore
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
    meta = {"models": {"model": weights.describe(state.model)}}
    start = checkpoints.latest_step()
    if start:
        state = from_items(checkpoints.restore(start, to_items(state)))

    # Loop
    writer, watch = Writer(workdir, start, config.max_skipped_updates), Stopwatch()
    show = {"loss": "loss/ranking", "accuracy": "rewards/accuracies"}
    with ProgressBar("reward", total_steps, start, show) as bar:
        for step in range(start, total_steps):
            batch = make_batch([pairs[i] for i in order.indices(step)])
            state, metrics = step_fn(state, batch)
            metrics["optim/lr"] = schedule(step)
            metrics["tokens_per_second"] = watch.rate(batch.response_mask.sum())
            bar.update(*writer.write(step + 1, metrics))
            if due(step + 1, config.eval_every, total_steps):
                writer.write(step + 1, evaluate(state.model, eval_batches, score_step))
            if step + 1 == total_steps:
                sample = pairs[: config.num_centring_pairs]
                offset = mean_score(state.model, sample, make_batch, score_step, config)
                state.model.offset[...] += offset
            if due(step + 1, config.save_every, total_steps):
                writer.flush()
                checkpoints.save(step + 1, to_items(state), meta)
    numbers = writer.flush()
    batch = make_batch(held_out[: config.num_samples])
    scores = np.asarray(score_step(state.model, batch))[batch.valid]
    samples = [
        {
            "prompt": tokenizer.decode(prompt),
            "response": tokenizer.decode(response),
            "reward": float(score),
            "label": label,
        }
        for (prompt, *responses), both in zip(held_out, scores, strict=False)
        for label, response, score in zip(
            ("chosen", "rejected"), responses, both, strict=True
        )
    ]
    writer.write_samples(total_steps, samples)
    writer.close()
    checkpoints.close()
    finish(workdir, numbers)


def mean_score(model, pairs, make_batch, score_step, config) -> jax.Array:
    """The mean score of both sides' responses: subtracted, PPO starts near reward 0."""
    totals, count = 0.0, 0
    for i in range(0, len(pairs), config.batch_size):
        batch = make_batch(pairs[i : i + config.batch_size])
        scores = np.asarray(score_step(model, batch))[batch.valid]
        totals, count = totals + scores.sum(dtype=np.float64), count + scores.size
    return jnp.float32(totals / count)

"""Supervised fine-tuning: next-token loss on the assistant's tokens.

One step:
1. A batch of dialogues of similar length, right-padded.
2. Log-probabilities of every assistant token (its end token included).
3. Minus their mean over the tokens of the batch, not the mean of means.
4. AdamW.
"""

import functools
import operator

import jax
from absl import logging

from rlhf_jax.batches import SFTBatch
from rlhf_jax.data import sources
from rlhf_jax.data.batching import BatchOrder, sft_batch
from rlhf_jax.data.encoding import encode_dialogues
from rlhf_jax.data.records import Dialogue, Prompt
from rlhf_jax.evaluation.answers import sample_conversations
from rlhf_jax.generation.scoring import dialogue_logprobs
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.parallel.mesh import check_batch
from rlhf_jax.parallel.sharding import create, shard_batch
from rlhf_jax.training import optimizers, weights
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.metrics import Mean, Stopwatch, Writer
from rlhf_jax.training.progress import ProgressBar
from rlhf_jax.training.state import TrainState, from_items, to_items, update
from rlhf_jax.training.workdir import due, finish, open_workdir


def loss_fn(policy, batch: SFTBatch, *, num_target, num_tokens, chunk_size):
    """The batch's share of the loss, and what to log."""
    logprobs = dialogue_logprobs(
        policy, batch, num_tokens=num_tokens, chunk_size=chunk_size
    )
    loss = Mean.of(sft_loss(logprobs=logprobs), batch.loss_mask)
    return loss.total / num_target, {"loss/sft": loss}


def train_step(
    state, batch, learning_rate, *, optimizer, microbatches, num_tokens, chunk_size
):
    share = functools.partial(
        loss_fn,
        num_target=batch.loss_mask.sum(),
        num_tokens=num_tokens,
        chunk_size=chunk_size,
    )
    optimizer = optimizer.at(learning_rate)
    return update(share, state, batch, optimizer=optimizer, microbatches=microbatches)


def evaluate(policy, batches, eval_step) -> dict:
    """Mean loss per assistant token on held-out dialogues."""
    losses = [eval_step(policy, shard_batch(b))[1]["loss/sft"] for b in batches]
    return {"eval/loss": functools.reduce(operator.add, losses)}


def run(config, workdir: str) -> None:
    """Fine-tune `config.init_from` (or random weights) on dialogues; leave the policy
    in `workdir/checkpoints`."""
    check_batch("batch_size", config.batch_size, parts=config.microbatches)
    workdir = open_workdir(workdir, config)

    # Data
    data = sources.open_data(config.data, workdir)
    read = sources.reader(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.init_from, workdir)
    weights.check_models(
        tokenizer,
        sources.tokenizer_fingerprint,
        policies=[config.init_from],
    )
    examples, too_long = encode_dialogues(
        read(data / "sft.jsonl", Dialogue),
        tokenizer,
        config.max_tokens,
        config.too_long,
    )
    held_out, _ = encode_dialogues(
        read(data / "sft_test.jsonl", Dialogue),
        tokenizer,
        config.max_tokens,
        config.too_long,
    )
    logging.info("%d dialogues; too long: %s.", len(examples), dict(too_long) or 0)
    order = BatchOrder(
        len(examples),
        batch_size=config.batch_size,
        seed=config.seed,
        lengths=[len(ids) for ids, _ in examples],
    )
    make_batch = functools.partial(
        sft_batch, pad_id=tokenizer.pad_id, multiple=config.pad_to_multiple
    )
    eval_batches = [
        make_batch(held_out[i : i + config.batch_size], batch_size=config.batch_size)
        for i in range(0, len(held_out), config.batch_size)
    ]

    # Model
    policy = weights.load_policy(
        config.init_from,
        model=config.model,
        num_tokens=tokenizer.vocab_size,
        key=jax.random.key(config.seed),
        **weights.computation(config),
    )

    # State
    total_steps = config.epochs * order.batches_per_epoch
    optimizer = optimizers.from_config(config.optimizer)
    learning_rates = optimizers.learning_rates(config.optimizer, total_steps)
    state = create(functools.partial(TrainState.create, optimizer=optimizer), policy)
    del policy

    # Steps
    num_tokens, chunk_size = tokenizer.vocab_size, config.chunk_size
    step_fn = jax.jit(
        functools.partial(
            train_step,
            optimizer=optimizer,
            microbatches=config.microbatches,
            num_tokens=num_tokens,
            chunk_size=chunk_size,
        ),
        donate_argnums=0,
    )
    eval_step = jax.jit(
        functools.partial(
            loss_fn, num_target=1.0, num_tokens=num_tokens, chunk_size=chunk_size
        )
    )

    # Restore
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints, best="-eval/loss")
    meta = {"models": {"model": weights.describe(state.model, tokenizer)}}
    start = checkpoints.latest_step()
    if start:
        state = from_items(checkpoints.restore(start, to_items(state)))

    # Loop
    writer = Writer(workdir, start, config.max_skipped_updates, config.spike_zscore)
    watch = Stopwatch()
    with ProgressBar("sft", total_steps, start, {"loss": "loss/sft"}) as bar:
        for step in range(start, total_steps):
            batch = make_batch([examples[i] for i in order.indices(step)])
            state, metrics = step_fn(state, shard_batch(batch), learning_rates[step])
            metrics["optim/lr"] = learning_rates[step]
            metrics["tokens_per_second"] = watch.rate(batch.mask.sum())
            bar.update(*writer.write(step + 1, metrics, {"batch": batch}))
            if due(step + 1, config.eval_every, total_steps):
                writer.write(step + 1, evaluate(state.model, eval_batches, eval_step))
            if checkpoints.due(step + 1, config.save_every, total_steps):
                checkpoints.save(step + 1, to_items(state), meta, writer.flush())
    numbers = writer.flush()
    samples = sample_conversations(
        state.model,
        read(data / "eval_prompts.jsonl", Prompt),
        tokenizer,
        count=config.num_samples,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    writer.write_samples(total_steps, samples)
    writer.close()
    checkpoints.close()
    finish(workdir, numbers)

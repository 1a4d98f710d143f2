"""Supervised fine-tuning: next-token loss on the assistant's tokens.

One step:
1. A batch of dialogues of all lengths, packed into rows of one width (`pack`); or of
   similar length, each in a row of its own, right-padded.
2. Log-probabilities of every assistant token (end tokens included).
3. The loss: minus their mean over the tokens of the batch, not a mean of means.
4. AdamW.
The loss and the step are in algorithms/sft.py.
"""

import functools
import operator

import jax
from absl import logging

from rlhf_jax.algorithms.sft import Hyper, mean_loss, train_step
from rlhf_jax.data import packing, sources
from rlhf_jax.data.batching import BatchOrder, sft_batch
from rlhf_jax.data.encoding import encode_dialogues
from rlhf_jax.data.records import Dialogue, Prompt
from rlhf_jax.evaluation.answers import sample_conversations
from rlhf_jax.parallel.mesh import check_batch, row_unit
from rlhf_jax.parallel.sharding import shard_batch
from rlhf_jax.terminal import listed
from rlhf_jax.training import model_checks, model_records, optimizers, options, weights
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.metrics import Rate, Writer
from rlhf_jax.training.progress import ProgressBar
from rlhf_jax.training.state import (
    check_learned,
    compiled,
    first_shapes,
    first_state,
    from_items,
    to_items,
)
from rlhf_jax.training.workdir import done_before, due, finish, open_workdir


def run(config, workdir: str) -> None:
    """Fine-tune `config.init_from` (or random weights) on dialogues; save the policy in
    `workdir/checkpoints`."""
    check_options(config)
    workdir = open_workdir(workdir, config)
    if done_before(workdir):
        return

    # Data
    data = sources.open_data(config.data, workdir)
    read = sources.Reader(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.init_from, workdir)
    model_checks.check_models(
        tokenizer,
        sources.tokenizer_fingerprint,
        policies=[config.init_from],
    )
    adapters = weights.Adapters(config)
    adapters.check(config.init_from)
    examples, too_long = encode_dialogues(
        read(data / "sft.jsonl", Dialogue),
        tokenizer,
        config.max_tokens,
        config.too_long,
        thoughts=config.train_on_thoughts,
    )
    held_out, _ = encode_dialogues(
        read(data / "sft_test.jsonl", Dialogue),
        tokenizer,
        config.max_tokens,
        config.too_long,
        thoughts=config.train_on_thoughts,
    )
    eval_prompts = read(data / "eval_prompts.jsonl", Prompt)
    logging.info("%d dialogues; too long: %s.", len(examples), listed(too_long))
    order = BatchOrder(
        len(examples),
        batch_size=config.batch_size,
        seed=config.seed,
        lengths=[len(ids) for ids, _ in examples],
        mixed=config.pack,
    )
    padding = {"pad_id": tokenizer.pad_id, "batch_size": config.batch_size}
    if config.pack:
        sizes = [packing.size(example) for example in [*examples, *held_out]]
        padding["room"] = packing.Room.of(sizes, config.pad_to_multiple)
        padding["unit"] = row_unit(config.microbatches)
        make_batch = functools.partial(packing.pack_dialogues, **padding)
        eval_batches = packing.pack_evaluation(held_out, **padding)
    else:
        padding["multiple"] = config.pad_to_multiple
        make_batch = functools.partial(sft_batch, **padding)
        eval_batches = [
            make_batch(held_out[i : i + config.batch_size])
            for i in range(0, len(held_out), config.batch_size)
        ]
    agree(
        workdir,
        read.fingerprints,
        tokenizer=tokenizer.fingerprint,
        models=[config.init_from],
    )

    # Steps
    hyper = Hyper.from_config(config, tokenizer.vocab_size)
    total_steps = config.epochs * order.batches_per_epoch
    optimizer = optimizers.from_config(config.optimizer)
    learning_rates = optimizers.learning_rates(config.optimizer, total_steps)
    step_fn = compiled(functools.partial(train_step, optimizer=optimizer, hyper=hyper))
    eval_step = jax.jit(
        functools.partial(
            mean_loss, num_tokens=hyper.num_tokens, chunk_size=hyper.chunk_size
        )
    )

    # Models
    init_key = jax.random.key(config.seed)
    lora_key = jax.random.fold_in(init_key, 1)
    load_policy = functools.partial(
        weights.load_policy,
        config.init_from,
        model=config.model,
        num_tokens=tokenizer.vocab_size,
        key=init_key,
        adapters=adapters,
        **weights.computation(config),
    )

    # State
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints, best="-eval/loss")
    start = checkpoints.latest_step()
    if start:
        model = weights.shapes(checkpoints, start, "model", config, adapters)
        items = to_items(first_shapes(model, optimizer))
        state = from_items(checkpoints.restore(start, items))
    else:
        state = first_state(adapters.on(load_policy(), lora_key), optimizer)
    base = adapters.base(config.init_from, workdir)
    meta = {"models": {"model": model_records.describe(state.model, tokenizer, base)}}

    # Loop
    writer = Writer(
        workdir,
        start,
        config.max_skipped_updates,
        config.spike_zscore,
        config.logger,
    )
    with ProgressBar("sft", total_steps, start, {"loss": "loss/sft"}) as bar:
        for step in range(start, total_steps):
            batch = make_batch([examples[i] for i in order.indices(step)])
            state, metrics = step_fn(state, shard_batch(batch), learning_rates[step])
            metrics["optim/lr"] = learning_rates[step]
            metrics["tokens_per_second"] = Rate(batch.mask.sum())
            bar.update(*writer.write(step + 1, metrics, {"batch": batch}))
            if due(step + 1, config.eval_every, total_steps):
                writer.write(step + 1, evaluate(state.model, eval_batches, eval_step))
            if checkpoints.due(step + 1, config.save_every, total_steps):
                checkpoints.save(step + 1, to_items(state), meta, writer.flush())

    # Hand on
    numbers = writer.flush()
    check_learned(state)
    samples = sample_conversations(
        state.model,
        eval_prompts,
        tokenizer,
        count=config.num_samples,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    writer.write_samples(total_steps, samples)
    writer.close()
    checkpoints.close()
    finish(workdir, numbers | {"dialogues": {"used": len(examples), **too_long}})


def evaluate(policy, batches, eval_step) -> dict:
    """Compute the mean loss per assistant token on held-out dialogues, in nats."""
    losses = [eval_step(policy, shard_batch(batch)) for batch in batches]
    return {"eval/loss": functools.reduce(operator.add, losses)}


def check_options(config) -> None:
    """Refuse options that contradict each other, before anything is read or compiled.

    Raises:
        ValueError: names the options and what to set instead.
    """
    check_batch("batch_size", config.batch_size, parts=config.microbatches)
    options.fused_updates(config)
    options.adapters(config)
    weights.computation(config)

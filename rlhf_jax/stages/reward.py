"""The reward model: a scalar score that ranks responses as people do.

ChatGLM-RLHF (arXiv 2404.00934), section 2. The comparisons have been cleaned
and balanced by length (stages/prepare_comparisons.py). One step:
1. A batch of comparisons of all lengths, packed into rows of one width (`pack`); or of
   similar length, each in a row of its own. The two responses share their prompt,
   except under attention that knows no segments ("splash").
2. One forward pass; the score is read at each response's last token.
3. -log sigmoid(chosen - rejected), plus a penalty on large scores.
4. AdamW.
Every `eval_every` steps the model is measured on validation pairs, which are those of
a part of the training prompts. The best of these models is the result; training stops
after `patience` evaluations in a row without a better model (the paper does not say
when training stops). The test pairs are used once, at the end. Then the scores are also
centred: their mean over training responses is 0. In the paper's data these responses
are those of the SFT model that PPO starts from.
The loss and the step are in algorithms/reward.py.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from rlhf_jax.algorithms.reward import Hyper, train_step
from rlhf_jax.data import packing, sources
from rlhf_jax.data.batching import BatchOrder, packed_pairs
from rlhf_jax.data.encoding import Pair, encode_pairs
from rlhf_jax.data.records import Comparison
from rlhf_jax.evaluation.held_out import evaluate_held_out, score_pairs
from rlhf_jax.evaluation.intervals import pair_accuracy
from rlhf_jax.parallel.mesh import check_batch, row_unit
from rlhf_jax.parallel.sharding import shapes_of, shard_batch
from rlhf_jax.terminal import listed
from rlhf_jax.training import model_checks, model_records, optimizers, options, weights
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.early_stopping import Best
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.metrics import NonFiniteError, Rate, Writer, read_metrics
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

LENGTH_WINDOW = 64  # batches; 16 would pad hh-rlhf by 15 %, 64 pads it by 11 %


def run(config, workdir: str) -> None:
    """Train a reward model from `config.init_from` (an SFT policy) on comparisons; save
    the model in `workdir/checkpoints` and a report on it in `workdir/evaluation`."""
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
    encode = functools.partial(
        encode_pairs,
        tokenizer=tokenizer,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
        too_long=config.too_long,
    )
    train_file = config.comparisons or data / "comparisons.jsonl"
    test_file = config.comparisons_test or data / "comparisons_test.jsonl"
    _, pairs, dropped = encode(read(train_file, Comparison))
    test, test_pairs, test_dropped = encode(read(test_file, Comparison))
    pairs, validation = split_by_prompt(pairs, config.validation_share, config.seed)
    counts = {
        "train": len(pairs),
        "validation": len(validation),
        "test": len(test_pairs),
        "dropped": dict(dropped),
        "dropped_test": dict(test_dropped),
    }
    if (data / "source.json").is_file():  # what an earlier stage left out
        counts["source"] = json.loads((data / "source.json").read_text())
    logging.info("Pairs: %s.", listed(counts))
    order = BatchOrder(
        len(pairs),
        batch_size=config.batch_size,
        seed=config.seed,
        lengths=[sum(map(len, pair)) for pair in pairs],
        window=LENGTH_WINDOW,
        mixed=config.pack,
    )
    padding = {
        "pad_id": tokenizer.pad_id,
        "multiple": config.pad_to_multiple,
        "batch_size": config.batch_size,
    }
    make_batch = functools.partial(packed_pairs, **padding)
    if config.pack:
        share = weights.computation(config)["attention"] != "splash"
        sizes = [packing.pair_size(pair, share=share) for pair in pairs]
        make_batch = functools.partial(
            packing.pack_scored_pairs,
            pad_id=tokenizer.pad_id,
            room=packing.Room.of(sizes, config.pad_to_multiple),
            unit=row_unit(config.microbatches),
            batch_size=config.batch_size,
            share=share,
        )
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

    # Models
    policy_key, head_key = jax.random.split(jax.random.key(config.seed))
    lora_key = jax.random.fold_in(policy_key, 1)

    def load_model():
        policy = weights.load_policy(
            config.init_from,
            model=config.model,
            num_tokens=tokenizer.vocab_size,
            key=policy_key,
            adapters=adapters,
            **weights.computation(config),
        )
        policy = adapters.on(policy, lora_key)
        return weights.load_score_model(
            "", backbone=policy, num_tokens=tokenizer.vocab_size, key=head_key
        )

    # State
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
    start = checkpoints.latest_step()
    if start:
        model = weights.shapes(checkpoints, start, "model", config, adapters)
        items = to_items(first_shapes(model, optimizer))
        best = shapes_of(Best.start, model)
        items |= {"best": dataclasses.replace(best, model=model)}
        items = checkpoints.restore(start, items)
        state, best = from_items(items), items["best"]
        del items
    else:
        state = first_state(load_model(), optimizer)
        best = Best.start(state.model)
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
    show = {"loss": "loss/ranking", "accuracy": "rewards/accuracies"}
    is_done = start == total_steps or best.is_final(config.patience)
    step = start
    with ProgressBar("reward", total_steps, start, show) as bar:
        while not is_done:
            batch = make_batch([pairs[i] for i in order.indices(step)])
            state, metrics = step_fn(state, shard_batch(batch), learning_rates[step])
            metrics["optim/lr"] = learning_rates[step]
            metrics["tokens_per_second"] = Rate(batch.mask.sum())
            step += 1
            bar.update(*writer.write(step, metrics, {"batch": batch}))
            if due(step, config.eval_every or total_steps, total_steps):
                validated = validate(state.model, validation, padding)
                best = best.update(state.model, validated["validation/accuracy"])
                writer.write(step, validated)
            is_done = step == total_steps or best.is_final(config.patience)
            if checkpoints.due(step, config.save_every, total_steps) and not is_done:
                writer.flush()
                checkpoints.save(step, to_items(state) | {"best": best}, meta)

    # Hand on: without further steps, the restored checkpoint is already the last one
    if step > start:
        check_learned(state)
        if not np.isfinite(best.score):
            raise NonFiniteError(
                "No evaluation gave an accuracy by which to choose a model."
            )
        model = best.model
        sample = pairs[: config.num_centring_pairs]
        model.offset[...] = jnp.float32(score_pairs(model, sample, **padding).mean())
        scores = score_pairs(model, test_pairs, **padding)
        report = evaluate_held_out(
            scores, test, test_pairs, pairs, workdir / "evaluation"
        )
        writer.write(step, {f"eval/{name}": x for name, x in report.items()})
        writer.write_samples(step, samples(test, scores, config.num_samples))
        writer.flush()
        checkpoints.save(step, to_items(state) | {"model": model, "best": best}, meta)
    writer.close()
    checkpoints.close()
    summary = read_metrics(workdir)[-1] | {"pairs": counts}
    finish(workdir, summary)


def split_by_prompt(
    pairs: list[Pair], share: float, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into training and validation pairs: all pairs of a fraction `share`
    of the prompts, at least one prompt, are for validation.

    Raises:
        ValueError: one of the parts would be empty.
    """
    prompts = list(dict.fromkeys(tuple(prompt) for prompt, _, _ in pairs))
    count = max(1, round(share * len(prompts)))
    if not 0 < share < 1 or count == len(prompts):
        raise ValueError(
            f"config.validation_share={share} of {len(prompts)} prompts leaves no "
            "pairs to train on, or none to choose the best model by."
        )
    chosen = np.random.default_rng(seed).permutation(len(prompts))[:count]
    held = {prompts[i] for i in chosen}
    parts = ([], [])
    for pair in pairs:
        parts[tuple(pair[0]) in held].append(pair)
    return parts


def validate(model, pairs: list[Pair], padding: dict) -> dict[str, float]:
    """Compute the metrics by which training is stopped and the best model is chosen."""
    scores = score_pairs(model, pairs, **padding)
    metrics = pair_accuracy(
        scores[:, 0] - scores[:, 1], [tuple(prompt) for prompt, _, _ in pairs]
    )
    metrics |= {"score_mean": scores.mean(), "score_std": scores.std()}
    return {f"validation/{name}": x for name, x in metrics.items()}


def samples(test: list[Comparison], scores: np.ndarray, count: int) -> list[dict]:
    """Return the first `count` test pairs with their scores."""
    return [
        {
            "prompt": comparison.prompt.messages[-1]["content"],
            "response": text,
            "reward": float(score),
            "label": label,
        }
        for comparison, both in zip(test[:count], scores, strict=False)
        for label, text, score in zip(
            ("chosen", "rejected"),
            (comparison.chosen, comparison.rejected),
            both,
            strict=True,
        )
    ]


def check_options(config) -> None:
    """Refuse impossible options, before anything is read or compiled.

    Raises:
        ValueError: names the option and the values it can have.
    """
    check_batch("batch_size", config.batch_size, parts=config.microbatches)
    options.one_of(config, "too_long", ("drop", "truncate_prompt"))
    options.fused_updates(config)
    options.adapters(config)
    weights.computation(config)

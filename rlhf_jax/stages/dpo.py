"""DPO and its relatives on pairs that the reward model labelled, with an SFT term.

ChatGLM-RLHF (arXiv 2404.00934), section 4; DPO: arXiv 2305.18290, equation 7. The
reference's log-probabilities of every pair are computed once before the first step
(`reference="cached"`), or in every step ("on_the_fly"). One step:
1. A batch of pairs of all lengths, packed into rows of one width (`pack`); or of
   similar length, each in a row of its own. The two responses share their prompt,
   except where packed under attention that knows no segments ("splash").
2. Summed log-probabilities of both responses under the policy, in one pass.
3. The loss: for DPO -log sigmoid(beta * (chosen log-ratio - rejected log-ratio)), or
   another loss of losses/dpo.py, plus beta_sft * the SFT loss.
4. AdamW.
Every evaluation lets the policy answer the same prompts, and measures the length and
KL(policy || reference) of the answers. The losses and the step are in
algorithms/dpo.py.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import logging

from rlhf_jax.algorithms.dpo import (
    LOSSES,
    WITHOUT_REFERENCE,
    Hyper,
    pair_logprobs,
    train_step,
)
from rlhf_jax.data import packing, sources
from rlhf_jax.data.batching import BatchOrder, preference_batch
from rlhf_jax.data.encoding import encode_pairs, encode_prompts
from rlhf_jax.data.records import Comparison, Dialogue, Prompt
from rlhf_jax.data.sft_term import sft_batches
from rlhf_jax.evaluation.answers import answer, sequence_logprobs
from rlhf_jax.evaluation.rollouts import quality_metrics
from rlhf_jax.generation.sampling import sampling_with
from rlhf_jax.parallel.mesh import check_batch, row_unit
from rlhf_jax.parallel.sharding import fetch, shard_batch
from rlhf_jax.terminal import listed
from rlhf_jax.training import model_checks, model_records, optimizers, options, weights
from rlhf_jax.training.cache import cached, fingerprint, weights_fingerprint
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.metrics import Mean, Rate, Writer
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
    """Train `config.init_from` (an SFT policy) on labelled pairs; save the policy in
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
        policies=[config.init_from, config.reference_from],
    )
    adapters = weights.Adapters(config)
    adapters.check(config.init_from)
    _, pairs, dropped = encode_pairs(
        read(config.pairs or data / "comparisons.jsonl", Comparison),
        tokenizer=tokenizer,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    logging.info("%d pairs; dropped: %s.", len(pairs), listed(dropped))
    order = BatchOrder(
        len(pairs),
        batch_size=config.batch_size,
        seed=config.seed,
        lengths=[sum(map(len, x)) for x in pairs]
        if config.pack
        else pair_lengths(pairs),
        mixed=config.pack,
    )
    make_batch = functools.partial(
        preference_batch,
        pad_id=tokenizer.pad_id,
        multiple=config.pad_to_multiple,
        batch_size=config.batch_size,
    )
    learn_from: Callable = make_batch
    if config.pack:
        share = weights.computation(config)["attention"] != "splash"
        sizes = [packing.pair_size(pair, share=share) for pair in pairs]
        pack = functools.partial(
            packing.pack_pairs,
            pad_id=tokenizer.pad_id,
            unit=row_unit(config.microbatches),
            batch_size=config.batch_size,
            share=share,
        )
        learn_from = functools.partial(
            pack, room=packing.Room.of(sizes, config.pad_to_multiple)
        )
    pack_mismatched = None
    if config.pack and config.loss == "kto":
        # The longest prompt and the longest responses may come together.
        longest = [max(map(len, part)) for part in zip(*pairs, strict=True)]
        largest = packing.pair_size([range(n) for n in longest], share=share)
        room = packing.Room.of([*sizes, largest], config.pad_to_multiple)
        pack_mismatched = functools.partial(pack, room=room)
    sft = None
    if config.beta_sft:
        sft = sft_batches(
            read(data / "sft.jsonl", Dialogue),
            tokenizer,
            max_tokens=config.max_sft_tokens,
            multiple=config.pad_to_multiple,
            batch_size=config.sft_batch_size,
            seed=config.seed,
            unit=row_unit(config.microbatches) if config.pack else None,
            thoughts=config.train_on_thoughts,
        )
    eval_file = config.eval_prompts or data / "eval_prompts.jsonl"
    eval_prompts = read(eval_file, Prompt)[: config.num_eval_prompts]
    if config.eval_every:
        eval_prompts, _ = encode_prompts(
            eval_prompts, tokenizer, config.max_prompt_tokens
        )
    agree(
        workdir,
        read.fingerprints,
        tokenizer=tokenizer.fingerprint,
        models=[config.init_from, config.reference_from],
    )

    # Steps
    hyper = Hyper.from_config(config, tokenizer.vocab_size)
    total_steps = config.epochs * order.batches_per_epoch
    optimizer = optimizers.from_config(config.optimizer)
    learning_rates = optimizers.learning_rates(config.optimizer, total_steps)
    step_fn = compiled(functools.partial(train_step, optimizer=optimizer, hyper=hyper))
    logprob_step = jax.jit(functools.partial(pair_logprobs, hyper=hyper))
    init_key, eval_key = jax.random.split(jax.random.key(config.seed))
    lora_key = jax.random.fold_in(init_key, 1)
    sampling = sampling_with(
        tokenizer,
        max_new_tokens=config.max_response_tokens,
        temperature=1.0,
    )
    ask = functools.partial(
        answer,
        prompts=eval_prompts,
        tokenizer=tokenizer,
        key=eval_key,
        sampling=sampling,
        max_prompt_tokens=config.max_prompt_tokens,
        batch_size=config.batch_size,
    )
    logprobs = functools.partial(
        sequence_logprobs,
        num_tokens=tokenizer.vocab_size,
        chunk_size=config.chunk_size,
        pad_id=tokenizer.pad_id,
        batch_size=config.batch_size,
    )

    # Models
    load_policy = functools.partial(
        weights.load_policy,
        model=config.model,
        num_tokens=tokenizer.vocab_size,
        key=init_key,
        adapters=adapters,
        **weights.computation(config),
    )
    load_reference = functools.partial(
        load_policy, config.reference_from or config.init_from
    )
    reference = load_reference() if hyper.needs_reference else None
    ref_logprobs = None
    if hyper.needs_reference and config.reference == "cached":
        ref_logprobs = cached(
            Path(config.reference_cache or workdir / "reference_logprobs.npz"),
            {
                "reference": weights_fingerprint(reference),
                "tokenizer": tokenizer.fingerprint,
                "set of pairs": fingerprint(pairs),
            },
            lambda: reference_logprobs(
                reference, pairs, make_batch, config.batch_size, logprob_step
            ),
            shape=(len(pairs), 2),
        )
        reference = None  # frees its memory; an evaluation loads the reference again

    # State
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
    start = checkpoints.latest_step()
    if start:
        model = weights.shapes(checkpoints, start, "model", config, adapters)
        items = to_items(first_shapes(model, optimizer))
        state = from_items(checkpoints.restore(start, items))
    else:
        policy = adapters.on(load_policy(config.init_from), lora_key)
        state = first_state(policy, optimizer)
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
    show = {"loss": "loss/dpo", "margin": "rewards/margins"}
    with ProgressBar("dpo", total_steps, start, show) as bar:
        for step in range(start, total_steps):
            index = order.indices(step)
            chosen = [pairs[i] for i in index]
            batch, other = learn_from(chosen), None
            if pack_mismatched is not None:
                other = pack_mismatched(packing.mismatched(chosen))
            known = None if ref_logprobs is None else ref_logprobs[index]
            if known is not None and config.pack:
                known = packing.in_slots(known, batch)
            inputs = {
                "batch": batch,
                "ref_logprobs": known,
                "sft": None if sft is None else sft.batch(step),
                "other": other,
            }
            state, metrics = step_fn(
                state,
                **shard_batch(inputs),
                reference=reference,
                learning_rate=learning_rates[step],
            )
            metrics["optim/lr"] = learning_rates[step]
            metrics["tokens_per_second"] = Rate(
                sum(len(c) + len(r) for i in index for _, c, r in [pairs[i]])
            )
            bar.update(*writer.write(step + 1, metrics, inputs))
            if due(step + 1, config.eval_every, total_steps):
                eval_metrics, samples = evaluate(
                    state.model,
                    load_reference() if reference is None else reference,
                    ask,
                    logprobs,
                )
                writer.write(step + 1, eval_metrics)
                writer.write_samples(step + 1, samples[: config.num_samples])
            if checkpoints.due(step + 1, config.save_every, total_steps):
                writer.flush()
                checkpoints.save(step + 1, to_items(state), meta)

    # Hand on
    numbers = writer.flush()
    check_learned(state)
    writer.close()
    checkpoints.close()
    finish(workdir, numbers | {"pairs": {"used": len(pairs), **dropped}})


def reference_logprobs(reference, pairs, make_batch, batch_size, logprob_step):
    """Compute the reference's log-probabilities of all pairs: float32 [pairs, 2]."""
    order = np.argsort(pair_lengths(pairs))
    logprobs = np.zeros((len(pairs), 2), np.float32)
    for i in range(0, len(pairs), batch_size):
        index = order[i : i + batch_size]
        batch = shard_batch(make_batch([pairs[j] for j in index]))
        logprobs[index] = fetch(logprob_step(reference, batch))[: len(index)]
    return logprobs


def pair_lengths(pairs) -> list[int]:
    """Return the length of the longer response of each pair, in tokens."""
    return [max(len(chosen), len(rejected)) for _, chosen, rejected in pairs]


def evaluate(policy, reference, ask, logprobs) -> tuple[dict, list[dict]]:
    """Measure KL(policy || reference) in nats, length, share that ended and (testbed)
    true quality of the policy's own answers; return metrics and the conversations."""
    answers = ask(policy)
    kl = logprobs(policy, answers) - logprobs(reference, answers)
    samples = [
        {
            "prompt": prompt.messages[-1]["content"],
            "response": response.text,
            "ended": response.ended,
            "reward": None,
            "kl": response_kl,
        }
        for prompt, response, response_kl in zip(
            answers.prompts, answers.responses, kl.tolist(), strict=True
        )
    ]
    metrics = {
        "eval/kl": Mean.of(kl),
        "eval/response_length": Mean.of(answers.lengths),
        "eval/ended_fraction": Mean.of(answers.ended),
    }
    return metrics | quality_metrics(answers.prompts, answers.texts), samples


def check_options(config) -> None:
    """Refuse options that contradict each other, before anything is read or compiled.

    Raises:
        ValueError: names the options and what to set instead.
    """
    check_batch("batch_size", config.batch_size, parts=config.microbatches)
    options.fused_updates(config)
    options.adapters(config)
    weights.computation(config)
    if config.beta_sft:
        check_batch("sft_batch_size", config.sft_batch_size, parts=config.microbatches)
    loss, label_smoothing = config.loss, config.label_smoothing
    if loss not in LOSSES:
        raise ValueError(f"{loss=} must be one of {', '.join(LOSSES)}.")
    if label_smoothing and loss not in ("dpo", "robust"):
        raise ValueError(f"{label_smoothing=} needs loss dpo or robust, not {loss!r}.")
    if loss == "robust" and not label_smoothing:
        raise ValueError(
            "loss='robust' without label_smoothing is 'dpo': set one of the two."
        )
    if config.gamma and loss != "simpo":
        raise ValueError(f"{config.gamma=} needs loss='simpo', not {loss!r}.")
    if config.alpha and loss != "length_regularised":
        raise ValueError(
            f"{config.alpha=} needs loss='length_regularised', not {loss!r}."
        )
    if loss == "length_regularised" and not config.alpha > 0:
        raise ValueError(f"loss='length_regularised' needs alpha > 0: {config.alpha=}.")
    if config.reference not in ("cached", "on_the_fly"):
        raise ValueError(f"{config.reference=} must be 'cached' or 'on_the_fly'.")
    without = loss in WITHOUT_REFERENCE
    if without and config.reference == "on_the_fly":
        raise ValueError(f"{loss=} has no reference: leave reference='cached'.")
    if loss == "kto" and config.reference == "cached":
        raise ValueError(
            "loss='kto' compares with the reference on other pairs in every batch: set "
            "reference='on_the_fly'."
        )
    if loss == "kto" and config.batch_size < 2:
        raise ValueError("loss='kto' compares pairs of a batch: set batch_size to 2.")
    weights_of_kto = (config.desirable_weight, config.undesirable_weight)
    if weights_of_kto != (1.0, 1.0) and loss != "kto":
        raise ValueError(
            f"desirable_weight and undesirable_weight need loss='kto', not {loss!r}."
        )
    if config.reference_cache and (without or config.reference == "on_the_fly"):
        raise ValueError(
            f"{config.reference_cache=} needs reference='cached' and a loss with a "
            f"reference, not {loss!r}."
        )

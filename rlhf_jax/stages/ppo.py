"""PPO with a reference-reward baseline, a KL penalty and an SFT term.

ChatGLM-RLHF (arXiv 2404.00934), section 3. The functions of one iteration are in
algorithms/ppo.py, the parts that it is made of in ppo/:
1. rollout: the policy answers a batch of prompts. When a prompt is first drawn, the
   reference answers it too, and the score of that answer is kept. With max_draws,
   prompts whose scores are all equal are replaced (dynamic sampling, arXiv 2503.14476):
   draw d of step s takes place s * max_draws + d of the order of prompts.
2. run_models: old log-probabilities, reference log-probabilities, scores and values in
   one program, over rows that hold several responses each (`pack`), while functions of
   rewards run on the host; the score is the sum of all rewards by their weights.
   make_experience: a token's reward is -kl_coef * KL; the last token's reward also has
   the score minus the reference answer's score. Advantages are from GAE.
3. train_step: epochs x minibatches of the clipped policy loss plus beta_sft * the SFT
   loss, and of the clipped value loss, in one program.

The paper does not give kl_coef, the clip ranges, GAE's lambda or the critic's design;
here the value model starts from the reward model, whose scores are fitted to the first
returns (ppo/critic.py), and the numbers are the usual ones. Without a reward model,
where all rewards are functions, the value model starts from the policy, with a random
head.

Four advantages need no critic: "rloo" (arXiv 2402.14740), "grpo" (2402.03300),
"remax" (2310.10505) and "reinforce_pp" (2501.03262). With the first three every token
of a response has the same advantage, computed from the response's score minus kl_coef *
its KL (kl_in_loss moves the KL into the loss, as in the GRPO paper), in the same
clipped loss; there is no value model, in memory or in the programs. ReMax's baseline is
the policy's greedy answer (baseline="greedy"); baseline="reference" combines the
ChatGLM-RLHF baseline with no critic. configs/variants/ has the published variants, each
a short config.

With `judge_model`, every evaluation asks a second reward model, and the log warns where
the score learned from rises while the judge's falls (evaluation/watch.py).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import logging

from rlhf_jax.algorithms.ppo import minibatches, train_step
from rlhf_jax.batches import PromptBatch, Rollout
from rlhf_jax.data import sources
from rlhf_jax.data.batching import (
    BatchOrder,
    prompt_batch,
    round_up,
)
from rlhf_jax.data.encoding import encode_prompts
from rlhf_jax.data.records import Dialogue, Prompt
from rlhf_jax.data.sft_term import sft_batches
from rlhf_jax.evaluation.rollouts import answer_scores, evaluate, responses_of
from rlhf_jax.evaluation.watch import JUDGED, Watch
from rlhf_jax.generation.partial_rollout import Begun
from rlhf_jax.generation.sampling import sampling_with
from rlhf_jax.parallel.mesh import row_unit
from rlhf_jax.parallel.sharding import (
    create,
    fetch,
    shapes_of,
    shard_batch,
)
from rlhf_jax.ppo.critic import fit_critic
from rlhf_jax.ppo.draws import Draw, Rows, draw_until_full, saved_before_fault
from rlhf_jax.ppo.experience import differing_groups, make_experience
from rlhf_jax.ppo.forward import ModelOutputs, packed_rows, run_models
from rlhf_jax.ppo.kl_ceiling import stop_above_ceiling
from rlhf_jax.ppo.options import Hyper, check_options
from rlhf_jax.ppo.rollouts import Answered, Rollouts
from rlhf_jax.ppo.sampled import responses_sampled
from rlhf_jax.ppo.state import (
    Frozen,
    PPOState,
    describe,
    first_numbers,
    from_checkpoint,
    to_checkpoint,
)
from rlhf_jax.rewards.rewards import FREE, Rewards, Values
from rlhf_jax.training import model_checks, optimizers, weights
from rlhf_jax.training.cache import OnDemand, fingerprint, weights_fingerprint
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.metrics import Mean, Stopwatch, Writer, read_metrics
from rlhf_jax.training.placement import Memory
from rlhf_jax.training.progress import ProgressBar
from rlhf_jax.training.state import (
    check_learned,
    compiled,
    first_shapes,
)
from rlhf_jax.training.workdir import done_before, due, finish, open_workdir


def run(config, workdir: str) -> None:
    """Train `config.init_from` (an SFT policy) by `config.rewards`; save
    policy ("model") and value model ("value") in `workdir/checkpoints`.

    Raises:
        KLCeilingError: the policy moved too far from its reference.
        OverOptimisedError: the judge's score fell, and stop_over_optimised is set.
        RewardError: a function of rewards failed; the state before it is saved.
    """
    check_options(config)
    workdir = open_workdir(workdir, config, free=[*FREE, "stop_over_optimised"])
    if done_before(workdir):
        return

    # Data
    data = sources.open_data(config.data, workdir)
    read = sources.Reader(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.init_from, workdir)
    scorers = [config.reward_model, config.judge_model]
    model_checks.check_models(
        tokenizer,
        sources.tokenizer_fingerprint,
        policies=[config.init_from, config.reference],
        reward_models=scorers,
    )
    adapters = weights.Adapters(config)
    adapters.check(config.init_from)
    adapters.check(config.reward_model)
    records = read(config.prompts or data / "prompts.jsonl", Prompt)
    every = len(records)
    records, prompts = encode_prompts(records, tokenizer, config.max_prompt_tokens)
    logging.info("%d prompts, %d of them short enough.", every, len(prompts))
    held_out = read(config.eval_prompts or data / "eval_prompts.jsonl", Prompt)
    eval_records, eval_prompts = encode_prompts(
        held_out[: config.batch_size], tokenizer, config.max_prompt_tokens
    )
    rewards = Rewards(config, workdir)
    rewards.check([*records, *eval_records])
    width = round_up(max(map(len, prompts + eval_prompts)), config.pad_to_multiple)
    order = BatchOrder(
        len(prompts),
        batch_size=config.batch_size // config.samples_per_prompt,
        seed=config.seed,
    )

    def records_at(index: np.ndarray) -> list[Prompt]:
        return [records[i % len(prompts)] for i in index]

    def prompts_at(index: np.ndarray) -> PromptBatch:
        rows = [prompts[i % len(prompts)] for i in index]
        return prompt_batch(rows, index, pad_id=tokenizer.pad_id, width=width)

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
    agree(
        workdir,
        read.fingerprints | rewards.files,
        tokenizer=tokenizer.fingerprint,
        models=[config.init_from, config.reference, *scorers],
        may_change=rewards.may_change(),
    )

    # Steps
    hyper = Hyper.from_config(config, tokenizer.vocab_size)
    total_updates = config.total_steps * hyper.num_updates
    policy_optimizer = optimizers.from_config(config.optimizer)
    policy_rates = optimizers.learning_rates(config.optimizer, total_updates)
    value_optimizer = optimizers.from_config(config.value_optimizer)
    value_rates = optimizers.learning_rates(config.value_optimizer, total_updates)
    models_step = jax.jit(functools.partial(run_models, hyper=hyper))
    differ = jax.jit(functools.partial(differing_groups, hyper=hyper))
    experience_step = jax.jit(functools.partial(make_experience, hyper=hyper))
    update_step = compiled(
        functools.partial(
            train_step,
            policy_optimizer=policy_optimizer,
            value_optimizer=value_optimizer,
            hyper=hyper,
        )
    )
    order_step = jax.jit(functools.partial(minibatches, hyper=hyper), static_argnums=1)
    init_key, head_key, reference_key, rollout_key, update_key, eval_key = (
        jax.random.split(jax.random.key(config.seed), 6)
    )
    lora_key = jax.random.fold_in(init_key, 1)
    sampling = sampling_with(
        tokenizer,
        max_new_tokens=config.max_response_tokens,
        temperature=config.temperature,
    )
    greedy = dataclasses.replace(sampling, temperature=0.0)
    measure = functools.partial(
        evaluate,
        records=eval_records,
        prompts=eval_prompts,
        key=eval_key,
        sampling=sampling,
        tokenizer=tokenizer,
        rewards=rewards,
        width=width,
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
    load_scorer = functools.partial(
        weights.load_score_model,
        num_tokens=tokenizer.vocab_size,
        key=head_key,
        adapters=adapters,
    )
    reference_from = config.reference or config.init_from
    if reference_from != config.init_from:
        logging.warning(
            "The reference, %s, is not where the policy starts, %s.",
            weights.fingerprint(reference_from),
            weights.fingerprint(config.init_from),
        )
    frozen_dtype = {"param_dtype": config.frozen_param_dtype}
    if adapters.lora is not None:
        frozen_dtype = {}  # that of the base, which all roles share
    reference = load_policy(reference_from, **frozen_dtype)
    reward_model, made_from = None, rewards.identity
    if rewards.uses_model:
        if not config.reward_model:
            logging.warning("No reward_model: a random one, good for trying out only.")
        backbone = reference
        if not config.reward_model:
            backbone = adapters.on(reference, lora_key)
        reward_model = load_scorer(config.reward_model, backbone=backbone)
        del backbone
        made_from |= {"reward model": weights_fingerprint(reward_model)}
    over_optimisation = None
    if config.judge_model:
        answers = measure(reference, reward_model)
        judge = load_scorer(config.judge_model, backbone=reference)
        over_optimisation = Watch(config, workdir, judge, answers)
        del judge
    frozen = Frozen(None if config.reference_rate else reference, reward_model)
    del reference, reward_model
    memory = Memory(config, frozen)

    of_reference = sampling if config.baseline_samples else greedy

    def score_reference(index: np.ndarray) -> np.ndarray:
        on_device = memory.frozen()
        return answer_scores(
            on_device.reference,
            on_device.reward,
            prompts_at(index),
            reference_key,
            of_reference,
            samples=max(config.baseline_samples, 1),
            rewards=rewards,
            records=records_at(index),
            tokenizer=tokenizer,
        )

    reference_scores = None
    if config.baseline == "reference":
        reference_scores = OnDemand(
            workdir / "reference_scores.npz",
            {
                **made_from,
                "reference": weights_fingerprint(frozen.reference),
                "set of prompts": fingerprint(prompts),
                "way to sample": fingerprint(
                    [*dataclasses.astuple(of_reference), config.baseline_samples]
                ),
            },
            score_reference,
            size=len(prompts),
            batch_size=config.batch_size,
        )
    del frozen

    rollouts = Rollouts(config, order, prompts_at, rollout_key, sampling)

    def baseline_of(policy, index: np.ndarray) -> np.ndarray:
        """Return the score to subtract for each prompt: float32 [prompts]."""
        if config.baseline == "reference":
            return reference_scores.at(index)
        if config.baseline == "greedy":
            return answer_scores(
                memory.sampler(policy),
                memory.frozen().reward,
                prompts_at(index),
                rollout_key,
                greedy,
                rewards=rewards,
                records=records_at(index),
                tokenizer=tokenizer,
            )
        return np.zeros(len(index), np.float32)

    packed = functools.partial(packed_rows, config, pad_id=tokenizer.pad_id)

    def outputs_of(state: PPOState, responses: Rollout) -> ModelOutputs:
        """Run all models over a rollout."""
        rows = np.arange(config.batch_size)[None]
        whole = packed(responses, rows, hyper.minibatches * hyper.microbatches)
        whole = shard_batch(jax.tree.map(lambda x: x[0], whole))
        return models_step(state, memory.frozen(), responses, whole)

    def begin_rewards(index: np.ndarray, responses: Rollout) -> Callable[[], Values]:
        """Start the functions of rewards, which run on the host while the device
        computes."""
        return rewards.begin(
            records_at(np.repeat(index, config.samples_per_prompt)),
            lambda: responses_of(fetch(responses), tokenizer),
        )

    # State
    best = JUDGED if over_optimisation else "eval/scores"
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints, best=best)
    start = checkpoints.latest_step()
    begun, ahead = rollouts.nothing_begun(), None
    if start:
        stored = functools.partial(
            weights.shapes, checkpoints, start, config=config, adapters=adapters
        )
        policy = first_shapes(stored("model"), policy_optimizer)
        value = None
        if hyper.has_critic:
            value = first_shapes(stored("value"), value_optimizer)
        moving = stored("reference") if config.reference_rate else None
        numbers = shapes_of(functools.partial(first_numbers, hyper))
        state = PPOState(policy=policy, value=value, reference=moving, **numbers)
        if config.one_step_off_policy and start < config.total_steps:
            ahead = rollouts.nothing_answered(width)
        items = checkpoints.restore(start, to_checkpoint(state, begun, ahead))
        state, begun = from_checkpoint(items), fetch(items.get("begun"))
        if ahead is not None:
            ahead = fetch(items["ahead"]).on_devices()
    else:
        # One model after another: each is donated to its state, whose moments are at
        # rest before the next is loaded.
        policy = adapters.on(load_policy(config.init_from), lora_key)
        policy = memory.first(policy, policy_optimizer)
        value = None
        if hyper.has_critic:
            value = load_scorer(config.reward_model, backbone=policy.model)
            value = adapters.on(value, lora_key)
            value = memory.first(value, value_optimizer)
        moving = load_policy(reference_from) if config.reference_rate else None
        numbers = create(functools.partial(first_numbers, hyper))
        state = PPOState(policy=policy, value=value, reference=moving, **numbers)
    del policy, value, moving
    state = memory.at_rest(state)
    meta = describe(state, tokenizer, config, adapters, workdir)

    # Loop
    writer = Writer(
        workdir,
        start,
        config.max_skipped_updates,
        config.spike_zscore,
        config.logger,
    )
    watch, draws_per_step = Stopwatch(), max(config.max_draws, 1)
    if over_optimisation and start:
        over_optimisation.resume(start)
    elif over_optimisation:
        writer.write(0, over_optimisation.first)

    def save_before(step: int, state: PPOState) -> None:
        """Save the state before step + 1, unless it is saved."""
        numbers = writer.close()
        if config.save_every and checkpoints.latest_step() != step:
            items = to_checkpoint(state, begun, ahead)
            checkpoints.save(step, items, meta, numbers)
        checkpoints.close()

    def draws(
        state: PPOState, step: int, begun: Begun | None, ahead: Answered | None
    ) -> Iterator[Draw]:
        """Answer the prompts of a step, and score the answers; once more, with other
        prompts, for every further batch that is asked for."""
        policy = state.policy.model
        for place in range(step * draws_per_step, (step + 1) * draws_per_step):
            answered = ahead
            if answered is None:
                sampler = memory.sampler(policy)
                answered, begun = rollouts.answer(sampler, place, begun)
                del sampler
            index, responses = answered
            baseline = baseline_of(policy, index)
            generating = watch.lap()
            outputs = outputs_of(state, responses)
            rewarded = begin_rewards(index, responses)
            scoring, ahead = watch.lap(), None
            if config.one_step_off_policy and step + 1 < config.total_steps:
                sampler = memory.sampler(policy)
                ahead, begun = rollouts.answer(sampler, place + 1, begun)
                del sampler
                generating += watch.lap()
            scored = rewards.total(rewarded(), fetch(outputs.scores))
            baseline = np.repeat(baseline, config.samples_per_prompt)
            rows = Rows(responses, outputs, scored.scores, baseline)
            num_generated = float(responses.response_mask.sum())
            scoring += watch.lap()
            yield Draw(rows, scored, num_generated, generating, scoring, begun, ahead)

    show = {"score": "objective/baselined_scores", "kl": "objective/kl"}
    with ProgressBar("ppo", config.total_steps, start, show) as bar:
        for step in range(start, config.total_steps):
            # 1. The policy answers a batch of prompts, and the answers are scored.
            watch.lap()
            with saved_before_fault(save_before, step, state):
                drawn, rows, wanted, metrics = draw_until_full(
                    draws(state, step, begun, ahead),
                    differ if config.max_draws else None,
                )
            begun, ahead = drawn[-1].begun, drawn[-1].ahead
            seconds = {
                "time/generate": sum(draw.generating for draw in drawn),
                "time/score": sum(draw.scoring for draw in drawn),
            }

            # 2. The experience: log-probabilities, scores, values, advantages.
            experience, changes, experience_metrics = experience_step(
                state, *rows, wanted
            )
            if step == 0 and state.value is not None:
                factors = {"gamma": hyper.gamma, "lam": hyper.lam}
                rows = fit_critic(state.value.model, rows, experience, **factors)
                experience, changes, experience_metrics = experience_step(
                    state, *rows, wanted
                )
            metrics |= experience_metrics | rewards.metrics(drawn[0].scored)
            observed_kl = metrics["objective/kl"].value()
            seconds["time/score"] += watch.lap()
            if observed_kl > config.kl_ceiling:
                writer.close()
                stop_above_ceiling(
                    config, workdir, checkpoints, step, state, meta, observed_kl
                )

            # 3. The updates: epochs x minibatches.
            updates = slice(step * hyper.num_updates, (step + 1) * hyper.num_updates)
            sft_batch = None
            if sft is not None:
                sft_batch = sft.stack(updates.start, hyper.num_updates)
            key = jax.random.fold_in(update_key, step)
            learned = fetch(order_step(key, config.batch_size))
            state, update_metrics = update_step(
                memory.at_work(state),
                experience,
                shard_batch(sft_batch, axis=1),
                key,
                (policy_rates[updates], value_rates[updates]),
                packed=shard_batch(
                    packed(rows.responses, learned, hyper.microbatches), axis=1
                ),
            )
            state = memory.at_rest(dataclasses.replace(state, **changes))
            jax.block_until_ready(update_metrics)
            seconds["time/update"] = watch.lap()

            # 4. Metrics, evaluation, checkpoint.
            metrics |= update_metrics | seconds
            metrics["optim/lr"] = policy_rates[updates.start]
            num_generated = sum(draw.num_generated for draw in drawn)
            metrics["tokens_per_second"] = Mean(num_generated, sum(seconds.values()))
            learned_from = {"batch": experience, "sft": sft_batch}
            bar.update(*writer.write(step + 1, metrics, learned_from))
            if due(step + 1, config.eval_every, config.total_steps):
                answers = measure(state.policy.model, memory.frozen().reward)
                writer.write(step + 1, answers.metrics)
                writer.write_samples(step + 1, answers.samples[: config.num_samples])
                if over_optimisation:
                    writer.write(step + 1, over_optimisation.look(step + 1, answers))
                    over_optimisation.stop_if_asked(writer, checkpoints)
            is_best = over_optimisation and over_optimisation.best_step() == step + 1
            if checkpoints.due(step + 1, config.save_every, config.total_steps) or (
                is_best and config.save_every
            ):
                items = to_checkpoint(state, begun, ahead)
                checkpoints.save(step + 1, items, meta, writer.flush())

    # Hand on
    numbers = writer.close()
    check_learned(state.policy, *[state.value] * hyper.has_critic)
    checkpoints.close()
    references = 0 if reference_scores is None else reference_scores.known
    iterations = [line for line in read_metrics(workdir) if line["step"]]
    sampled = responses_sampled(config, iterations, references)
    finish(workdir, numbers | sampled)

"""Evaluate checkpoints: did alignment help?

1. Every model answers the same held-out prompts, sampled with the same keys.
2. A judge gives each answer a quality: the testbed's true scorer, or, where the truth
   is unknown, the reward model (which is then no independent judge).
3. Against the first model: win / tie / lose with a 95 % bootstrap interval over
   prompts, by intent and at equal length; KL(model || first model) on the model's own
   answers, in nats. With more than two models, their Bradley-Terry ratings.
4. Probes (testbed): does the model still know its name, does it answer in JSON?
5. With a reward model: the score of every answer, and how much its mean differs from
   intent to intent, as it is and minus the score of the first model's answer.
"""

import functools

import jax
import numpy as np
from absl import logging

from rlhf_jax.data import sources
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.testbed.capabilities import is_identity, is_valid_json_answer
from rlhf_jax.data.testbed.quality import true_quality
from rlhf_jax.evaluation.answers import (
    Answers,
    answer,
    scores,
    sequence_logprobs,
    write_answers,
)
from rlhf_jax.evaluation.preferences import JudgedPairs, assess, headline
from rlhf_jax.evaluation.report import print_table
from rlhf_jax.evaluation.win_rate import (
    bradley_terry,
    by_group,
    length_controlled,
    mean_with_interval,
    results,
    win_rate,
)
from rlhf_jax.generation.sampling import sampling_with
from rlhf_jax.training import weights
from rlhf_jax.training.workdir import finish, is_finished, open_workdir, read_summary


def run(config, workdir: str) -> None:
    """Evaluate the models of `config.models`; leave answers and summary.json."""
    workdir = open_workdir(workdir, config)
    if is_finished(workdir):
        print_table(read_summary(workdir))
        return
    models = parse_models(config.models)
    baseline = next(iter(models))
    answer_key, probe_key, second_key = jax.random.split(jax.random.key(config.seed), 3)

    # Data
    data = sources.open_data(config.data, workdir)
    read = sources.reader(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, models[baseline], workdir)
    prompts = read(config.prompts or data / "eval_prompts.jsonl", Prompt)
    prompts = prompts[: config.num_prompts]
    probes = {
        name: read(data / f"{name}_probes.jsonl", Prompt)
        for name in ("identity", "json")
        if (data / f"{name}_probes.jsonl").is_file()
    }

    # Judge
    load = functools.partial(
        weights.load_model, dtype=config.dtype, param_dtype=config.dtype
    )
    reward_model = None
    if config.reward_model:
        reward_model = load(config.reward_model)
        weights.check_vocabulary(
            reward_model.config, tokenizer.vocab_size, config.reward_model
        )
    score = functools.partial(
        scores, reward_model, pad_id=tokenizer.pad_id, batch_size=config.batch_size
    )
    judge = make_judge(config, reward_model, score)

    # Answers
    sampling = functools.partial(
        sampling_with, tokenizer, max_new_tokens=config.max_response_tokens
    )
    ask = functools.partial(
        answer,
        tokenizer=tokenizer,
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
    first = load(models[baseline])
    summary = {"models": {}, "judge": config.judge, "baseline": baseline}
    qualities, lengths, rewards = {}, {}, {}

    def compare(name, other):
        margin = config.tie_margin
        return results(qualities[name], qualities[other], tie_margin=margin)

    for name, folder in models.items():
        model = first if name == baseline else load(folder)
        answers = ask(
            model,
            prompts,
            key=answer_key,
            sampling=sampling(temperature=config.temperature),
        )
        qualities[name], lengths[name] = judge(answers), answers.lengths
        kl = logprobs(model, answers) - logprobs(first, answers)
        columns = {"quality": qualities[name], "kl": kl}
        row = {
            "checkpoint": weights.fingerprint(folder),
            "quality": mean_with_interval(qualities[name], seed=config.seed),
            "length": float(answers.lengths.mean()),
            "kl": float(kl.mean()),
        }
        if reward_model is not None:
            columns["score"] = rewards[name] = score(answers)
            row |= score_spread(rewards[name], rewards[baseline], answers.prompts)
        write_answers(workdir / f"answers_{name}.jsonl", answers, **columns)
        if name != baseline:
            result = compare(name, baseline)
            longer = answers.lengths - lengths[baseline]
            row["against_baseline"] = win_rate(result, seed=config.seed)
            row["against_baseline"] |= length_controlled(
                result, longer, seed=config.seed
            )
            intents = [prompt.intent for prompt in answers.prompts]
            row["by_intent"] = by_group(result, intents, seed=config.seed)
        greedy = sampling(temperature=0.0)
        for probe, asked in probes.items():
            texts = ask(model, asked, key=probe_key, sampling=greedy).texts
            row[f"{probe}_probes"] = float(np.mean(check(probe, texts, config)))
        summary["models"][name] = row
        logging.info("Evaluated %s: quality %.2f.", name, row["quality"]["mean"])

    if len(models) > 2:
        summary["ratings"] = bradley_terry(list(models), compare)

    # Reward model against the truth, on two answers of the first model to each prompt
    if reward_model is not None and config.judge == "testbed":
        hot = sampling(temperature=1.0)
        pair = [
            ask(first, prompts, key=jax.random.fold_in(second_key, side), sampling=hot)
            for side in range(2)
        ]
        found = agreement(
            judge, reward_model, pair, tokenizer.pad_id, config.batch_size
        )
        if found is not None:
            summary["reward_model"] = found
    print_table(summary)
    finish(workdir, summary)


def parse_models(text: str) -> dict[str, str]:
    """ "sft=runs/sft,ppo=runs/ppo" as a dict; the first is what others are compared
    with."""
    models = {}
    for part in filter(None, text.split(",")):
        name, _, folder = part.partition("=")
        if not name or not folder:
            raise ValueError(f"config.models: {part!r} is not of the form name=folder.")
        models[name] = folder
    if not models:
        raise ValueError("config.models is empty: give name=folder[,name=folder ...].")
    return models


def make_judge(config, reward_model, score):
    """A function from answers to their quality: float [prompts]."""
    if config.judge == "testbed":
        return lambda answers: np.array(
            list(map(true_quality, answers.prompts, answers.texts))
        )
    if config.judge == "reward_model":
        if reward_model is None:
            raise ValueError("judge='reward_model' needs config.reward_model.")
        return score
    raise ValueError(f"{config.judge=} must be 'testbed' or 'reward_model'.")


def score_spread(found, baseline, prompts) -> dict[str, float]:
    """Mean score, and its variance between intents: plain, and minus the score of the
    baseline's answer to the same prompt (claim 3 of ChatGLM-RLHF's section 3)."""
    intents = np.array([prompt.intent for prompt in prompts])

    def between(values):
        return float(np.var([values[intents == i].mean() for i in np.unique(intents)]))

    return {
        "score": float(found.mean()),
        "score_variance_between_intents": between(found),
        "baselined_score_variance_between_intents": between(found - baseline),
    }


def check(probe: str, texts: list[str], config) -> list[bool]:
    if probe == "identity":
        return [is_identity(text, config.data.testbed.model_name) for text in texts]
    return [is_valid_json_answer(text) for text in texts]


def agreement(
    judge, reward_model, pair: list[Answers], pad_id, batch_size
) -> dict | None:
    """How the reward model orders two answers where the truth tells them apart; None
    where it never does."""
    truth = np.stack([judge(answers) for answers in pair], axis=1)
    found = [
        scores(reward_model, answers, pad_id=pad_id, batch_size=batch_size)
        for answers in pair
    ]
    differ = np.flatnonzero(truth[:, 0] != truth[:, 1])
    if not differ.size:
        return None
    best_first = np.argsort(-truth[differ], axis=1)

    def in_order(columns):
        columns = np.stack(columns, axis=1)[differ]
        return np.take_along_axis(columns, best_first, axis=1)

    prompts = [pair[0].prompts[i] for i in differ]
    lengths = in_order([answers.lengths for answers in pair])
    pairs = JudgedPairs(
        prompts=[prompt.id for prompt in prompts],
        intents=[prompt.intent for prompt in prompts],
        lengths=lengths,
        qualities=None,
    )
    longer = {"always_longer": lengths[:, 0] - lengths[:, 1]}
    return headline(assess(in_order(found), pairs, longer))

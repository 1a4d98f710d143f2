"""Evaluate checkpoints against each other on held-out prompts.

1. Every model answers the same held-out prompts, sampled with the same keys.
2. A judge (evaluation/judges.py) gives each answer a quality, or compares two: the
   testbed's true quality, a chat model by HTTP, a reward model (which is not an
   independent judge of a policy trained against it; `judge_model` can be another one),
   or the sum of all rewards.
3. Each model is compared with the first: win / tie / lose with 95 % bootstrap intervals
   over prompts (over tasks on the testbed, which asks a task in several wordings), by
   intent and at equal length; KL(model || first model) on the model's
   own answers, in nats. More than two models also get Bradley-Terry ratings.
4. Probes (testbed) measure skills outside reinforcement learning: the share of sampled
   answers that are right, and the log-probability of the right answer in nats.
5. Rewards, the reward model and functions, score every answer: the mean of each
   function has its interval. The variance of the mean score between intents is reported
   for the scores themselves and for the scores minus those of the first model's
   answers.
"""

import functools

import jax
import numpy as np
from absl import logging

from rlhf_jax.data import sources
from rlhf_jax.data.chat_client import FREE_SETTINGS, open_service, read_service
from rlhf_jax.data.records import Prompt
from rlhf_jax.evaluation import judges
from rlhf_jax.evaluation.answers import (
    Answers,
    answer,
    scores,
    sequence_logprobs,
    write_answers,
)
from rlhf_jax.evaluation.intervals import task_key
from rlhf_jax.evaluation.preferences import JudgedPairs, assess, headline
from rlhf_jax.evaluation.probes import probe
from rlhf_jax.evaluation.tables import print_table
from rlhf_jax.evaluation.win_rate import (
    bradley_terry,
    by_group,
    length_controlled,
    mean_with_interval,
    results,
    win_rate,
)
from rlhf_jax.generation.sampling import sampling_with
from rlhf_jax.rewards.rewards import FREE, Rewards, Scored
from rlhf_jax.rewards.rewards import check_options as check_rewards
from rlhf_jax.rewards.spec import parse, uses_model
from rlhf_jax.training import model_checks, options, weights
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.workdir import done_before, finish, open_workdir, read_summary

JUDGES = ("testbed", "reward_model", "rewards", "marks", "pairs")


def run(config, workdir: str) -> None:
    """Evaluate the models of `config.models`; write their answers and summary.json."""
    check_options(config)
    models = parse_models(config.models)
    free = [f"service.{name}" for name in FREE_SETTINGS]
    workdir = open_workdir(workdir, config, free=[*free, *FREE])
    if done_before(workdir):
        print_table(read_summary(workdir))
        return
    baseline = next(iter(models))
    answer_key, probe_key, second_key = jax.random.split(jax.random.key(config.seed), 3)

    # Data
    data = sources.open_data(config.data, workdir)
    read = sources.Reader(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, models[baseline], workdir)
    model_checks.check_models(
        tokenizer,
        sources.tokenizer_fingerprint,
        policies=[*models.values()],
        reward_models=[config.reward_model, config.judge_model],
    )
    prompts = read(config.prompts or data / "eval_prompts.jsonl", Prompt)
    prompts = prompts[: config.num_prompts]
    asked = data
    if config.probes == "testbed":
        asked = sources.open_probes(config.data, workdir)
    asked = asked / "skills.jsonl"
    probes = read(asked, Prompt) if asked.is_file() and asked.stat().st_size else []
    rewards = Rewards(config, workdir) if scores_answers(config) else None
    if rewards is not None:
        rewards.check(prompts)
    agree(
        workdir,
        read.fingerprints | (rewards.files if rewards else {}),
        tokenizer=tokenizer.fingerprint,
        models=[*models.values(), config.reward_model, config.judge_model],
    )

    # Judge
    ask = None
    if config.judge in ("marks", "pairs"):
        cache = workdir / "judge.sqlite"
        ask = open_service(config.service, cache, key="config.service")
    if config.judge == "testbed":
        judges.check_truth(prompts)
    load = functools.partial(
        weights.load_model, dtype=config.dtype, param_dtype=config.dtype
    )
    reward_model = None
    if config.reward_model:
        reward_model = load(config.reward_model)

    def score(given: Answers) -> Scored:
        def by_model():
            return reward_model and scores(
                reward_model,
                given,
                pad_id=tokenizer.pad_id,
                batch_size=config.batch_size,
            )

        return rewards.score(given.prompts, lambda: given.responses, by_model)

    judging = load(config.judge_model) if config.judge_model else reward_model
    judge = make_judge(config, ask, judging, tokenizer.pad_id)

    # Answers
    sampling = functools.partial(
        sampling_with, tokenizer, max_new_tokens=config.max_response_tokens
    )
    answer_all = functools.partial(
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
    # The log-probabilities are at temperature 1: the mean log-ratio of answers sampled
    # at another temperature does not estimate the KL divergence.
    log_ratio = "kl" if config.temperature == 1 else "log_ratio"
    judged_by = "judge_model" if config.judge_model else config.judge
    summary = {"models": {}, "judge": judged_by, "baseline": baseline}
    answers, qualities, scored = {}, {}, {}

    def compare(name, other):
        if config.judge == "pairs":
            pair = [answers[name], answers[other]]
            won = judge(pair)
            check_verdicts(won[:, 0], *pair)
            return won[:, 0] - won[:, 1]
        margin = config.tie_margin
        return results(qualities[name], qualities[other], tie_margin=margin)

    for name, folder in models.items():
        model = first if name == baseline else load(folder)
        given = answers[name] = answer_all(
            model,
            prompts,
            key=answer_key,
            sampling=sampling(temperature=config.temperature),
        )
        ratio = logprobs(model, given) - logprobs(first, given)
        columns = {log_ratio: ratio, "tokens": given.lengths}
        keys = list(map(task_key, given.prompts, given.prompt_ids))
        by_prompt = {"seed": config.seed, "prompts": keys}
        row = {
            "checkpoint": weights.fingerprint(folder),
            "length": float(given.lengths.mean()),
            "ended": float(given.ended.mean()),
            log_ratio: float(ratio.mean()),
        }
        if rewards is not None:
            by_rewards = score(given)
            columns["score"] = scored[name] = by_rewards.scores
            row |= score_spread(scored[name], scored[baseline], given.prompts)
            row |= by_rewards.faulty()
        if rewards is not None and rewards.has_functions:
            columns |= {f"reward/{k}": x for k, x in by_rewards.by_name.items()}
            row["rewards"] = {
                reward: mean_with_interval(values, **by_prompt)
                for reward, values in by_rewards.by_name.items()
            }
        if config.judge == "rewards":
            columns["quality"] = qualities[name] = scored[name]
            row["quality"] = mean_with_interval(qualities[name], **by_prompt)
        elif config.judge != "pairs":
            columns["quality"] = qualities[name] = judge([given])[:, 0]
            row["quality"] = mean_with_interval(qualities[name], **by_prompt)
            row["without_verdict"] = int(np.isnan(qualities[name]).sum())
        if name != baseline:
            columns["result"] = result = compare(name, baseline)
            longer = given.lengths - answers[baseline].lengths
            intents = [prompt.intent for prompt in given.prompts]
            row["against_baseline"] = win_rate(result, **by_prompt)
            row["against_baseline"] |= length_controlled(result, longer, **by_prompt)
            row["by_intent"] = by_group(result, intents, **by_prompt)
            row["without_verdict"] = int(np.isnan(result).sum())
        write_answers(workdir / f"answers_{name}.jsonl", given, **columns)
        if probes:
            row |= probe(
                probes,
                functools.partial(
                    answer_all, model, key=probe_key, sampling=sampling(temperature=1.0)
                ),
                functools.partial(logprobs, model),
                tokenizer,
            )
        summary["models"][name] = row
        logging.info("Evaluated %s.", name)
        if row.get("without_verdict"):
            logging.warning(
                "%s: no verdict on %d of %d answers; they are left out.",
                name, row["without_verdict"], len(keys),
            )  # fmt: skip

    if len(models) > 2:
        summary["ratings"] = bradley_terry(list(models), compare, **by_prompt)

    # Reward model against true quality, on two answers of the first model to each
    # prompt
    if rewards is not None and config.judge == "testbed":
        hot = sampling(temperature=1.0)
        pair = [
            answer_all(
                first, prompts, key=jax.random.fold_in(second_key, side), sampling=hot
            )
            for side in range(2)
        ]
        agreed = agreement(
            judge(pair), np.stack([score(x).scores for x in pair], 1), pair
        )
        if agreed is not None:
            summary["reward_model"] = agreed
    print_table(summary)
    finish(workdir, summary)


def parse_models(text: str) -> dict[str, str]:
    """Parse "sft=runs/sft,ppo=runs/ppo" into a dict from name to folder; the others are
    compared with the first."""
    models = {}
    for part in filter(None, text.split(",")):
        name, _, folder = part.partition("=")
        if not name or not folder:
            raise ValueError(f"config.models: {part!r} is not of the form name=folder.")
        if name in models:
            raise ValueError(f"config.models: two models are called {name!r}.")
        models[name] = folder
    if not models:
        raise ValueError("config.models is empty: give name=folder[,name=folder ...].")
    return models


def scores_answers(config) -> bool:
    """Return True if there is a reward to score answers by: a function, or the reward
    model where there is one."""
    return bool(config.reward_model) or not uses_model(config.rewards)


def make_judge(config, ask, reward_model, pad_id: int) -> judges.Judge:
    if config.judge == "testbed":
        return judges.by_truth
    if config.judge == "marks":
        return judges.by_marks(ask)
    if config.judge == "pairs":
        return judges.by_pairs(ask)
    return judges.by_reward_model(
        reward_model, pad_id=pad_id, batch_size=config.batch_size
    )


def check_verdicts(won: np.ndarray, ours: Answers, theirs: Answers) -> None:
    """Raise ValueError where no two differing answers have a verdict: the ties of the
    identical answers alone would pass as a result."""
    same = [a == b for a, b in zip(ours.texts, theirs.texts, strict=True)]
    if not all(same) and np.isnan(won[~np.array(same)]).all():
        raise ValueError(
            f"The judge gave no verdict on any of {same.count(False)} prompts whose "
            "answers differ, in both orders. Raise service.max_tokens, or ask another "
            "model."
        )


def score_spread(scores, baseline, prompts) -> dict[str, float]:
    """Return the mean score and the variance of the mean between intents: of the scores
    and of the scores minus those of the baseline's answers to the same prompts (claim 3
    of ChatGLM-RLHF's section 3).

    Args:
        scores, baseline: float [N].
    """
    intents = np.array([prompt.intent for prompt in prompts])

    def between(values):
        return float(np.var([values[intents == i].mean() for i in np.unique(intents)]))

    return {
        "score": float(scores.mean()),
        "score_variance_between_intents": between(scores),
        "baselined_score_variance_between_intents": between(scores - baseline),
    }


def agreement(
    truth: np.ndarray, scores: np.ndarray, pair: list[Answers]
) -> dict | None:
    """Report how often scores order two answers as their true quality does, over the
    prompts whose two answers differ in quality; None where there is no such prompt.

    Args:
        truth, scores: float [N, 2].
    """
    differ = np.flatnonzero(truth[:, 0] != truth[:, 1])
    if not differ.size:
        return None
    best_first = np.argsort(-truth[differ], axis=1)

    def in_order(columns):
        return np.take_along_axis(columns[differ], best_first, axis=1)

    lengths = in_order(np.stack([answers.lengths for answers in pair], axis=1))
    prompts = [pair[0].prompts[i] for i in differ]
    pairs = JudgedPairs(
        prompts=[
            task_key(prompt, pair[0].prompt_ids[i])
            for i, prompt in zip(differ, prompts, strict=True)
        ],
        intents=[prompt.intent for prompt in prompts],
        lengths=lengths,
        qualities=None,
    )
    longer = {"always_longer": lengths[:, 0] - lengths[:, 1]}
    return headline(assess(in_order(scores), pairs, longer))


def check_options(config) -> None:
    """Refuse invalid options before anything is read.

    Raises:
        ValueError: names the option and says what to set instead.
    """
    options.one_of(config, "judge", JUDGES)
    options.one_of(config, "probes", ("data", "testbed"))
    if config.judge == "reward_model" and not (
        config.reward_model or config.judge_model
    ):
        raise ValueError("judge='reward_model' needs config.reward_model.")
    if config.judge_model and config.judge != "reward_model":
        raise ValueError(
            f"config.judge_model judges only under judge='reward_model', not "
            f"{config.judge!r}."
        )
    with_functions = len(parse(config.rewards)) > 1 or config.judge == "rewards"
    check_rewards(config, needs_model=with_functions)
    parse_models(config.models)
    if config.judge in ("marks", "pairs"):
        read_service(config.service, key="config.service")

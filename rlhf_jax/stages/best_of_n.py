"""Best of n on the testbed: how far rewards can be trusted.

1. A policy answers every prompt `num_samples` times.
2. The answers are scored by the sum of their rewards (the reward model, functions, or
   both); the testbed gives their true quality.
3. For n = 1, 2, 4, ..., the expected true quality and the expected score of the answer
   with the highest score of n, beside the best true quality of n.
"""

import functools

import jax
import numpy as np
from absl import logging

from rlhf_jax.data import sources
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.testbed.quality import true_quality
from rlhf_jax.evaluation.answers import answer, scores
from rlhf_jax.evaluation.best_of_n import expected_of_best, kl_of_best, plot
from rlhf_jax.evaluation.win_rate import mean_with_interval
from rlhf_jax.files import write_text
from rlhf_jax.generation.sampling import sampling_with
from rlhf_jax.rewards.rewards import FREE, Rewards
from rlhf_jax.rewards.rewards import check_options as check_rewards
from rlhf_jax.terminal import print_markdown
from rlhf_jax.training import model_checks, weights
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.workdir import done_before, finish, open_workdir


def run(config, workdir: str) -> None:
    """Measure `config.rewards` on answers of `config.policy`; write summary.json,
    best_of_n.md and best_of_n.png."""
    check_options(config)
    workdir = open_workdir(workdir, config, free=FREE)
    if done_before(workdir):
        return

    # Data
    data = sources.open_data(config.data, workdir)
    read = sources.Reader(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.policy, workdir)
    model_checks.check_models(
        tokenizer,
        sources.tokenizer_fingerprint,
        policies=[config.policy],
        reward_models=[config.reward_model],
    )
    prompts = read(config.prompts or data / "eval_prompts.jsonl", Prompt)
    prompts = prompts[: config.num_prompts]
    if any(prompt.task is None for prompt in prompts):
        raise ValueError(
            "Best of n needs the true quality of answers, hence prompts of the testbed."
        )
    rewards = Rewards(config, workdir)
    rewards.check(prompts)
    agree(
        workdir,
        read.fingerprints | rewards.files,
        tokenizer=tokenizer.fingerprint,
        models=[config.policy, config.reward_model],
    )

    # Models
    load = functools.partial(
        weights.load_model, dtype=config.dtype, param_dtype=config.dtype
    )
    policy = load(config.policy)
    reward_model = load(config.reward_model) if rewards.uses_model else None

    # Answers
    sampling = sampling_with(
        tokenizer,
        max_new_tokens=config.max_response_tokens,
        temperature=config.temperature,
    )
    answers = answer(
        policy,
        [prompt for prompt in prompts for _ in range(config.num_samples)],
        tokenizer,
        jax.random.key(config.seed),
        sampling,
        max_prompt_tokens=config.max_prompt_tokens,
        batch_size=config.batch_size,
    )
    score = functools.partial(
        scores, pad_id=tokenizer.pad_id, batch_size=config.batch_size
    )
    by_rewards = rewards.score(
        answers.prompts,
        lambda: answers.responses,
        lambda: reward_model and score(reward_model, answers),
    )
    scored = by_rewards.scores.reshape(-1, config.num_samples)
    quality = np.array(list(map(true_quality, answers.prompts, answers.texts)))
    quality = quality.reshape(scored.shape)
    # The same prompt may occur twice in the file.
    keys = [tuple(ids) for ids in answers.prompt_ids[:: config.num_samples]]
    logging.info("Judged %d answers to %d prompts.", scored.size, len(scored))

    # Curve
    curve, n = [], 1
    while n <= config.num_samples:
        row = {"n": n, "kl": kl_of_best(n)}
        picks = {"quality": (scored, quality), "score": (scored, scored)}
        picks["oracle"] = (quality, quality)
        for name, (by, values) in picks.items():
            expected = expected_of_best(by, values, n=n)
            row[name] = mean_with_interval(expected, seed=config.seed, prompts=keys)
        curve.append(row)
        n *= 2
    write_text(workdir / "best_of_n.md", table(curve))
    plot(curve, workdir / "best_of_n.png")
    print_markdown(table(curve))
    summary = {"prompts": len(scored), "curve": curve}
    finish(workdir, summary | by_rewards.faulty())


def table(curve: list[dict]) -> str:
    """Return the curve in Markdown, with 95 % intervals over prompts."""
    lines = [
        f"Means over n = {curve[0]['quality']['n']} prompts [95 % intervals].",
        "",
        "| n | KL | true quality | score | best true quality |",
        "|---|---|---|---|---|",
    ]
    for row in curve:
        cells = [
            f"{row[name]['mean']:.2f} [{row[name]['low']:.2f}, {row[name]['high']:.2f}]"
            for name in ("quality", "score", "oracle")
        ]
        lines.append(f"| {row['n']} | {row['kl']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def check_options(config) -> None:
    """Refuse invalid options before anything is read.

    Raises:
        ValueError: names the option and says what to set instead.
    """
    if not config.policy:
        raise ValueError("Give config.policy: its workdir.")
    check_rewards(config, needs_model=True)

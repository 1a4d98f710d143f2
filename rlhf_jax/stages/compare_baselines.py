"""Which baseline lowers the variance of the scores that PPO learns from?

1. The policy from which PPO would start answers every prompt `samples_per_prompt`
   times, and once greedily.
2. The answers are scored as in PPO: by the sum of their rewards (the reward model,
   functions, or both), less `missing_end_penalty` where an answer was cut at its limit.
3. The variance of the scores within prompts and between them gives the variance that
   each baseline would leave (evaluation/score_variance.py). One sampled answer of the
   reference, the baseline of ChatGLM-RLHF (arXiv 2404.00934), lowers it if and only if
   the scores vary more between prompts than within.
4. The derivatives of the answers' log-probabilities along random directions give the
   variance of the policy gradient under each baseline, at several ratios of the
   variance between prompts to that within (evaluation/gradient_variance.py).
Writes `summary.json` and `baselines.md`.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging

from rlhf_jax.data import sources
from rlhf_jax.data.encoding import encode_prompts
from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.evaluation.answers import Answers, logprob_derivatives
from rlhf_jax.evaluation.candidates import candidate_rewards, sample_candidates
from rlhf_jax.evaluation.gradient_variance import MEANS, compare_gradients
from rlhf_jax.evaluation.score_variance import (
    best_baselines,
    least_answers,
    score_variance,
    variance_left,
)
from rlhf_jax.evaluation.win_rate import interval
from rlhf_jax.files import write_text
from rlhf_jax.rewards.rewards import FREE, Rewards
from rlhf_jax.rewards.rewards import check_options as check_rewards
from rlhf_jax.terminal import print_markdown
from rlhf_jax.training import model_checks, weights
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.workdir import done_before, finish, open_workdir


def run(config, workdir: str) -> None:
    """Compare baselines for `config.policy` and `config.rewards`."""
    check_options(config)
    workdir = open_workdir(workdir, config, free=FREE)
    if done_before(workdir):
        return
    key = jax.random.key(config.seed)
    sample_key, greedy_key = jax.random.split(key)

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
    records = read(config.prompts or data / "prompts.jsonl", Prompt)
    prompts, prompt_ids = encode_prompts(
        records[: config.num_prompts], tokenizer, config.max_prompt_tokens
    )
    least = 3 if config.gradient_directions else 2
    if len(prompts) < least:
        raise ValueError(
            f"Baselines are compared on {least} prompts or more; {len(prompts)} of "
            f"{len(records)} is within {config.max_prompt_tokens=}."
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

    # Answers and scores
    def answer(
        count: int, key: jax.Array, temperature: float
    ) -> tuple[list[list[Response]], np.ndarray]:
        candidates = sample_candidates(
            policy,
            prompt_ids,
            tokenizer,
            key,
            count=count,
            batch_size=config.batch_size,
            max_new_tokens=config.max_response_tokens,
            temperature=temperature,
        )
        scored = candidate_rewards(
            rewards,
            reward_model,
            prompts,
            prompt_ids,
            candidates,
            pad_id=tokenizer.pad_id,
            batch_size=max(config.batch_size // count, 1),
            end_penalty=config.missing_end_penalty,
        )
        return candidates, scored.scores

    samples = config.samples_per_prompt
    answers, scores = answer(samples, sample_key, config.temperature)
    greedy = answer(1, greedy_key, 0.0)[1][:, 0]
    if not scores.var(axis=1).any():
        raise ValueError(
            f"The {samples} answers to a prompt score alike, for every prompt: there "
            "is nothing to learn from these rewards."
        )
    logging.info("Scored %d answers to %d prompts.", scores.size, len(prompts))

    # Gradients
    gradient = {}
    if config.gradient_directions:
        count = min(config.gradient_prompts, len(prompts))
        responses = [
            (prompts[i], prompt_ids[i], response)
            for i in range(count)
            for response in answers[i][: config.gradient_samples]
        ]
        derivatives = logprob_derivatives(
            policy,
            Answers(*map(list, zip(*responses, strict=True))),
            jax.random.fold_in(key, 1),
            directions=config.gradient_directions,
            num_tokens=tokenizer.vocab_size,
            chunk_size=config.chunk_size,
            pad_id=tokenizer.pad_id,
            batch_size=max(config.batch_size // samples, 1),
            temperature=config.temperature,
        )
        gradient["gradient"] = compare_gradients(
            scores[:count],
            greedy[:count],
            derivatives.reshape(count, config.gradient_samples, -1),
            config.gradient_ratios,
            seed=config.seed,
        )
        logging.info("Took %d gradients along random directions.", len(responses))

    # Report
    report = compare(scores, greedy, prompts, config.seed) | gradient
    text = table(report)
    write_text(workdir / "baselines.md", text)
    print_markdown(text)
    finish(workdir, report)


def compare(
    scores: np.ndarray, greedy: np.ndarray, prompts: Sequence[Prompt], seed: int
) -> dict:
    """Return both variances with the interval of their ratio, the variance left by each
    baseline, the best of them, and mean and variance by intent.

    Args:
        scores: float [N, K], of sampled answers.
        greedy: float [N], of the likeliest answers.
    """
    variance = score_variance(scores)
    low, high = interval(
        lambda rows: np.array(score_variance(scores[rows]).ratio),
        len(scores),
        seed=seed,
    )
    left = variance_left(scores, greedy)
    best, best_of_one = best_baselines(left)
    intents = np.array([prompt.intent for prompt in prompts])
    return {
        "prompts": len(scores),
        "samples": scores.shape[1],
        "between": variance.between,
        "within": variance.within,
        "ratio": variance.ratio,
        "ratio_low": float(low),
        "ratio_high": float(high),
        "variance left": left,
        "best": best,
        "best of at most one answer": best_of_one,
        "least answers": least_answers(variance),
        "by intent": {
            str(intent): {
                "prompts": int((intents == intent).sum()),
                "mean": float(scores[intents == intent].mean()),
                "within": float(scores[intents == intent].var(axis=1, ddof=1).mean()),
            }
            for intent in sorted(set(intents))
        },
    }


def table(report: dict) -> str:
    """Return the report in Markdown, the baselines in the order of their variance."""
    left = report["variance left"]
    best, of_one = report["best"], report["best of at most one answer"]
    least = report["least answers"]
    lowers = f"from K = {least} on" if least else "here for no K, as B is not above 0"
    lines = [
        f"{report['samples']} answers to each of {report['prompts']} prompts, scored.",
        f"Variance between prompts: B = {report['between']:.3f}; within: "
        f"W = {report['within']:.3f}.",
        f"B / W = {report['ratio']:.2f} [{report['ratio_low']:.2f}, "
        f"{report['ratio_high']:.2f}].",
        "The mean of K sampled answers lowers the variance if B / W is above 1 / K: "
        f"{lowers}.",
        f"The least variance is left by: {best}, {left[best]:.3f}; with at most one "
        f"answer of the reference by: {of_one}, {left[of_one]:.3f}.",
        "",
        "| baseline | variance left | of the scores' |",
        "|---|---|---|",
        *(
            f"| {name} | {value:.3f} | {value / left['none']:.0%} |"
            for name, value in sorted(left.items(), key=lambda item: item[1])
        ),
        "",
        "| intent | prompts | mean score | variance within |",
        "|---|---|---|---|",
        *(
            f"| {intent} | {row['prompts']} | {row['mean']:.2f} | {row['within']:.3f} |"
            for intent, row in report["by intent"].items()
        ),
    ]
    if "gradient" in report:
        lines += gradient_lines(report["gradient"])
    return "\n".join(lines) + "\n"


def gradient_lines(report: dict) -> list[str]:
    """Return the comparison of gradients in Markdown, one line a ratio of B to W."""
    measured, predicted = report["relative variance"], report["predicted"]
    return [
        "",
        f"The policy gradient of {report['responses']} answers along "
        f"{report['directions']} random directions:",
        "its variance relative to no baseline, and in brackets that of the scores.",
        "",
        f"| B / W | {' | '.join(measured)} |",
        "|---" * (1 + len(measured)) + "|",
        *(
            f"| {ratio:g} | "
            + " | ".join(
                f"{x[i]:.2f} ({predicted[k][i]:.2f})" for k, x in measured.items()
            )
            + " |"
            for i, ratio in enumerate(report["ratios"])
        ),
        "",
        *(
            f"The {name} lowers it from B / W = {x:.2f} [{low:.2f}, {high:.2f}] on; "
            f"by the scores, {1 / size:g}."
            for size, (name, x), low, high in zip(
                MEANS,
                report["crossing"].items(),
                report["crossing_low"].values(),
                report["crossing_high"].values(),
                strict=True,
            )
        ),
    ]


def check_options(config) -> None:
    """Refuse invalid options before anything is read.

    Raises:
        ValueError: names the option and says what to set instead.
    """
    if not config.policy:
        raise ValueError("Give config.policy: the workdir from which PPO would start.")
    if config.samples_per_prompt < 2:
        raise ValueError(
            f"{config.samples_per_prompt=} must be 2 or more: one has no variance."
        )
    if config.gradient_directions:
        _check_gradient(config)
    check_rewards(config, needs_model=True)


def _check_gradient(config) -> None:
    """Refuse options with which the variance of the gradient cannot be measured."""
    least = max(*MEANS, config.gradient_samples - 1) + 1
    if config.samples_per_prompt < least:
        raise ValueError(
            f"{config.samples_per_prompt=} must be at least {least} for "
            f"{config.gradient_samples=} and baselines of up to {max(MEANS)} other "
            "samples; or set gradient_directions=0."
        )
    if min(config.gradient_prompts, config.num_prompts) < 3:
        raise ValueError(
            f"{config.gradient_prompts=} and {config.num_prompts=} must be 3 or more; "
            "or set gradient_directions=0."
        )
    if config.temperature == 0:
        raise ValueError(
            f"{config.temperature=} has no gradient: set it above 0, or "
            "gradient_directions=0."
        )
    ratios = config.gradient_ratios
    numbers = all(isinstance(x, int | float) for x in ratios) and len(ratios) > 1
    if not (numbers and _rising((0, *ratios, math.inf))):
        raise ValueError(
            f"{config.gradient_ratios=} must be 2 or more numbers above 0 that rise, "
            "as in '(0.5, 1.0)'."
        )


def _rising(numbers: Sequence[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(numbers))

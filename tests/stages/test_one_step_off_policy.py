"""One-step off-policy: responses sampled before the update of the iteration before."""

import numpy as np
import pytest

from rlhf_jax.ppo import rollouts
from rlhf_jax.ppo.options import check_options
from rlhf_jax.stages import ppo
from rlhf_jax.training.metrics import MEASURED, read_metrics
from rlhf_jax.training.weights import load_model

GRPO = {"advantage": "grpo", "baseline": "none", "samples_per_prompt": 2}
REWARD = """
import time

def tokens(prompts, responses):
    time.sleep(0.05)
    return [sum(response.tokens) / 1000 for response in responses]
"""
STEPS = 4


def numbers_of(workdir) -> list[dict]:
    return [
        {k: x for k, x in line.items() if not k.startswith(MEASURED)}
        for line in read_metrics(workdir)
    ]


@pytest.fixture
def config(stage_config, tmp_path):
    (tmp_path / "own.py").write_text(REWARD)
    config = stage_config(
        "ppo",
        rewards=f"{tmp_path / 'own.py'}:tokens=1.0",
        one_step_off_policy=True,
        total_steps=STEPS,
        save_every=1,
        eval_every=0,
        keep_checkpoints=STEPS,
        **GRPO,
    )
    config.optimizer.learning_rate = 1e-2
    return config


@pytest.mark.parametrize("ahead", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_who_samples_and_who_learns_and_a_killed_run_to_the_same_bits(
    ahead, config, tmp_path, monkeypatch
):
    """Also beside partial rollouts. The killed run dies while it samples the last
    responses, when those of the iteration before are not learned from yet."""
    config.prompts_ahead = ahead
    seen, answer = [], rollouts.Rollouts.answer

    def noting(self, sampler, place, begun):
        answered, begun = answer(self, sampler, place, begun)
        seen.append((place, np.asarray(sampler.output_matrix), answered))
        return answered, begun

    monkeypatch.setattr(rollouts.Rollouts, "answer", noting)
    ppo.run(config, str(tmp_path / "whole"))
    whole = seen.copy()

    def dying(self, sampler, place, begun):
        if place == STEPS - 1:
            raise KeyboardInterrupt
        return noting(self, sampler, place, begun)

    with monkeypatch.context() as patch:
        patch.setattr(rollouts.Rollouts, "answer", dying)
        with pytest.raises(KeyboardInterrupt):
            ppo.run(config, str(tmp_path / "killed"))
    seen.clear()
    ppo.run(config, str(tmp_path / "killed"))

    assert [place for place, *_ in whole] == list(range(STEPS))
    assert [place for place, *_ in seen] == [STEPS - 1]
    lines = numbers_of(tmp_path / "whole")
    assert numbers_of(tmp_path / "killed") == lines
    # The sampler of an iteration is the policy before the iteration before it.
    matrices = [matrix for _, matrix, _ in whole]
    for place, matrix in enumerate(matrices):
        is_first = np.array_equal(matrix, matrices[0])
        assert is_first == (place < 2)
    for place in range(2, STEPS):
        saved = load_model(f"{tmp_path}/whole/checkpoints/{place - 1}")
        np.testing.assert_array_equal(matrices[place], saved.output_matrix)
    for step, (line, (_, _, answered)) in enumerate(zip(lines, whole, strict=True)):
        # Its own responses are rewarded, and learned from as the trainer sees them.
        responses = answered.responses
        tokens = np.where(responses.response_mask, responses.responses, 0)
        expected = tokens.sum(-1).mean() / 1000
        assert line["objective/scores"] == pytest.approx(expected, abs=1e-4)
        assert line["val/ratio_first"] == pytest.approx(1, abs=1e-4)
        assert (line["rollout/logprob_gap_mean"] > 1e-3) == (step > 0)
        assert (abs(line["rollout/weight_mean"] - 1) > 1e-4) == (step > 0)


def test_a_policy_that_stays_learns_from_the_same_responses(
    config, tmp_path, monkeypatch
):
    """At learning rate 0 the switch changes no number: prompts, keys and rewards are
    the same."""
    config.optimizer.learning_rate = 0.0
    config.total_steps = 2
    config.rollout_correction = "token"
    for name, switch in (("on", True), ("off", False)):
        config.one_step_off_policy = switch
        ppo.run(config, str(tmp_path / name))
    assert numbers_of(tmp_path / "on") == numbers_of(tmp_path / "off")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_draws": 2}, "one_step_off_policy=True samples the next batch before"),
        ({"rollout_correction": "none"}, "one_step_off_policy=True learns from"),
    ],
)
def test_what_it_cannot_stand_beside(fields, message, config):
    config.update(fields)
    with pytest.raises(ValueError, match=message):
        check_options(config)

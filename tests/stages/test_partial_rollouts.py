"""Partial rollouts: responses that go on in the next iteration, and after a kill."""

import dataclasses

import numpy as np
import pytest

from rlhf_jax.generation import responses as responses_
from rlhf_jax.ppo import rollouts
from rlhf_jax.ppo.options import check_options
from rlhf_jax.stages import ppo
from rlhf_jax.training.metrics import MEASURED, read_metrics

SAMPLES = 2


def test_what_is_begun_goes_on_and_a_killed_run_to_the_same_bits(
    stage_config, tmp_path, monkeypatch
):
    """Killed in the second iteration, when some responses have gone on."""
    sampling_with, partial_rollout = ppo.sampling_with, rollouts.partial_rollout
    seen = []

    def ending_early(*args, **options):
        sampling = sampling_with(*args, **options)
        return dataclasses.replace(sampling, stop_ids=tuple(range(0, 400, 7)))

    def noting(model, begun, *args, **options):
        out = partial_rollout(model, begun, *args, **options)
        seen.append((begun, *out))
        return out

    monkeypatch.setattr(ppo, "sampling_with", ending_early)
    monkeypatch.setattr(rollouts, "partial_rollout", noting)
    monkeypatch.setattr(responses_, "STEPS", 2)
    config = stage_config(
        "ppo",
        advantage="grpo",
        baseline="none",
        samples_per_prompt=SAMPLES,
        prompts_ahead=3,
        max_response_tokens=16,
        total_steps=3,
        save_every=1,
        eval_every=0,
    )
    config.optimizer.learning_rate = 1e-2
    ppo.run(config, str(tmp_path / "whole"))
    whole = list(seen)

    def dying(*args, **options):
        if len(seen) == 4:  # three of the whole run, and one of this
            partial_rollout(*args, **options)
            raise KeyboardInterrupt
        return noting(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(rollouts, "partial_rollout", dying)
        with pytest.raises(KeyboardInterrupt):
            ppo.run(config, str(tmp_path / "killed"))
    ppo.run(config, str(tmp_path / "killed"))

    lines = [
        [
            {k: x for k, x in line.items() if not k.startswith(MEASURED)}
            for line in read_metrics(tmp_path / name)
        ]
        for name in ("whole", "killed")
    ]
    assert len(lines[0]) == 3
    assert lines[0] == lines[1]
    learned = np.concatenate([places for _, _, places, _ in whole])
    assert len(set(learned.tolist())) == len(learned)  # each prompt once
    went_on = 0
    for begun, rollout, places, _ in whole:
        for place, row in zip(begun.places, range(0, 99, SAMPLES), strict=False):
            (at,) = np.nonzero(places == place)
            for k in range(SAMPLES if len(at) else 0):
                old, new = row + k, int(at[0]) * SAMPLES + k
                length = begun.responses.lengths[old]
                went_on += 0 < length < rollout.response_mask[new].sum()
                for x, y in (
                    (begun.responses.tokens, rollout.responses),
                    (begun.responses.logprobs, rollout.logprobs),
                ):
                    np.testing.assert_array_equal(x[old, :length], y[new, :length])
    assert went_on
    # The policy has moved, which the weights correct.
    assert lines[0][-1]["rollout/logprob_gap_mean"] > 1e-4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_draws": 2}, "no fixed batch of prompts"),
        ({"rollout_correction": "none"}, "that an earlier policy began"),
    ],
)
def test_what_partial_rollouts_cannot_stand_beside(fields, message, stage_config):
    config = stage_config(
        "ppo",
        advantage="grpo",
        baseline="none",
        samples_per_prompt=SAMPLES,
        prompts_ahead=1,
        **fields,
    )
    with pytest.raises(ValueError, match=message):
        check_options(config)

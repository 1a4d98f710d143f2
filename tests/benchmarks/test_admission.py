"""Admission of a world: its measures by hand, and all of them on world 100."""

import numpy as np
import pytest

from benchmarks import admission
from rlhf_jax.data.testbed.pools import TestbedConfig, make_testbed
from rlhf_jax.data.testbed.tasks import key_of, task_of


def test_a_pair_in_one_style_differs_in_its_answer_alone():
    prompts = make_testbed(TestbedConfig(num_sft=0, num_sft_test=0)).eval_prompts
    rng = np.random.default_rng(0)
    for prompt in prompts[:100]:
        key = key_of(task_of(prompt))
        right, wrong = admission.one_style(task_of(prompt), rng)
        answer = max((a for a in key.answers if a in right), key=len)
        assert wrong in [right.replace(answer, other) for other in key.wrong]


def test_verdicts_are_of_both_bounds():
    measured = {name: low for name, (low, _) in admission.BOUNDS.items()}
    assert all(admission.verdicts(measured).values())
    measured["sft/right"] = 0.9
    measured["reward/accuracy"] = 0.69
    failed = [name for name, ok in admission.verdicts(measured).items() if not ok]
    assert failed == ["sft/right", "reward/accuracy"]


def test_the_ratio_of_variances_is_judged_over_the_worlds(capsys):
    name = "scores/between_over_within"
    mean = admission.over_worlds([{name: 0.25}, {name: 4.0}, {name: 1.0}])
    assert mean == pytest.approx({name: 1.0})
    admission.show("all worlds", mean, admission.OVER_WORLDS)
    admission.show("all worlds", {name: 2.1}, admission.OVER_WORLDS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["yes", "NO"]


def test_worlds_of_published_results_are_not_looked_at():
    with pytest.raises(ValueError, match="World 3 is for published results"):
        admission.get_config(3)


@pytest.mark.slow
@pytest.mark.xfail(
    reason="bag of words 0.582 (at most 0.58), right above wrong 0.735 (at least "
    "0.75), variance of scores between over within prompts 2.28 (at most 2)",
    strict=True,
)
def test_world_100_is_admitted(tmp_path):
    config = admission.get_config(100)
    admission.run(config, tmp_path)
    measured = admission.measure(config, tmp_path)
    passed = admission.verdicts(measured)
    assert all(passed.values()), {x: measured[x] for x in passed if not passed[x]}

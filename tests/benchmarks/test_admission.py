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


def test_the_verdict_is_on_the_mean_over_worlds():
    low = {name: low for name, (low, _) in admission.BOUNDS.items()}
    worlds = {100: dict(low), 101: dict(low)}
    worlds[100]["reward/bag_of_words"], worlds[101]["reward/bag_of_words"] = 0.59, 0.56
    worlds[100]["sft/right"], worlds[101]["sft/right"] = 0.59, 0.6
    worlds[100][admission.RATIO], worlds[101][admission.RATIO] = 0.5, 8.0
    rows = {row[0]: " ".join(row[1:]) for row in admission.table(worlds)}
    assert rows["reward/bag_of_words"] == "0.590* 0.560  0.575  0 to 0.58 yes"
    assert rows["sft/right"] == "0.590* 0.600  0.595* 0.6 to 0.8 NO"
    assert rows[admission.RATIO] == "0.500* 8.000* 2.000  0.7 to 2 yes"


def test_worlds_of_published_results_are_not_looked_at():
    with pytest.raises(ValueError, match="World 3 is for published results"):
        admission.get_config(3)


@pytest.mark.slow
def test_world_100_is_admitted(tmp_path):
    config = admission.get_config(100)
    admission.run(config, tmp_path)
    measured = admission.measure(config, tmp_path)
    passed = admission.verdicts(measured)
    assert all(passed.values()), {x: measured[x] for x in passed if not passed[x]}

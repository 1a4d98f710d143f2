"""The rewards of a run together: sums, identity, faults, options."""

import numpy as np
import pytest

from configs import ppo as ppo_config
from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.rewards import RewardError, Rewards, check_options

PROMPTS = [
    Prompt(f"q{i}", ({"role": "user", "content": "?"},), reference=str(i))
    for i in range(4)
]
RESPONSES = [Response(text, True, [1]) for text in ("0", "x", "2", "3")]
MODEL = np.array([0.1, -0.2, 0.3, np.pi], np.float32)


def config_of(rewards, **fields):
    config = ppo_config.get_config("tiny")
    config.update_from_flattened_dict({"rewards": rewards, **fields})
    return config


@pytest.fixture
def open_rewards(tmp_path):
    def make(rewards, **fields):
        return Rewards(config_of(rewards, **fields), tmp_path)

    return make


def score(rewards):
    return rewards.score(PROMPTS, lambda: RESPONSES, lambda: MODEL)


def test_the_reward_model_alone_is_what_it_is_bit_for_bit(open_rewards):
    rewards = open_rewards("model=1.0")
    scored = rewards.score(PROMPTS, pytest.fail, lambda: MODEL)
    np.testing.assert_array_equal(scored.scores, MODEL)
    assert rewards.identity == rewards.metrics(scored) == {}
    assert rewards.of_rows(scored, 0) == {}


def test_a_score_is_the_sum_of_all_rewards_by_their_weights(open_rewards, tmp_path):
    path = tmp_path / "own.py"
    path.write_text("def f(prompts, responses):\n    return [10.0] * len(prompts)\n")
    rewards = open_rewards(f"model=0.5,right_number=2.0,{path}:f=0.1")
    scored = score(rewards)
    expected = 0.5 * MODEL + 2.0 * np.array([1, 0, 1, 1]) + 0.1 * 10
    np.testing.assert_allclose(scored.scores, expected, rtol=1e-6)
    assert scored.scores.dtype == np.float32
    means = {name: mean.value() for name, mean in rewards.metrics(scored).items()}
    assert means == pytest.approx(
        {"reward/model": MODEL.mean(), "reward/right_number": 0.75, "reward/f": 10.0}
    )
    row = rewards.of_rows(scored, 1)["rewards"]
    assert row == {"model": MODEL[1], "right_number": 0.0, "f": 10.0}
    assert rewards.files.keys() == {str(path)}


def test_a_weight_or_an_option_or_a_file_makes_other_scores(open_rewards, tmp_path):
    path = tmp_path / "own.py"
    path.write_text("def f(prompts, responses): return [1.0] * len(prompts)\n")
    specs = ["model=2.0", "right_number=1.0", "right_number=2.0", f"{path}:f=1.0"]
    identities = [open_rewards(spec).identity for spec in specs]
    identities.append(open_rewards("right_number=1.0", **{"reward_options.url": "x"}))
    identities[-1] = identities[-1].identity
    path.write_text("def f(prompts, responses): return [2.0] * len(prompts)\n")
    identities.append(open_rewards(f"{path}:f=1.0").identity)
    assert len({str(identity) for identity in identities}) == len(identities)
    same = open_rewards("right_number=1.0", reward_timeout=1.0, on_reward_error="zero")
    assert same.identity == identities[1]


@pytest.fixture
def failing(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "def f(prompts, responses):\n"
        "    return [float(response.text) for response in responses]\n"
    )
    return str(path)


def test_a_fault_stops_with_prompt_function_and_advice(open_rewards, failing, tmp_path):
    rewards = open_rewards(f"right_number=1.0,{failing}:f=1.0")
    message = (
        rf"The reward {failing}:f on the prompt 'q1': raised ValueError.*own.py, line 2"
        r".*Mend it and start the same command again.*on_reward_error=zero"
    )
    with pytest.raises(RewardError, match=message) as caught:
        score(rewards)
    assert "\n" not in str(caught.value)
    assert rewards.may_change() == rewards.files


def test_a_fault_under_zero_is_counted(open_rewards, failing, caplog):
    rewards = open_rewards(f"{failing}:f=1.0", on_reward_error="zero")
    scored = score(rewards)
    np.testing.assert_array_equal(scored.scores, [0, 0, 2, 3])
    assert scored.faulty() == {"faults of f": 1}
    assert rewards.metrics(scored)["reward/f_faults"] == 1.0
    assert "the prompt 'q1'" in caplog.text
    assert "1 of 4 responses get 0" in caplog.text
    assert rewards.may_change() == {}


def test_prompts_are_checked_before_anything_is_computed(open_rewards):
    bare = [*PROMPTS, Prompt("bare", ({"role": "user", "content": "?"},))]
    with pytest.raises(RewardError, match="'bare' has no reference, which right_numb"):
        open_rewards("right_number=1.0").check(bare)
    open_rewards("right_number=1.0").check(PROMPTS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rewards": "x=1"}, "there is no reward 'x'"),
        (
            {"rewards": "right_number=1.0", "reward_model": "runs/reward"},
            "reward_model='runs/reward' is not among",
        ),
        ({"rewards": "judge=1.0"}, "Set config.reward_judge.model"),
        ({"rewards": "http=1.0"}, "config.reward_options.url must be like"),
        (
            {"rewards": "length_penalty=1.0", "reward_options.length_buffer": 129},
            "length_buffer=129 must be at most the limit of 128",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(fields, message):
    config = config_of(fields.pop("rewards"), **fields)
    with pytest.raises(ValueError, match=message):
        check_options(config)


def test_the_reward_model_can_be_needed():
    with pytest.raises(ValueError, match="reward_model is empty: name one, or rewards"):
        check_options(config_of("model=1.0"), needs_model=True)
    check_options(config_of("right_number=1.0"), needs_model=True)

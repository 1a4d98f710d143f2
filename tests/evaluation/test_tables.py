from rlhf_jax.evaluation import tables


def test_a_reward_model_is_told_beside_its_rivals(capsys):
    reward = {
        "eval/accuracy": 0.7333,
        "eval/accuracy_low": 0.706,
        "eval/accuracy_high": 0.76,
        "eval/pairs": 2195.0,
        "eval/always_longer": 0.608,
        "eval/bag_of_words": 0.565,
    }
    tables.print_held_out(reward)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(lines) == (
        "Reward model: agrees with 73.3% [70.6%, 76.0%] of 2,195 held-out comparisons; "
        "always longer 60.8%, bag of words 56.5%."
    )

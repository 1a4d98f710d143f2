import numpy as np

from rlhf_jax.evaluation import baselines

RNG = np.random.default_rng(0)
GOOD, BAD = 7, 8  # the tokens that decide


def pairs(count, first_prompt):
    """Chosen says GOOD, rejected says BAD, among noise; lengths tell nothing."""
    return [
        (
            [first_prompt + i],
            [*RNG.integers(10, 60, RNG.integers(3, 9)).tolist(), GOOD],
            [*RNG.integers(10, 60, RNG.integers(3, 9)).tolist(), BAD],
        )
        for i in range(count)
    ]


def test_always_longer_is_the_opposite_of_always_shorter():
    test = [([1], [1, 2, 3], [1]), ([2], [1], [1, 2]), ([3], [1], [2])]
    found = baselines.rival_margins(test, test)
    assert found["always_longer"].tolist() == [2, -1, 0]
    assert found["always_shorter"].tolist() == [-2, 1, 0]


def test_bags_of_words_learn_which_words_people_prefer():
    found = baselines.bag_of_words_margins(pairs(60, 100), pairs(40, 500))
    assert found.shape == (40,)
    assert (found > 0).mean() > 0.95


def test_bigrams_learn_an_order_that_words_do_not_show():
    def ordered(count, first_prompt):
        turned = {GOOD: BAD, BAD: GOOD}
        rows = []
        for i in range(count):
            noise = RNG.integers(10, 60, 6).tolist()
            chosen = [*noise[:3], GOOD, BAD, *noise[3:]]
            rejected = [turned.get(token, token) for token in chosen]
            rows.append(([first_prompt + i], chosen, rejected))
        return rows

    train, test = ordered(60, 100), ordered(40, 500)
    found = baselines.rival_margins(train, test)
    assert not found["bag_of_words"].any()
    assert (found["bag_of_bigrams"] > 0).all()


def test_bags_of_words_do_not_see_which_response_stands_first():
    train, test = pairs(60, 100), pairs(10, 500)
    turned = [(prompt, rejected, chosen) for prompt, chosen, rejected in test]
    np.testing.assert_allclose(
        baselines.bag_of_words_margins(train, test),
        -baselines.bag_of_words_margins(train, turned),
    )


def test_too_few_prompts_leave_the_other_baselines(caplog):
    with caplog.at_level("WARNING"):
        found = baselines.rival_margins(pairs(4, 100), pairs(3, 500))
    assert set(found) == {"always_longer", "always_shorter"}
    assert "fewer than 5 prompts" in caplog.text

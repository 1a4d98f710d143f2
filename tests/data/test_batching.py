import numpy as np
import pytest

from rlhf_jax.data.batching import (
    BatchOrder,
    number_repeats,
    packed_pairs,
    pad_left,
    pad_right,
    preference_batch,
    prompt_batch,
    sft_batch,
)


def test_an_epoch_shows_every_example_once():
    order = BatchOrder(100, batch_size=10, seed=0)
    seen = np.concatenate([order.indices(step) for step in range(10)])
    assert sorted(seen) == list(range(100))


@pytest.mark.parametrize(("num_examples", "is_told"), [(7, True), (8, False)])
def test_examples_that_are_repeated_are_told(num_examples, is_told, caplog):
    BatchOrder(num_examples, batch_size=8, seed=0)
    assert ("7 examples are repeated to fill a batch of 8" in caplog.text) == is_told


def test_epochs_differ_and_the_order_is_a_function_of_seed_and_step():
    order = BatchOrder(100, batch_size=10, seed=0)
    assert not np.array_equal(order.indices(0), order.indices(10))
    late = BatchOrder(100, batch_size=10, seed=0)
    for step in (17, 3, 29):  # asked for in any order, as after a restart
        assert np.array_equal(late.indices(step), order.indices(step))
    other = BatchOrder(100, batch_size=10, seed=1)
    assert not np.array_equal(other.indices(0), order.indices(0))


def test_batches_by_length_pad_little_and_lose_nothing():
    lengths = np.random.default_rng(0).integers(1, 200, 640)
    order = BatchOrder(640, batch_size=16, seed=0, lengths=lengths)
    batches = [order.indices(step) for step in range(order.batches_per_epoch)]
    assert sorted(np.concatenate(batches)) == list(range(640))
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    plain = BatchOrder(640, batch_size=16, seed=0)
    assert spread < 0.2 * np.mean(
        [np.ptp(lengths[plain.indices(s)]) for s in range(40)]
    )


def test_short_batches_are_not_all_first():
    lengths = np.arange(640)
    order = BatchOrder(640, batch_size=16, seed=0, lengths=lengths)
    means = [lengths[order.indices(step)].mean() for step in range(40)]
    assert abs(np.corrcoef(means, np.arange(40))[0, 1]) < 0.5


def test_few_examples_are_repeated_to_fill_a_batch():
    assert sorted(BatchOrder(3, batch_size=6, seed=0).indices(5)) == [0, 0, 1, 1, 2, 2]


def test_what_stands_in_a_batch_again_has_a_number_of_its_own():
    index = np.array([3, 0, 3, 3, 0], np.int32)
    numbered = number_repeats(index, size=5)
    assert numbered.tolist() == [3, 0, 8, 13, 5]
    assert numbered.dtype == np.int32


def test_no_examples_are_an_error():
    with pytest.raises(ValueError, match="no examples"):
        BatchOrder(0, batch_size=1, seed=0)


def test_padding_goes_to_the_side_that_was_asked_for():
    rows = [[1, 2, 3], [4]]
    tokens, mask = pad_left(rows, 4, pad_id=9)
    assert tokens.tolist() == [[9, 1, 2, 3], [9, 9, 9, 4]]
    assert mask.tolist() == [[False, True, True, True], [False, False, False, True]]
    tokens, mask = pad_right(rows, 4, pad_id=9)
    assert tokens.tolist() == [[1, 2, 3, 9], [4, 9, 9, 9]]
    assert mask.tolist() == [[True, True, True, False], [True, False, False, False]]


def test_a_row_that_does_not_fit_is_an_error_not_a_cut():
    with pytest.raises(ValueError, match="Row 1 has 3 tokens, more than width=2"):
        pad_right([[1], [1, 2, 3]], 2, pad_id=0)


def test_sft_batch_keeps_the_loss_mask_off_the_padding():
    examples = [([5, 6, 7], [False, True, True]), ([8], [True])]
    batch = sft_batch(examples, pad_id=0, multiple=4)
    assert batch.tokens.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert batch.loss_mask.tolist() == [
        [False, True, True, False],
        [True, False, False, False],
    ]


def test_rows_that_fill_an_sft_batch_carry_no_loss():
    batch = sft_batch([([5, 6], [True, True])], pad_id=0, multiple=2, batch_size=3)
    assert batch.tokens.shape == batch.mask.shape == (3, 2)
    assert batch.loss_mask.tolist() == [[True, True], [False, False], [False, False]]


def test_preference_batch_puts_chosen_first_and_marks_fillers():
    pairs = [([1, 2], [3], [4, 5, 6]), ([7], [8, 9], [10])]
    batch = preference_batch(pairs, pad_id=0, multiple=2, batch_size=3)
    assert batch.prompts.tolist() == [[1, 2], [0, 7], [1, 2]]
    assert batch.responses[0].tolist() == [[3, 0, 0, 0], [4, 5, 6, 0]]
    assert batch.responses[1].tolist() == [[8, 9, 0, 0], [10, 0, 0, 0]]
    assert batch.response_mask.sum(-1).tolist() == [[1, 3], [2, 1], [1, 3]]
    assert batch.valid.tolist() == [True, True, False]
    assert preference_batch(pairs, pad_id=0, multiple=4).prompts.shape == (2, 4)


def test_packed_pairs_stand_in_one_row_without_gaps():
    pairs = [([1, 2], [3], [4, 5, 6]), ([7], [8, 9], [10])]
    batch = packed_pairs(pairs, pad_id=0, multiple=4, batch_size=3)
    assert batch.tokens[:2].tolist() == [
        [1, 2, 3, 4, 5, 6, 0, 0],
        [7, 8, 9, 10, 0, 0, 0, 0],
    ]
    assert batch.mask.sum(1).tolist() == [6, 4, 6]
    assert batch.segments[:2].tolist() == [
        [0, 0, 1, 2, 2, 2, 2, 2],
        [0, 1, 1, 2, 2, 2, 2, 2],
    ]
    assert batch.ends.tolist() == [[2, 5], [2, 3], [2, 5]]
    assert batch.valid.tolist() == [True, True, False]


def test_prompt_batch_is_left_padded_and_keeps_its_index():
    batch = prompt_batch([[1, 2], [3]], np.array([7, 4]), pad_id=0, width=3)
    assert batch.prompts.tolist() == [[0, 1, 2], [0, 0, 3]]
    assert batch.index.tolist() == [7, 4]

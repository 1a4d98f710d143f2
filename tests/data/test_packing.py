"""Packing: what lies where, in how many rows, of how many shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data import packing
from rlhf_jax.data.batching import BatchOrder

DIALOGUES = [
    ([1, 2, 3], [False, True, True]),
    ([4, 5, 6, 7], [True, False, False, True]),
    ([8, 9], [False, True]),
]
ROOM = packing.Room(tokens=6, targets=3)


def test_dialogues_lie_one_after_another_without_gaps():
    """The largest first; the first token of a dialogue, which no token of it predicts,
    is no target, though it carries loss."""
    batch = packing.pack_dialogues(DIALOGUES, pad_id=0, room=ROOM, unit=1, batch_size=3)
    assert batch.tokens.tolist() == [[4, 5, 6, 7, 8, 9], [1, 2, 3, 0, 0, 0]]
    assert batch.mask.sum(axis=1).tolist() == [6, 3]
    assert batch.examples[0].tolist() == [0, 0, 0, 0, 1, 1]
    assert batch.targets.tolist() == [[3, 5, 0], [1, 2, 0]]
    assert batch.loss_mask.sum() == 5
    again = packing.pack_dialogues(DIALOGUES, pad_id=0, room=ROOM, unit=3, batch_size=3)
    assert again.mask.sum(axis=1).tolist() == [6, 3, 0]


@pytest.mark.parametrize("share", [True, False])
def test_responses_lie_behind_their_prompt_or_a_copy_of_it(share):
    examples = [([1, 2], [[3], [4, 5]]), ([6], [[7, 8], []])]
    rows = packing.packed_rows(
        examples,
        [[0, 1], []],
        count=2,
        room=packing.Room(tokens=12, targets=6),
        pad_id=0,
        share=share,
    )
    expected = {
        True: {
            "tokens": [1, 2, 3, 4, 5, 6, 7, 8],
            "examples": [0, 0, 0, 0, 0, 1, 1, 1],
            "segments": [0, 0, 1, 2, 2, 0, 1, 1],
            "targets": [2, 3, 4, 6, 7],
            "before": [1, 1, 3, 5, 6],
            "ends": [[2, 4], [7, 5]],
        },
        False: {
            "tokens": [1, 2, 3, 1, 2, 4, 5, 6, 7, 8, 6],
            "examples": [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3],
            "targets": [2, 5, 6, 8, 9],
            "before": [1, 4, 5, 7, 8],
            "ends": [[2, 6], [9, 10]],
        },
    }[share]
    for name, x in expected.items():
        assert getattr(rows, name)[0, : len(x)].tolist() == x, name
    assert (rows.segments is None) == (not share)
    assert rows.mask.sum(axis=1).tolist() == [len(expected["tokens"]), 0]
    assert rows.slots[:, :3].tolist() == [[0, 1, 2], [2, 2, 2]]
    assert rows.firsts[0, :2].tolist() == [[0, 1], [3, 5]]
    assert rows.lengths[0, :3].tolist() == [[1, 2], [2, 0], [0, 0]]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), max_size=30),
    most=st.integers(1, 5) | st.none(),
)
def test_every_example_lies_in_one_row_that_has_room_for_it(sizes, most):
    sizes = [(tokens, min(tokens, targets)) for tokens, targets in sizes]
    room = packing.Room(20, 20)
    rows = packing.first_fit(sizes, room, most=most)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    for row in rows:
        assert sum(sizes[i][0] for i in row) <= room.tokens
        assert sum(sizes[i][1] for i in row) <= room.targets
        assert len(row) <= (most or len(sizes))
    # No two rows would fit into one: first fit leaves at most one row half empty.
    half_empty = [row for row in rows if sum(sizes[i][0] for i in row) * 2 <= 20]
    assert most is not None or len(half_empty) <= 1


def test_an_example_without_room_is_an_error():
    with pytest.raises(ValueError, match=r"Example 1 of \[7, 1\] exceeds room"):
        packing.first_fit([(2, 1), (7, 1)], ROOM)


def test_row_counts_are_few_and_little_larger_than_needed():
    counts = [packing.row_count(n, unit=4, largest=512) for n in range(1, 513)]
    assert all(count % 4 == 0 and count <= 512 for count in counts)
    units = [-(-n // 4) for n in range(1, 513)]
    assert all(n <= c // 4 <= n * 9 / 8 for n, c in zip(units, counts, strict=True))
    assert len(set(counts)) <= 16 + 3 * 8


@pytest.mark.parametrize(("batch_size", "spread"), [(16, 0.7), (128, 0.8)])
def test_mixed_batches_pack_densely_into_rows_of_few_shapes(batch_size, spread):
    """Two epochs of dialogues whose lengths differ by a factor of 30."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.3, spread, 1600), 16, 512).astype(int)
    dialogues = [([5] * n, [i % 3 > 0 for i in range(n)]) for n in lengths]
    room = packing.Room.of([packing.size(x) for x in dialogues], 64)
    order = BatchOrder(
        len(lengths), batch_size=batch_size, seed=0, lengths=lengths, mixed=True
    )
    shapes, real, all_tokens = set(), 0, 0
    for step in range(2 * order.batches_per_epoch):
        batch = packing.pack_dialogues(
            [dialogues[i] for i in order.indices(step)],
            pad_id=0,
            room=room,
            unit=1,
            batch_size=batch_size,
        )
        shapes.add((batch.tokens.shape, batch.targets.shape))
        real, all_tokens = real + batch.mask.sum(), all_tokens + batch.mask.size
    assert len(shapes) <= 3
    assert real / all_tokens > 0.85
    first = np.concatenate([order.indices(s) for s in range(order.batches_per_epoch)])
    assert len(set(first)) == len(first)

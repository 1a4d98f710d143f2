import numpy as np
import pytest

from rlhf_jax.models.inputs import check_inputs
from tests.models.families import FAMILIES, START

CONFIG = FAMILIES["v2"]


def rows(count=2, length=6):
    return np.ones((count, length), np.int32), np.ones((count, length), bool)


def test_good_inputs_pass():
    tokens, mask = rows()
    check_inputs(tokens, None, CONFIG)
    mask[0, :3] = mask[1, 4:] = False
    tokens[0, :3] = -100  # ids in the padding are never checked
    check_inputs(tokens, mask, CONFIG)


def test_ids_outside_the_vocabulary_are_refused():
    tokens, mask = rows()
    tokens[1, 2] = 64
    with pytest.raises(ValueError, match="Token 64 in row 1"):
        check_inputs(tokens, mask, CONFIG)
    tokens[1, 2] = -1
    with pytest.raises(ValueError, match="outside the vocabulary of 64"):
        check_inputs(tokens, mask, CONFIG)


def test_rows_longer_than_the_context_are_refused_by_their_real_tokens():
    tokens, mask = rows(2, 70)
    mask[0, :10] = False
    with pytest.raises(ValueError, match=r"Rows \[1\] have \[70\] tokens"):
        check_inputs(tokens, mask, CONFIG)


def test_empty_rows_are_refused():
    tokens, mask = rows()
    mask[1] = False
    with pytest.raises(ValueError, match=r"Rows \[1\] are empty"):
        check_inputs(tokens, mask, CONFIG)
    with pytest.raises(ValueError, match="empty"):
        check_inputs(tokens[:, :0], None, CONFIG)


def test_masks_with_holes_are_refused():
    tokens, mask = rows()
    mask[0, 2] = False
    with pytest.raises(ValueError, match=r"rows \[0\] have holes"):
        check_inputs(tokens, mask, CONFIG)


def test_chatglm_6b_needs_its_start_token():
    tokens, mask = rows()
    tokens[0, 3] = START
    with pytest.raises(ValueError, match=r"Rows \[1\] lack the start token"):
        check_inputs(tokens, mask, FAMILIES["v1"])


def test_other_types_and_shapes_are_refused():
    tokens, mask = rows()
    with pytest.raises(ValueError, match="integers"):
        check_inputs(tokens[0], None, CONFIG)
    with pytest.raises(ValueError, match="bool"):
        check_inputs(tokens, mask.astype(int), CONFIG)

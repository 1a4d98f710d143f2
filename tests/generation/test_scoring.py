from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.data.batching import packed_pairs, pad_right
from rlhf_jax.generation.scoring import pair_scores
from rlhf_jax.models.heads import ScoreModel, last_real_token
from tests.models.families import FAMILIES, GMASK, START, random_model


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return ScoreModel(random_model(FAMILIES[request.param]), rngs=nnx.Rngs(0))


def random_pairs(lengths, seed=0):
    """Prompts that end as ChatGLM-6B's do, and two responses of the given lengths."""
    rng = np.random.default_rng(seed)

    def draw(count):
        return rng.integers(0, START, count).tolist()

    return [([*draw(p), GMASK, START], draw(c), draw(r)) for p, c, r in lengths]


# One shape in every test: compiling is all the time.
pack = partial(packed_pairs, multiple=32, batch_size=3)
score = jax.jit(pair_scores)


@jax.jit
def score_alone(model, tokens, mask):
    return last_real_token(model(tokens, mask), mask)


def test_a_packed_pair_scores_as_two_separate_passes(model):
    pairs = random_pairs([(5, 4, 9), (2, 7, 1), (8, 3, 3)])
    together = score(model, pack(pairs, pad_id=0))
    rows = [prompt + response for prompt, *both in pairs for response in both]
    apart = score_alone(model, *pad_right(rows, 20, pad_id=0)).reshape(-1, 2)
    assert np.ptp(apart) > 0.1
    np.testing.assert_allclose(together, apart, atol=1e-5)


def test_neither_the_other_response_nor_padding_moves_a_score(model):
    pairs = random_pairs([(5, 4, 9), (3, 6, 2)])
    prompt, chosen, rejected = pairs[0]
    changed = [(prompt, chosen, rejected + rejected[::-1]), pairs[1]]
    a = score(model, pack(pairs, pad_id=0))
    b = score(model, pack(changed, pad_id=7))
    np.testing.assert_allclose(a[0, 0], b[0, 0], atol=1e-5)
    np.testing.assert_allclose(a[1], b[1], atol=1e-5)
    assert abs(a[0, 1] - b[0, 1]) > 1e-3

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses.logprobs import (
    next_token_logprobs,
    packed_response_logprobs,
    response_hidden,
)

B, P, K, R, D, V, NUM_TOKENS = 2, 3, 2, 4, 5, 11, 9
T = P + K * R
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, T, D)).astype(np.float32)
MATRIX = RNG.normal(size=(D, V)).astype(np.float32)
TOKENS = RNG.integers(0, NUM_TOKENS, (B, T)).astype(np.int32)
RESPONSES = TOKENS[:, P:].reshape(B, K, R)

STATIC = ("prompt_length", "temperature", "num_tokens", "chunk_size")
next_logprobs = partial(
    jax.jit(next_token_logprobs, static_argnames=STATIC[1:]),
    temperature=0.7,
    num_tokens=NUM_TOKENS,
    chunk_size=3,
)
of_responses = partial(
    jax.jit(packed_response_logprobs, static_argnames=STATIC),
    prompt_length=P,
    temperature=0.7,
    num_tokens=NUM_TOKENS,
    chunk_size=3,
)


def slow_distribution(state, matrix, temperature):
    """Log-probabilities of all tokens after one state, in float64."""
    logits = state.astype(np.float64) @ matrix[:, :NUM_TOKENS].astype(np.float64)
    logits = logits / temperature
    return logits - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max()


def slow_next_token_logprobs(hidden, matrix, tokens, temperature):
    logprobs, entropy = np.zeros(tokens.shape), np.zeros(tokens.shape)
    for b in range(tokens.shape[0]):
        for t in range(1, tokens.shape[1]):
            logp = slow_distribution(hidden[b, t - 1], matrix, temperature)
            logprobs[b, t] = logp[tokens[b, t]]
            entropy[b, t] = -sum(np.exp(x) * x for x in logp)
    return logprobs, entropy


def slow_response_logprobs(hidden, matrix, responses, temperature):
    logprobs, entropy = np.zeros(responses.shape), np.zeros(responses.shape)
    for b in range(B):
        for k in range(K):
            for r in range(R):
                before = P - 1 if r == 0 else P + k * R + r - 1
                logp = slow_distribution(hidden[b, before], matrix, temperature)
                logprobs[b, k, r] = logp[responses[b, k, r]]
                entropy[b, k, r] = -sum(np.exp(x) * x for x in logp)
    return logprobs, entropy


@pytest.mark.parametrize(
    "chunk_size,temperature", [(0, 1.0), (0, 0.7), (1, 2.0), (3, 0.7), (64, 1.0)]
)
def test_next_token_logprobs_equal_the_slow_reference(chunk_size, temperature):
    out = next_logprobs(
        jnp.array(HIDDEN),
        jnp.array(MATRIX),
        jnp.array(TOKENS),
        temperature=temperature,
        chunk_size=chunk_size,
    )
    expected = slow_next_token_logprobs(HIDDEN, MATRIX, TOKENS, temperature)
    np.testing.assert_allclose(out.logprobs, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out.entropy, expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [0, 1, 3, 64])
def test_response_logprobs_equal_the_slow_reference(chunk_size):
    out = of_responses(
        jnp.array(HIDDEN),
        jnp.array(MATRIX),
        jnp.array(RESPONSES),
        chunk_size=chunk_size,
    )
    expected = slow_response_logprobs(HIDDEN, MATRIX, RESPONSES, 0.7)
    np.testing.assert_allclose(out.logprobs, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out.entropy, expected[1], rtol=1e-5, atol=1e-5)


def test_hand_written_two_token_vocabulary():
    # States 0 and log 3 times the matrix [1, 0]: logits (0, 0) and (log 3, 0), so
    # p = (1/2, 1/2) and (3/4, 1/4). Tokens 0, 1, 0: log p(1) = log 1/2, log p(0) =
    # log 3/4; entropies log 2 and log 4 - 3/4 log 3. The last state predicts nothing.
    out = next_token_logprobs(
        jnp.array([[[0.0], [np.log(3.0)], [99.0]]]),
        jnp.array([[1.0, 0.0]]),
        jnp.array([[0, 1, 0]]),
        temperature=1.0,
        num_tokens=2,
        chunk_size=0,
    )
    np.testing.assert_allclose(out.logprobs, [[0, -0.693147, -0.287682]], rtol=1e-5)
    np.testing.assert_allclose(out.entropy, [[0, 0.693147, 0.562335]], rtol=1e-5)


def test_one_response_is_the_tail_of_the_next_token_logprobs():
    whole = next_logprobs(jnp.array(HIDDEN), jnp.array(MATRIX), jnp.array(TOKENS))
    one = of_responses(
        jnp.array(HIDDEN), jnp.array(MATRIX), jnp.array(TOKENS[:, None, P:])
    )
    np.testing.assert_allclose(one.logprobs[:, 0], whole.logprobs[:, P:], rtol=1e-6)
    np.testing.assert_allclose(one.entropy[:, 0], whole.entropy[:, P:], rtol=1e-6)


def test_exchanging_two_responses_exchanges_their_logprobs():
    order = [*range(P), *range(P + R, T), *range(P, P + R)]
    out = of_responses(jnp.array(HIDDEN), jnp.array(MATRIX), jnp.array(RESPONSES))
    swapped = of_responses(
        jnp.array(HIDDEN[:, order]), jnp.array(MATRIX), jnp.array(RESPONSES[:, ::-1])
    )
    np.testing.assert_allclose(swapped.logprobs, out.logprobs[:, ::-1], rtol=1e-6)


def test_permuting_the_batch_permutes_the_result():
    out = next_logprobs(jnp.array(HIDDEN), jnp.array(MATRIX), jnp.array(TOKENS))
    reverse = next_logprobs(
        jnp.array(HIDDEN[::-1]), jnp.array(MATRIX), jnp.array(TOKENS[::-1])
    )
    np.testing.assert_allclose(reverse.logprobs, out.logprobs[::-1], rtol=1e-6)


def test_left_padding_moves_the_logprobs_along_and_changes_none():
    pad = RNG.normal(size=(B, 2, D)).astype(np.float32)
    out = of_responses(jnp.array(HIDDEN), jnp.array(MATRIX), jnp.array(RESPONSES))
    padded = of_responses(
        jnp.concatenate([pad, HIDDEN], axis=1),
        jnp.array(MATRIX),
        jnp.array(RESPONSES),
        prompt_length=P + 2,
    )
    np.testing.assert_array_equal(padded.logprobs, out.logprobs)


def test_logprob_of_a_token_depends_on_the_state_before_it_alone():
    def logprobs(hidden):
        return next_logprobs(hidden, jnp.array(MATRIX), jnp.array(TOKENS)).logprobs

    jacobian = jax.jit(jax.jacrev(logprobs))(jnp.array(HIDDEN))
    depends = np.abs(np.asarray(jacobian)).sum(axis=-1) > 0
    expected = np.zeros((B, T, B, T), bool)
    for b in range(B):
        for t in range(1, T):
            expected[b, t, b, t - 1] = True
    np.testing.assert_array_equal(depends, expected)


def test_logprobs_are_normalised_over_the_real_vocabulary():
    def probability_of(token):
        tokens = jnp.full((B, T), token)
        return jnp.exp(
            next_logprobs(jnp.array(HIDDEN), jnp.array(MATRIX), tokens).logprobs
        )

    total = jnp.sum(jax.vmap(probability_of)(jnp.arange(NUM_TOKENS)), axis=0)
    np.testing.assert_allclose(total[:, 1:], 1.0, rtol=1e-5)


def test_padding_of_the_vocabulary_changes_neither_value_nor_gradient():
    """Columns from num_tokens on may hold anything finite, as large as it likes."""

    def loss(hidden, matrix):
        out = next_logprobs(hidden, matrix, jnp.array(TOKENS))
        return jnp.sum(out.logprobs * 0.3 + out.entropy**2)

    cut = jnp.array(MATRIX[:, :NUM_TOKENS])
    wide = jnp.array(MATRIX).at[:, NUM_TOKENS:].set(1e38)
    expected, (d_hidden, d_cut) = jax.jit(jax.value_and_grad(loss, (0, 1)))(
        jnp.array(HIDDEN), cut
    )
    got, (d_hidden_wide, d_wide) = jax.jit(jax.value_and_grad(loss, (0, 1)))(
        jnp.array(HIDDEN), wide
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(d_hidden_wide, d_hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_wide[:, :NUM_TOKENS], d_cut, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(d_wide[:, NUM_TOKENS:], 0.0)


def test_uniform_logits_have_the_entropy_of_the_vocabulary():
    out = next_logprobs(jnp.zeros((B, T, D)), jnp.array(MATRIX), jnp.array(TOKENS))
    np.testing.assert_allclose(out.entropy[:, 1:], np.log(NUM_TOKENS), rtol=1e-6)
    np.testing.assert_allclose(out.logprobs[:, 1:], -np.log(NUM_TOKENS), rtol=1e-6)


def test_huge_logits_stay_finite():
    def loss(hidden):
        out = next_logprobs(hidden, jnp.array(MATRIX), jnp.array(TOKENS))
        return jnp.sum(out.logprobs + out.entropy), out

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        jnp.array(HIDDEN) * 1e6
    )
    for x in (*out, gradient):
        assert np.isfinite(x).all()
    np.testing.assert_allclose(out.entropy, 0.0, atol=1e-6)


@pytest.mark.parametrize("token", [-1, NUM_TOKENS, V, 10**6])
def test_padding_ids_outside_the_vocabulary_stay_finite(token):
    def loss(hidden, matrix):
        tokens = jnp.array(TOKENS).at[:, -2:].set(token)
        return jnp.sum(next_logprobs(hidden, matrix, tokens).logprobs)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(
        jnp.array(HIDDEN), jnp.array(MATRIX)
    )
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("chunk_size", [0, 3])
def test_closed_form_gradient_equals_automatic_differentiation(chunk_size):
    weights = jnp.array(RNG.normal(size=(2, B, K, R)), jnp.float32)

    def loss(hidden, matrix):
        out = of_responses(hidden, matrix, jnp.array(RESPONSES), chunk_size=chunk_size)
        return jnp.sum(weights[0] * out.logprobs + weights[1] * out.entropy)

    def dense_loss(hidden, matrix):
        before = response_hidden(hidden, prompt_length=P, num_responses=K)
        logits = (before @ matrix)[..., :NUM_TOKENS] / 0.7
        logp = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logp, jnp.array(RESPONSES)[..., None], -1)[..., 0]
        entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
        return jnp.sum(weights[0] * chosen + weights[1] * entropy)

    arguments = jnp.array(HIDDEN), jnp.array(MATRIX)
    got = jax.jit(jax.grad(loss, (0, 1)))(*arguments)
    expected = jax.jit(jax.grad(dense_loss, (0, 1)))(*arguments)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradient_equals_finite_differences():
    def loss(hidden, matrix):
        out = next_logprobs(hidden, matrix, jnp.array(TOKENS))
        return jnp.sum(jnp.sin(out.logprobs) + out.entropy**2)

    def slow_loss(hidden, matrix):
        logprobs, entropy = slow_next_token_logprobs(hidden, matrix, TOKENS, 0.7)
        return np.sum(np.sin(logprobs) + entropy**2)

    d_hidden, d_matrix = jax.jit(jax.grad(loss, (0, 1)))(
        jnp.array(HIDDEN), jnp.array(MATRIX)
    )
    eps = 1e-5
    for _ in range(5):
        way = RNG.normal(size=HIDDEN.shape)
        rise = slow_loss(HIDDEN + eps * way, MATRIX) - slow_loss(
            HIDDEN - eps * way, MATRIX
        )
        np.testing.assert_allclose(np.sum(d_hidden * way), rise / (2 * eps), rtol=1e-4)
        way = RNG.normal(size=MATRIX.shape)
        rise = slow_loss(HIDDEN, MATRIX + eps * way) - slow_loss(
            HIDDEN, MATRIX - eps * way
        )
        np.testing.assert_allclose(np.sum(d_matrix * way), rise / (2 * eps), rtol=1e-4)


def test_bfloat16_states_give_float32_logprobs_and_a_gradient_in_each_dtype():
    hidden = jnp.array(HIDDEN, jnp.bfloat16)

    def loss(hidden, matrix):
        out = next_logprobs(hidden, matrix, jnp.array(TOKENS))
        assert out.logprobs.dtype == out.entropy.dtype == jnp.float32
        return jnp.mean(out.logprobs), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        hidden, jnp.array(MATRIX)
    )
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]
    # The only loss of precision is that of the inputs: with both rounded beforehand,
    # the float64 reference agrees to float32.
    rounded = np.asarray(jnp.array(MATRIX).astype(jnp.bfloat16).astype(jnp.float32))
    expected, _ = slow_next_token_logprobs(
        np.asarray(hidden.astype(jnp.float32)), rounded, TOKENS, 0.7
    )
    np.testing.assert_allclose(out.logprobs, expected, rtol=1e-5, atol=1e-5)


def test_logits_of_all_positions_never_exist_at_once():
    length, vocab = 256, 512
    shapes = (
        jax.ShapeDtypeStruct((2, length, 8), jnp.float32),
        jax.ShapeDtypeStruct((8, vocab), jnp.float32),
        jax.ShapeDtypeStruct((2, length), jnp.int32),
    )

    def temporary_bytes(chunk_size):
        def loss(hidden, matrix, tokens):
            out = next_logprobs(
                hidden, matrix, tokens, num_tokens=vocab, chunk_size=chunk_size
            )
            return jnp.sum(out.logprobs + out.entropy)

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits_bytes = 2 * length * vocab * 4
    assert temporary_bytes(0) > logits_bytes
    assert temporary_bytes(16) < logits_bytes / 2


@pytest.mark.devices(8)
def test_sharding_batch_and_vocabulary_changes_neither_value_nor_gradient():
    rng = np.random.default_rng(1)
    hidden = jnp.array(rng.normal(size=(4, 7, D)), jnp.float32)
    matrix = jnp.array(rng.normal(size=(D, 16)), jnp.float32)
    tokens = jnp.array(rng.integers(0, 15, (4, 7)))

    @jax.jit
    @jax.value_and_grad
    def loss(arguments):
        out = next_logprobs(*arguments, tokens, num_tokens=15)
        return jnp.sum(out.logprobs + out.entropy**2)

    mesh = jax.make_mesh(
        (4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    shardings = [
        jax.NamedSharding(mesh, jax.P("data")),
        jax.NamedSharding(mesh, jax.P(None, "tensor")),
    ]
    expected = loss([hidden, matrix])
    got = loss(jax.device_put([hidden, matrix], shardings))
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, expected
    )


def test_response_hidden_is_the_state_before_each_token():
    # Position t holds the number t. P = 3, so the prompt ends at 2; the responses are
    # at 3..6 and 7..10.
    hidden = jnp.broadcast_to(
        jnp.arange(T, dtype=jnp.float32)[None, :, None], (B, T, D)
    )
    before = response_hidden(hidden, prompt_length=P, num_responses=K)
    np.testing.assert_array_equal(before[0, :, :, 0], [[2, 3, 4, 5], [2, 7, 8, 9]])


def test_responses_of_one_token_follow_the_prompt():
    hidden = jnp.arange(5.0)[None, :, None]
    before = response_hidden(hidden, prompt_length=2, num_responses=3)
    np.testing.assert_array_equal(before[0, :, :, 0], [[1], [1], [1]])


def test_a_prompt_may_be_one_token_long():
    hidden = jnp.arange(5.0)[None, :, None]
    before = response_hidden(hidden, prompt_length=1, num_responses=2)
    np.testing.assert_array_equal(before[0, :, :, 0], [[0, 1], [0, 3]])


def test_lengths_that_do_not_fit_are_refused_with_the_numbers():
    hidden, matrix = jnp.array(HIDDEN), jnp.array(MATRIX)
    with pytest.raises(ValueError, match=r"11 positions.*prompt_length=2"):
        of_responses(hidden, matrix, jnp.array(RESPONSES), prompt_length=2)
    with pytest.raises(ValueError, match="num_responses=3"):
        response_hidden(hidden, prompt_length=P, num_responses=3)
    with pytest.raises(ValueError, match="prompt_length=0"):
        response_hidden(hidden, prompt_length=0, num_responses=1)
    with pytest.raises(ValueError, match="temperature=0"):
        next_logprobs(hidden, matrix, jnp.array(TOKENS), temperature=0.0)
    for num_tokens in (0, 12):
        with pytest.raises(ValueError, match=f"num_tokens={num_tokens}"):
            next_logprobs(hidden, matrix, jnp.array(TOKENS), num_tokens=num_tokens)
    with pytest.raises(ValueError, match=r"0 positions after prompt_length=11"):
        response_hidden(hidden, prompt_length=T, num_responses=1)


def test_a_vocabulary_of_one_token_leaves_no_choice():
    hidden, tokens = jnp.array(HIDDEN), jnp.zeros(TOKENS.shape, jnp.int32)
    out = next_logprobs(hidden, jnp.array(MATRIX), tokens, num_tokens=1)
    np.testing.assert_array_equal(out.logprobs, 0.0)
    np.testing.assert_array_equal(out.entropy, 0.0)

"""Equality with the published implementations, as recorded from them.

Two unrelated float32 implementations differ by up to 7e-6 in these logits, and by 2e-5
at position 300: sums are taken in another order. A GPU's exponentials and square roots
are approximations besides; TF32 would be a hundred times less exact.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax.models import huggingface
from tests.models.families import with_fields

STEPS = 12


def tolerance() -> float:
    return 2e-5 if jax.default_backend() == "cpu" else 1e-4


@jax.jit
def forward(model, tokens, mask):
    """Hidden states and logits: one program for most of the tests below."""
    hidden = model.hidden(tokens, mask)
    return hidden, hidden @ model.output_matrix


@jax.jit
def greedy(model, tokens, mask):
    """Tokens [B, STEPS], and the logits [B, P + STEPS - 1, V] on the way."""
    batch, prompt = tokens.shape
    cache = model.init_cache(batch, prompt + STEPS)
    hidden, cache, _ = model.decode(tokens, mask, cache)
    seen = hidden @ model.output_matrix

    def step(carry, _):
        token, cache = carry
        hidden, cache, _ = model.decode(token, jnp.ones_like(token, bool), cache)
        logits = hidden @ model.output_matrix
        return (logits.argmax(-1), cache), (token[:, 0], logits[:, 0])

    start = (seen[:, -1:].argmax(-1), cache)
    _, (chosen, logits) = jax.lax.scan(step, start, length=STEPS)
    return chosen.T, jnp.concatenate([seen, jnp.moveaxis(logits, 0, 1)], axis=1)


def extend(rows, extra):
    return np.concatenate([rows, extra], axis=1)


def worst_error(logits, mask, expected):
    errors = []
    for b, length in enumerate(expected["lengths"]):
        real = np.asarray(logits[b])[np.asarray(mask[b], bool)][:length]
        errors.append(np.abs(real - expected[f"logits_{b}"]).max())
    return max(errors)


@pytest.mark.gpu
@pytest.mark.parametrize("side", ["unpadded", "left", "right"])
def test_logits_equal_the_published_ones(reference, side):
    _, model, expected = reference
    ids, mask = {
        "unpadded": ("right_ids", None),
        "left": ("input_ids", "attention_mask"),
        "right": ("right_ids", "right_mask"),
    }[side]
    ids = expected[ids]
    # Without a mask, what stands where the padding was is read as text; nothing of it
    # may reach the tokens before.
    mask = np.ones(ids.shape, bool) if mask is None else expected[mask].astype(bool)
    logits = forward(model, ids, mask)[1]
    assert worst_error(logits, mask, expected) < tolerance()


def test_logits_equal_far_into_a_long_row(reference):
    _, model, expected = reference
    logits = jax.jit(lambda m, ids: m(ids))(model, expected["long_ids"][None])
    np.testing.assert_allclose(logits[0, -8:], expected["long_tail"], atol=1e-4)


def test_hidden_states_are_those_after_the_final_norm(reference):
    _, model, expected = reference
    ids, mask = expected["input_ids"], expected["attention_mask"].astype(bool)
    hidden, _ = forward(model, ids, mask)
    np.testing.assert_allclose(hidden[0], expected["hidden_0"], atol=tolerance())


def test_greedy_continuations_are_equal_and_the_cache_changes_nothing(reference):
    _, model, expected = reference
    ids, mask = expected["input_ids"], expected["attention_mask"].astype(bool)
    chosen, decoded = greedy(model, ids, mask)
    np.testing.assert_array_equal(chosen, expected["greedy"])

    full_mask = extend(mask, np.ones(chosen.shape, bool))
    _, whole = forward(model, extend(ids, chosen), full_mask)
    difference = np.abs(np.asarray(decoded - whole))[full_mask]
    # As above, sums are taken in different orders, which depend on the machine (1.1e-5
    # with AVX-512).
    assert difference.max() < tolerance()


def joined_experts(tensors):
    """The tensors of experts as transformers' modules hold them: all in one."""
    joined, layers = {}, {n.partition("experts.0.")[0] for n in tensors}
    for stem in (x + "experts." for x in layers if x.endswith(".mlp.")):
        count = sum(n.startswith(stem) for n in tensors) // 3
        gate, up, down = (
            [tensors[f"{stem}{e}.{kind}_proj.weight"] for e in range(count)]
            for kind in ("gate", "up", "down")
        )
        joined[f"{stem}gate_up_proj"] = np.concatenate([gate, up], axis=1)
        joined[f"{stem}down_proj"] = np.stack(down)
    return joined


def test_loss_and_gradients_are_equal(reference, tmp_path):
    _, model, expected = reference
    ids = expected["input_ids"][:1]

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradient(model, ids):
        logprobs = jax.nn.log_softmax(model(ids)[:, :-1])
        return -jnp.take_along_axis(logprobs, ids[:, 1:, None], -1).mean()

    loss, gradient = loss_and_gradient(model, ids)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-4)

    # A gradient is a tree like the model, so it can be written like one: under the
    # published names.
    style = expected["grad_names"][0]
    naming = "native" if style.startswith("model.") else "remote"
    if "embedding.word" not in style and naming == "remote":
        naming = "v1"
    huggingface.save(gradient, tmp_path, naming=naming)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= joined_experts(tensors)
    norms = [np.linalg.norm(tensors[name]) for name in expected["grad_names"]]
    np.testing.assert_allclose(norms, expected["grad_norms"], rtol=1e-4)
    for key, value in expected.items():
        if key.startswith("grad:"):
            found = tensors[key.removeprefix("grad:")]
            np.testing.assert_allclose(
                found, value, atol=1e-4 * np.linalg.norm(value), err_msg=key
            )


def test_bfloat16_is_close_to_float32(reference):
    folder, model, expected = reference
    low = huggingface.load(folder, dtype="bfloat16", param_dtype="bfloat16")
    low = with_fields(low, scan_layers=True)
    ids, mask = expected["input_ids"], expected["attention_mask"].astype(bool)
    exact = np.asarray(forward(model, ids, mask)[1])[mask]
    rounded = np.asarray(forward(low, ids, mask)[1])[mask]
    assert np.linalg.norm(rounded - exact) < 0.03 * np.linalg.norm(exact)

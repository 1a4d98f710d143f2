"""Live parity with transformers, on random configs drawn anew in each run."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.models import huggingface
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.heads import ScoreModel, last_real_token
from tests.models.families import FAMILIES, random_model, random_tokens

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

FLOAT32 = {"dtype": "float32", "param_dtype": "float32"}


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print(f"np.random.default_rng({seed})")  # shown when a test fails
    return np.random.default_rng(seed)


def random_config(rng, **fixed) -> ChatGLMConfig:
    kv_heads, group = (int(rng.integers(1, 4)) for _ in range(2))
    head_dim = 8 * int(rng.integers(1, 4))
    drawn = {
        "vocab_size": int(rng.integers(70, 100)),
        "width": 8 * int(rng.integers(2, 8)),
        "num_layers": int(rng.integers(1, 4)),
        "num_heads": kv_heads * group,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "ffn_width": int(rng.integers(20, 70)),
        "context_length": 128,
        "qkv_bias": bool(rng.integers(2)),
        "norm_eps": float(rng.choice([1e-5, 1.5625e-7])),
        "rotary_base": float(rng.choice([10000, 5000000])),
        "rotary_fraction": float(rng.choice([0.5, 1.0])),
        "tied": bool(rng.integers(2)),
        "scan_layers": True,
    }
    return ChatGLMConfig(**drawn | fixed)


def padded_batch(config, rng):
    tokens = random_tokens(config, (2, 14), seed=int(rng.integers(2**31)))
    mask = np.ones(tokens.shape, bool)
    mask[0, : int(rng.integers(1, 8))] = False
    return tokens, mask


def torch_logits(folder, tokens, mask):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    # Positions from the mask, as in transformers' own generation.
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens).long(),
            attention_mask=torch.tensor(mask).long(),
            position_ids=torch.tensor(positions).long(),
        )
    return out.logits.numpy(), model


def our_logits(model, tokens, mask):
    return np.asarray(jax.jit(lambda m, *a: m(*a))(model, tokens, mask))


@pytest.mark.parametrize("residual", ["pre", "sandwich"])
def test_what_we_export_transformers_runs_and_gives_back(residual, rng, tmp_path):
    model = random_model(random_config(rng, residual=residual))
    huggingface.save(model, tmp_path / "ours")
    tokens, mask = padded_batch(model.config, rng)
    ours = our_logits(model, tokens, mask)
    theirs, torch_model = torch_logits(tmp_path / "ours", tokens, mask)
    scale = np.abs(theirs[mask]).max()
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-5 * max(scale, 1))

    # Their own folder, in their own spelling of the config.
    torch_model.save_pretrained(tmp_path / "theirs")
    back = huggingface.load(tmp_path / "theirs", **FLOAT32)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)
    fields = (
        "rotary_base",
        "rotary_fraction",
        "norm_eps",
        "qkv_bias",
        "residual",
        "tied",
    )
    for field in fields:
        assert getattr(back.config, field) == getattr(model.config, field)


def test_remote_code_checkpoints_are_glm_by_another_name(rng, tmp_path):
    """ChatGLM2, ChatGLM3 and GLM-4: transformers runs them once they are renamed."""
    config = random_config(rng, tied=False, qkv_bias=True, rotary_fraction=0.5)
    huggingface.save(random_model(config), tmp_path / "remote", naming="remote")
    remote = huggingface.load(tmp_path / "remote", **FLOAT32)
    huggingface.save(remote, tmp_path / "native", naming="native")
    kind = json.loads((tmp_path / "native" / "config.json").read_text())["model_type"]
    assert kind == "glm"
    tokens, mask = padded_batch(config, rng)
    ours = our_logits(remote, tokens, mask)
    theirs, _ = torch_logits(tmp_path / "native", tokens, mask)
    scale = np.abs(theirs[mask]).max()
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-5 * max(scale, 1))


def scores_of_both(model, folder):
    """Scores [2] by our model and by transformers' of `folder`, and the latter. The
    first row ends in padding, which transformers finds by its id, 0."""
    tokens = random_tokens(model.config, (2, 9)) + 1
    mask = np.ones(tokens.shape, bool)
    mask[0, 5:] = False
    tokens[~mask] = 0
    ours = jax.jit(lambda m, *a: last_real_token(m(*a), a[1]))(model, tokens, mask)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32
    )
    with torch.no_grad():
        logits = theirs(
            input_ids=torch.tensor(tokens).long(),
            attention_mask=torch.tensor(mask).long(),
        ).logits[:, 0]
    return np.asarray(ours), logits.numpy(), theirs


@pytest.mark.parametrize("family", ["v2", "glm4"])
def test_reward_models_are_sequence_classifiers(family, tmp_path):
    """Their head has no bias: the shift that centres our scores goes beside it."""
    model = ScoreModel(random_model(FAMILIES[family]), rngs=nnx.Rngs(0))
    model.head.bias[...] = np.array([0.25], np.float32)
    model.offset[...] = np.float32(1.5)
    huggingface.save(model, tmp_path / "ours", fields={"pad_token_id": 0})
    ours, theirs, classifier = scores_of_both(model, tmp_path / "ours")
    names = {"v2": "Glm", "glm4": "Glm4"}
    assert type(classifier).__name__ == f"{names[family]}ForSequenceClassification"
    offset = classifier.config.score_offset
    assert offset == 1.25
    np.testing.assert_allclose(ours, theirs - offset, atol=2e-5)

    # And back: from the folder that transformers writes.
    classifier.save_pretrained(tmp_path / "theirs")
    back = huggingface.load(tmp_path / "theirs", **FLOAT32)
    np.testing.assert_allclose(
        scores_of_both(back, tmp_path / "ours")[0], ours, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["Glm", "Glm4"])
def test_reward_models_of_transformers_are_ours(kind, tmp_path):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
        num_labels=1,
    )
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    made.save_pretrained(tmp_path)
    model = huggingface.load(tmp_path, **FLOAT32)
    assert isinstance(model, ScoreModel)
    ours, theirs, _ = scores_of_both(model, tmp_path)
    assert np.ptp(theirs) > 1e-3
    np.testing.assert_allclose(ours, theirs, atol=2e-5)

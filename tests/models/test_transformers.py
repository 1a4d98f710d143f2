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


BASE = {
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "max_position_embeddings": 64,
    "num_hidden_layers": 2,
}


def scaled_rope(rng) -> dict:
    """Settings of rotary positions of a random type, in transformers' spelling."""
    kind = str(rng.choice(["default", "linear", "llama3", "yarn"]))
    rope = {"rope_type": kind, "rope_theta": float(rng.choice([10000, 500000]))}
    if kind != "default":
        rope["factor"] = float(rng.choice([2.0, 3.0, 8.0]))
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = int(rng.choice([8, 32]))
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": float(rng.integers(2, 5))}
    if kind == "yarn":
        others = [
            {},
            {"attention_factor": 1.3},
            {"mscale": 0.7, "mscale_all_dim": 1.0},
            {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        ]
        rope |= others[rng.integers(len(others))]
    return rope


def random_experts(rng) -> dict:
    """Settings of a mixture of experts, in transformers' spelling."""
    groups, size = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    kept = int(rng.integers(1, groups + 1))
    return {
        "first_k_dense_replace": int(rng.integers(2)),
        "hidden_size": 8 * int(rng.integers(3, 9)),  # torch's kernel wants 16 bytes
        "moe_intermediate_size": 4 * int(rng.integers(3, 10)),
        "n_routed_experts": groups * size,
        "num_experts_per_tok": int(rng.integers(1, kept * size + 1)),
        "n_shared_experts": int(rng.integers(1, 3)),
        "n_group": groups,
        "topk_group": kept,
        "norm_topk_prob": bool(rng.integers(2)),
        "routed_scaling_factor": float(rng.choice([1.0, 1.8, 2.5])),
        "use_qk_norm": bool(rng.integers(2)),
        "attention_bias": bool(rng.integers(2)),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(rng.choice([10000, 1000000])),
            "partial_rotary_factor": float(rng.choice([0.25, 0.5, 0.75, 1.0])),
        },
    }


def random_latents(rng, heads: int) -> dict:
    """Settings of latent attention, in transformers' spelling."""
    dims = [2 * int(rng.integers(2, 7)) for _ in range(3)]
    return {
        "num_key_value_heads": heads,
        "q_lora_rank": [None, 12, 20][rng.integers(3)],
        "kv_lora_rank": 4 * int(rng.integers(3, 8)),
        "qk_rope_head_dim": dims[0],
        "qk_nope_head_dim": dims[1],
        "v_head_dim": dims[2],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(rng.choice([10000, 1000000])),
        },
    }


def random_published(kind: str, rng):
    """A random model of transformers whose biases and norms matter too."""
    groups, group = (int(rng.integers(1, 4)) for _ in range(2))
    heads = groups * group
    fields = BASE | {
        "vocab_size": int(rng.integers(70, 100)),
        "hidden_size": 2 * heads * int(rng.integers(4, 9)),
        "intermediate_size": int(rng.integers(20, 70)),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "rms_norm_eps": float(rng.choice([1e-5, 1e-6])),
        "tie_word_embeddings": bool(rng.integers(2)),
        "rope_parameters": scaled_rope(rng),
    }
    if kind == "Qwen3" or rng.integers(2):
        fields["head_dim"] = 2 * int(rng.integers(4, 12))
    if kind in ("Llama", "Qwen3"):
        fields["attention_bias"] = bool(rng.integers(2))
    if kind == "Llama":
        fields["mlp_bias"] = bool(rng.integers(2))
    elif kind == "Glm4Moe":
        fields |= random_experts(rng) | {"head_dim": 8 * int(rng.integers(1, 4))}
    elif kind == "Glm4MoeLite":
        fields |= random_experts(rng) | random_latents(rng, heads)
        first = fields.pop("first_k_dense_replace")
        fields["mlp_layer_types"] = ["dense"] * first + ["sparse"] * (2 - first)
        for key in ("head_dim", "use_qk_norm"):
            fields.pop(key, None)
    elif rng.integers(2):
        fields["sliding_window"] = int(rng.integers(2, 12))
        fields |= {} if kind == "Mistral" else {"use_sliding_window": True}
        fields |= {} if kind == "Mistral" else {"max_window_layers": 0}
    else:
        fields |= {"sliding_window": None} if kind == "Mistral" else {}
    print(fields)  # shown when a test fails
    config = getattr(transformers, f"{kind}Config")(**fields)
    torch.manual_seed(int(rng.integers(2**31)))
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Latents are small, so that the epsilon of their norms matters.
            scale = 0.02 if "_a_proj" in name else 0.1
            noise = scale * torch.randn_like(parameter)
            parameter.copy_(1 + noise if "norm" in name else noise)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn_like(buffer))
    return model


def greedy(model, tokens, mask, steps=6):
    """Our continuation of each row, read from the cache."""
    decode = jax.jit(lambda m, *a: m.decode(*a))
    cache = model.init_cache(len(tokens), tokens.shape[1] + steps)
    chosen, read, real = [], tokens, mask
    for _ in range(steps):
        hidden, cache, _ = decode(model, read, real, cache)
        read = np.asarray((hidden[:, -1:] @ model.output_matrix).argmax(-1), np.int32)
        real = np.ones(read.shape, bool)
        chosen.append(read[:, 0])
    return np.stack(chosen, axis=1)


OTHERS = ["Llama", "Mistral", "Qwen2", "Qwen3", "Glm4Moe", "Glm4MoeLite"]


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("repeat", range(3))
def test_models_of_other_families_are_read_and_given_back(kind, repeat, rng, tmp_path):
    published = random_published(kind, rng)
    published.save_pretrained(tmp_path / "theirs")
    model = huggingface.load(tmp_path / "theirs", **FLOAT32)
    tokens, mask = padded_batch(model.config, rng)
    mask[1, -3:] = False  # and on the right
    theirs, torch_model = torch_logits(tmp_path / "theirs", tokens, mask)
    ours = our_logits(model, tokens, mask)
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=2e-5)

    cache = model.init_cache(*tokens.shape)
    parts = []
    for piece in (slice(0, 9), slice(9, 10), slice(10, 14)):
        hidden, cache, _ = jax.jit(lambda m, *a: m.decode(*a))(
            model, tokens[:, piece], mask[:, piece], cache
        )
        parts.append(hidden @ model.output_matrix)
    cached = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(cached[mask], theirs[mask], atol=2e-5)

    mask[1] = True  # transformers generates from rows that end in a real token
    expected = torch_model.generate(
        input_ids=torch.tensor(tokens).long(),
        attention_mask=torch.tensor(mask).long(),
        max_new_tokens=6,
        do_sample=False,
    )
    np.testing.assert_array_equal(
        greedy(model, tokens, mask), expected[:, tokens.shape[1] :].numpy()
    )

    huggingface.save(model, tmp_path / "ours")
    again, exported = torch_logits(tmp_path / "ours", tokens, mask)
    assert type(exported) is type(torch_model)
    state = exported.state_dict()
    assert state.keys() == torch_model.state_dict().keys()
    for name, tensor in torch_model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    expected, _ = torch_logits(tmp_path / "theirs", tokens, mask)
    np.testing.assert_array_equal(again[mask], expected[mask])


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


CLASSES = {
    "v2": "Glm",
    "glm4": "Glm4",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}


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


@pytest.mark.parametrize("family", list(CLASSES))
def test_reward_models_are_sequence_classifiers(family, tmp_path):
    """Their head has no bias: the shift that centres our scores goes beside it."""
    model = ScoreModel(random_model(FAMILIES[family]), rngs=nnx.Rngs(0))
    model.head.bias[...] = np.array([0.25], np.float32)
    model.offset[...] = np.float32(1.5)
    huggingface.save(model, tmp_path / "ours", fields={"pad_token_id": 0})
    ours, theirs, classifier = scores_of_both(model, tmp_path / "ours")
    assert type(classifier).__name__ == f"{CLASSES[family]}ForSequenceClassification"
    offset = classifier.config.score_offset
    assert offset == 1.25
    np.testing.assert_allclose(ours, theirs - offset, atol=2e-5)

    # And back: from the folder that transformers writes.
    classifier.save_pretrained(tmp_path / "theirs")
    back = huggingface.load(tmp_path / "theirs", **FLOAT32)
    np.testing.assert_allclose(
        scores_of_both(back, tmp_path / "ours")[0], ours, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["Glm", "Glm4", "Llama", "Mistral", "Qwen2", "Qwen3"])
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

"""Live parity with the library PEFT, on random models and adapters drawn anew."""

import warnings

import jax
import numpy as np
import pytest

from rlhf_jax.models import huggingface, peft_adapters
from rlhf_jax.models.adapters import adapted
from rlhf_jax.models.lora import LoRA
from rlhf_jax.training import weights
from tests.models.families import random_model
from tests.models.test_peft import stirred
from tests.models.test_transformers import (
    FLOAT32,
    our_logits,
    padded_batch,
    random_config,
    random_published,
    rng,  # noqa: F401
)

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

KINDS = ["Glm", "Glm4", "Llama", "Mistral", "Qwen2", "Qwen3", "Glm4Moe"]


@pytest.fixture(params=KINDS)
def base(request, rng, tmp_path):  # noqa: F811
    """The folder of a random model of transformers."""
    folder = tmp_path / "base"
    if request.param in ("Glm", "Glm4"):
        residual = "pre" if request.param == "Glm" else "sandwich"
        huggingface.save(random_model(random_config(rng, residual=residual)), folder)
    else:
        random_published(request.param, rng).save_pretrained(folder)
    return folder


def torch_base(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def torch_logits(model, tokens, mask):
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(tokens).long(),
            attention_mask=torch.tensor(mask).long(),
            position_ids=torch.tensor(positions).long(),
        ).logits.numpy()


def check(ours, torch_model, rng):  # noqa: F811
    tokens, mask = padded_batch(ours.config, rng)
    expected = torch_logits(torch_model.eval(), tokens, mask)[mask]
    logits = our_logits(ours, tokens, mask)[mask]
    np.testing.assert_allclose(
        logits, expected, atol=2e-5 * max(np.abs(expected).max(), 1)
    )
    with torch_model.disable_adapter():  # the adapter is more than rounding
        assert np.abs(
            torch_logits(torch_model, tokens, mask)[mask] - expected
        ).max() > (0.01)


@pytest.mark.parametrize("maps", ["", "query|up"])
def test_peft_runs_what_we_write(base, maps, rng, tmp_path):  # noqa: F811
    model = huggingface.load(base, **FLOAT32)
    maps = "attention" if model.config.num_experts else maps
    lora = LoRA(rank=3, alpha=5.0, maps=maps, rslora=bool(rng.integers(2)))
    model = stirred(adapted(model, lora, key=jax.random.key(0)))
    peft_adapters.write(
        model,
        tmp_path / "adapter",
        naming=huggingface.naming_of(base),
        base=str(base),
        fingerprint="",
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", UserWarning
        )  # PEFT warns of tensors that do not fit
        theirs = peft.PeftModel.from_pretrained(torch_base(base), tmp_path / "adapter")
    check(model, theirs, rng)


@pytest.mark.parametrize("settings", ["all", "patterns", "one layer"])
def test_we_run_what_peft_writes(base, settings, rng, tmp_path):  # noqa: F811
    model = torch_base(base)
    fields = {
        "all": {"target_modules": "all-linear", "r": 4, "lora_alpha": 7},
        "patterns": {
            "target_modules": r".*(q_proj|v_proj|o_proj|down_proj)",
            "r": 2,
            "lora_alpha": 6,
            "use_rslora": True,
            "rank_pattern": {"o_proj": 5, "layers.0.self_attn.v_proj": 3},
            "alpha_pattern": {"down_proj": 3, r"layers.\d+.self_attn.q_proj": 9},
        },
        "one layer": {
            "target_modules": ["k_proj", "v_proj"],
            "r": 3,
            "layers_to_transform": 0,
        },
    }[settings]
    if model.config.model_type == "glm4_moe" and settings != "one layer":
        fields["target_modules"] = ["q_proj", "v_proj", "o_proj"]
    torch.manual_seed(int(rng.integers(2**31)))
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights=False, lora_dropout=0.1, **fields
    )
    theirs = peft.get_peft_model(model, config)
    theirs.save_pretrained(tmp_path / "adapter")
    check(weights.load_model(tmp_path / "adapter"), theirs, rng)

"""Record what transformers' GLM-4.7-Flash computes for a small random checkpoint:

    python tests/models/recorded/make.py

writes `glm4_moe_lite_like` beside this file, in transformers' own spelling: the
checkpoint, and in expected.npz the outputs that `tests/models/test_parity.py` compares.
Needs the extra [parity].
"""

from pathlib import Path

import numpy as np
import torch
import transformers

STEPS, VOCABULARY = 12, 64


def make_model() -> torch.nn.Module:
    """Draw a model whose every part matters, of numbers that bfloat16 has too."""
    config = transformers.Glm4MoeLiteConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=40,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        n_routed_experts=5,
        num_experts_per_tok=2,
        q_lora_rank=20,
        kv_lora_rank=24,
        qk_nope_head_dim=10,
        qk_rope_head_dim=8,
        v_head_dim=12,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = transformers.Glm4MoeLiteForCausalLM(config).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            noise = torch.randn_like(x)
            # Latents are small, so that the epsilon of their norms matters.
            scale = 0.02 if "_a_proj" in name else 0.2
            scale = 0.5 if "embed" in name or ".gate." in name else scale
            noise = 1 + 0.2 * noise if "norm" in name else scale * noise
            if "kv_a_proj" in name:
                noise[-config.qk_rope_head_dim :] *= 10
            x.copy_(noise.to(torch.bfloat16))
        for name, x in model.named_buffers():
            if name.endswith("correction_bias"):
                x.copy_((0.1 * torch.randn_like(x)).to(torch.bfloat16))
    return model


def logits_of(model, ids, mask) -> np.ndarray:
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            position_ids=torch.tensor(positions),
        ).logits.numpy()


def main() -> None:
    folder = Path(__file__).parent / "glm4_moe_lite_like"
    transformers.set_seed(4)
    model, rng = make_model(), np.random.default_rng(0)
    lengths, width = np.array([24, 17, 9, 5]), 24
    texts = [rng.integers(1, VOCABULARY, n) for n in lengths]
    out: dict[str, np.ndarray] = {"lengths": lengths}
    for ids, mask, left in (
        ("input_ids", "attention_mask", True),
        ("right_ids", "right_mask", False),
    ):
        pads = [((width - n, 0) if left else (0, width - n)) for n in lengths]
        rows = list(zip(texts, pads, strict=True))
        out[ids] = np.stack([np.pad(text, pad) for text, pad in rows])
        out[mask] = np.stack([np.pad(np.ones_like(text), pad) for text, pad in rows])
    for b, text in enumerate(texts):
        out[f"logits_{b}"] = logits_of(model, text[None], np.ones((1, len(text)), int))[
            0
        ]
    out["long_ids"] = rng.integers(1, VOCABULARY, 300)
    ones = np.ones((1, 300), int)
    out["long_tail"] = logits_of(model, out["long_ids"][None], ones)[0, -8:]
    first = torch.tensor(texts[0][None])
    with torch.no_grad():
        out["hidden_0"] = model.model(first).last_hidden_state[0].numpy()
    out["greedy"] = model.generate(
        input_ids=torch.tensor(out["input_ids"]),
        attention_mask=torch.tensor(out["attention_mask"]),
        max_new_tokens=STEPS,
        do_sample=False,
    )[:, width:].numpy()
    loss = torch.nn.functional.cross_entropy(model(first).logits[0, :-1], first[0, 1:])
    loss.backward()
    gradients = {
        name: x.grad.numpy()
        for name, x in model.named_parameters()
        if x.grad is not None
    }
    out["loss"] = loss.detach().numpy()
    out["grad_names"] = np.array(list(gradients))
    out["grad_norms"] = np.array([np.linalg.norm(x) for x in gradients.values()])
    whole = r"norm.weight", "kv_a_proj_with_mqa.weight", "kv_b_proj.weight"
    for name, x in gradients.items():
        if name.endswith(whole):
            out[f"grad:{name}"] = x
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    np.savez_compressed(folder / "expected.npz", **out)


if __name__ == "__main__":
    main()

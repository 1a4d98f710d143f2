"""A saved batch run again: its loss, its gradient, and the loss of every row."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.batches import Experience, PackedPairs, PreferenceBatch, SFTBatch
from rlhf_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from rlhf_jax.stages import dpo, reward, sft
from rlhf_jax.terminal import listed, print_table
from rlhf_jax.training import ppo, suspects, weights
from rlhf_jax.training.checkpoints import flatten, has_checkpoint
from rlhf_jax.training.metrics import to_floats

ROWS = 3  # shown


def replay(workdir: Path, path: Path) -> dict:
    """Loss, metrics, gradient norm, the names of parameters whose gradient is not
    finite, and the loss of every row, "rows"; and the record of the batch.

    Raises:
        ValueError: no run of a stage that trains, or not a batch that it saved.
    """
    config = read_config(workdir)
    parts, record = suspects.load_batch(path)
    tokenizer = load_tokenizer(workdir / "tokenizer")
    folder = workdir if has_checkpoint(workdir) else config.init_from
    if not folder:
        raise ValueError(f"{workdir} has no checkpoint, and no init_from.")
    model = weights.load_model(folder, dtype=config.dtype)
    if config.stage == "reward" and folder == config.init_from:
        raise ValueError(f"{workdir} has no checkpoint: there is no reward model yet.")
    loss_fn, batch = loss_of(config, parts, tokenizer.vocab_size)

    grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, metrics), gradients = grad_fn(model, batch)
    squares = {k: jnp.square(g).sum() for k, g in flatten(gradients).items()}
    row_fn = jax.jit(lambda model, row: loss_fn(model, row)[0])
    count = len(jax.tree.leaves(batch[0])[0])
    rows = []
    for i in range(count):
        row = jax.tree.map(lambda x, i=i: x[i : i + 1], batch[0])
        rows.append(float(row_fn(model, (row, None))))
    return record | {
        "loss": float(loss),
        "metrics": to_floats(metrics),
        "grad_norm": float(jnp.sqrt(sum(squares.values()))),
        "not finite": [k for k, x in squares.items() if not np.isfinite(x)],
        "rows": rows,
        "texts": [text_of(batch[0], i, tokenizer) for i in range(count)],
    }


def read_config(workdir: Path) -> ConfigDict:
    """The config that a run recorded."""
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(f"--workdir: {workdir} holds no run: it has no config.json.")
    return ConfigDict(json.loads(path.read_text(encoding="utf-8"))["config"])


def loss_of(config: ConfigDict, parts: dict, num_tokens: int) -> tuple[Callable, tuple]:
    """A stage's `loss_fn(model, batch) -> (loss, metrics)`, of whole batches and of
    single rows, and the batch: (what has rows, the SFT batch beside it or None)."""
    sft_batch = None
    if parts.get("sft"):  # of PPO: a stack of batches
        sft_batch = SFTBatch(
            **{k: x.reshape(-1, x.shape[-1]) for k, x in parts["sft"].items()}
        )

    def sft_loss(model, batch):
        return sft.loss_fn(
            model,
            batch[0],
            num_target=batch[0].loss_mask.sum(),
            num_tokens=num_tokens,
            chunk_size=config.chunk_size,
        )

    def reward_loss(model, batch):
        names = ("margin", "label_smoothing", "score_regularisation")
        hyper = {name: config[name] for name in names}
        return reward.loss_fn(model, batch[0], num_pairs=batch[0].valid.sum(), **hyper)

    def dpo_loss(model, batch):
        (pairs, ref_logprobs), beside = batch
        hyper = hyper_of(dpo.Hyper, config, num_tokens, beside)
        return dpo.loss_fn(
            model,
            (pairs, ref_logprobs, beside),
            reference=None,
            num_pairs=pairs.valid.sum(),
            num_sft_tokens=beside.loss_mask.sum() if beside else 1,
            hyper=hyper,
        )

    def ppo_loss(model, batch):
        experience, beside = batch
        return ppo.policy_loss_fn(
            model,
            batch,
            num_tokens=experience.response_mask.sum(),
            num_sft_tokens=beside.loss_mask.sum() if beside else 1,
            kl_coef=config.kl_coef,
            hyper=hyper_of(ppo.Hyper, config, num_tokens, beside),
        )

    if config.stage == "sft":
        return sft_loss, (SFTBatch(**parts["batch"]), None)
    if config.stage == "reward":
        return reward_loss, (PackedPairs(**parts["batch"]), None)
    if config.stage == "dpo":
        pairs = PreferenceBatch(**parts["batch"])
        if "ref_logprobs" not in parts and config.loss != "simpo":
            raise ValueError("This run computed the reference on the fly: not saved.")
        ref_logprobs = parts.get("ref_logprobs", {}).get("")
        return dpo_loss, ((pairs, ref_logprobs), sft_batch)
    if config.stage == "ppo":
        fields = [field.name for field in dataclasses.fields(Experience)]
        experience = Experience(**dict.fromkeys(fields) | parts["experience"])
        return ppo_loss, (experience, sft_batch)
    raise ValueError(f"{config.stage=} trains nothing.")


def hyper_of(kind, config: ConfigDict, num_tokens: int, beside: SFTBatch | None):
    """A stage's compiled numbers; the SFT term only where there is a batch for it."""
    names = [field.name for field in dataclasses.fields(kind)]
    fields = {name: config[name] for name in names if name != "num_tokens"}
    fields["beta_sft"] = config.beta_sft if beside else 0.0
    return kind(num_tokens=num_tokens, **fields)


def text_of(batch, row: int, tokenizer: Tokenizer) -> str:
    """What stands in a row."""
    batch = batch[0] if isinstance(batch, tuple) else batch
    if hasattr(batch, "tokens"):
        return tokenizer.decode(batch.tokens[row][batch.mask[row]].tolist())
    response = batch.responses[row][batch.response_mask[row]]
    prompt = batch.prompts[row][batch.prompt_mask[row]]
    return tokenizer.decode([*prompt.tolist(), *response.tolist()])


def show(found: dict) -> None:
    """Print what was found, the worst rows first."""
    print(f"Step {found['step']}, saved for: {found['reason']}")
    print(f"loss {found['loss']:.6g}, gradient norm {found['grad_norm']:.6g}")
    print(listed(found["metrics"]))
    for name in found["not finite"]:
        print(f"gradient not finite: {name}")
    worst = sorted(
        range(len(found["rows"])),
        key=lambda i: -np.nan_to_num(found["rows"][i], nan=np.inf),
    )
    rows = [
        [str(i), f"{found['rows'][i]:.4g}", repr(found["texts"][i][:300])]
        for i in worst[:ROWS]
    ]
    print_table("The rows of the highest loss", ["row", "loss", "text"], rows)

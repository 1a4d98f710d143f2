"""A saved batch run again: its loss, its gradient, and the loss of every row."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import algorithms
from rlhf_jax.batches import PackedPairs, PackedRows, PreferenceBatch, SFTBatch
from rlhf_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from rlhf_jax.models.adapters import base_parts, join, own_part
from rlhf_jax.terminal import listed, print_table
from rlhf_jax.training import options, suspects, weights
from rlhf_jax.training.checkpoints import flatten, has_checkpoint
from rlhf_jax.training.metrics import to_floats

ROWS = 3  # shown


def replay(workdir: Path, path: Path) -> dict:
    """Compute `losses_of` in the precision of the run."""
    config = read_config(workdir)
    with jax.default_matmul_precision(options.matmul_precision(config)):
        return losses_of(config, workdir, path)


def losses_of(config: ConfigDict, workdir: Path, path: Path) -> dict:
    """Return the loss, the metrics, the gradient norm, the names of the parameters with
    a non-finite gradient, the loss of every row ("rows"), and the record of the batch.

    Args:
        path: the path of the batch; "newest" takes the last one that the run saved.

    Raises:
        ValueError: the folder is not a run of a stage that trains, or the file is not a
            batch that the run saved.
    """
    algorithm = algorithms.find(config.stage)
    if path == Path("newest"):
        path = newest_batch(workdir)
    parts, record = suspects.load_batch(path)
    tokenizer = load_tokenizer(workdir / "tokenizer")
    folder = workdir if has_checkpoint(workdir) else config.init_from
    if not folder:
        raise ValueError(f"{workdir} has no checkpoint, and no init_from.")
    model = weights.load_model(folder, dtype=config.dtype)
    if algorithm.Batch is PackedPairs and folder == config.init_from:
        raise ValueError(f"{workdir} has no checkpoint: there is no reward model yet.")
    hyper = algorithm.Hyper.from_config(config, tokenizer.vocab_size)
    loss_fn = functools.partial(algorithm.batch_loss, hyper=hyper)
    inputs = inputs_of(algorithm.Batch, parts)

    def loss_of_own_part(own, bases, **inputs):
        return loss_fn(join(own, bases), **inputs)

    grad_fn = jax.jit(jax.value_and_grad(loss_of_own_part, has_aux=True))
    own_and_bases = own_part(model), base_parts(model)
    (loss, metrics), gradients = grad_fn(*own_and_bases, **inputs)
    squares = {k: jnp.square(g).sum() for k, g in flatten(gradients).items()}
    row_fn = jax.jit(lambda model, row: loss_fn(model, **row)[0])
    with_rows = {name: x for name, x in inputs.items() if name != "sft"}
    count = len(jax.tree.leaves(with_rows)[0])
    rows = []
    for i in range(count):
        row = jax.tree.map(lambda x, i=i: x[i : i + 1], with_rows)
        rows.append(float(row_fn(model, row)))
    return record | {
        "loss": float(loss),
        "metrics": to_floats(metrics),
        "grad_norm": float(jnp.sqrt(sum(squares.values()))),
        "not finite": [k for k, x in squares.items() if not np.isfinite(x)],
        "rows": rows,
        "texts": [text_of(inputs["batch"], i, tokenizer) for i in range(count)],
    }


def newest_batch(workdir: Path) -> Path:
    """Return the path of the last batch that a run saved as suspect.

    Raises:
        ValueError: the run saved no batch.
    """
    batches = sorted((workdir / suspects.FOLDER).glob("*.npz"))
    if not batches:
        raise ValueError(
            f"--batch=newest: {workdir} has kept no batch in {suspects.FOLDER}/: no "
            "step stood out. config.spike_zscore says what does."
        )
    return batches[-1]


def read_config(workdir: Path) -> ConfigDict:
    """Read the config that a run recorded."""
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(f"--workdir: {workdir} holds no run: it has no config.json.")
    return ConfigDict(json.loads(path.read_text(encoding="utf-8"))["config"])


def inputs_of(batch_type: type, parts: dict) -> dict:
    """Return the arguments of an algorithm's `batch_loss` from a saved batch: the batch
    and the arrays that its run saved beside it.

    Args:
        batch_type: the algorithm's kind of batch.
        parts: the result of `suspects.load_batch`.
    """
    if batch_type is PreferenceBatch and "slots" in parts["batch"]:
        batch_type = PackedRows
    fields = dict.fromkeys(field.name for field in dataclasses.fields(batch_type))
    inputs = {"batch": batch_type(**fields | parts["batch"])}
    if "ref_logprobs" in parts:
        inputs["ref_logprobs"] = parts["ref_logprobs"][""]
    if "sft" in parts:  # of PPO: a stack of batches
        flat = {k: x.reshape(-1, x.shape[-1]) for k, x in parts["sft"].items()}
        inputs["sft"] = SFTBatch(**flat)
    return inputs


def text_of(batch, row: int, tokenizer: Tokenizer) -> str:
    """Return the text of a row."""
    if hasattr(batch, "tokens"):
        return tokenizer.decode(batch.tokens[row][batch.mask[row]].tolist())
    response = batch.responses[row][batch.response_mask[row]]
    prompt = batch.prompts[row][batch.prompt_mask[row]]
    return tokenizer.decode([*prompt.tolist(), *response.tolist()])


def show(result: dict) -> None:
    """Print the result of a replay, the rows with the highest loss first."""
    print(f"Step {result['step']}, saved for: {result['reason']}")
    print(f"loss {result['loss']:.6g}, gradient norm {result['grad_norm']:.6g}")
    print(listed(result["metrics"]))
    for name in result["not finite"]:
        print(f"gradient not finite: {name}")
    worst = sorted(
        range(len(result["rows"])),
        key=lambda i: -np.nan_to_num(result["rows"][i], nan=np.inf),
    )
    rows = [
        [str(i), f"{result['rows'][i]:.4g}", repr(result["texts"][i][:300])]
        for i in worst[:ROWS]
    ]
    print_table("The rows of the highest loss", ["row", "loss", "text"], rows)

"""A checkpoint of ours to a Hugging Face folder, and the other way round."""

import json
from pathlib import Path

from rich.console import Console
from rich.progress import track

from rlhf_jax.data.tokenizers.tokenizer import (
    copy_tokenizer,
    has_tokenizer,
    load_tokenizer,
)
from rlhf_jax.models import huggingface
from rlhf_jax.training import weights
from rlhf_jax.training.checkpoints import Checkpoints, has_checkpoint
from rlhf_jax.training.workdir import versions


def convert(
    source: Path,
    target: Path,
    *,
    item: str = "model",
    naming: str | None = None,
    param_dtype: str | None = None,
) -> None:
    """Convert `source` into the new folder `target`.

    Args:
        item: which model of our checkpoint ("value" is there after PPO).
        naming: "native", "remote" or "v1", see `huggingface.save`.
        param_dtype: the type of the numbers; None keeps ours and takes float32 else.
    """
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty; give a new folder.")
    if has_checkpoint(weights.workdir_of(source)[0]):
        _export(source, target, item, naming, param_dtype)
    elif (source / "config.json").is_file():
        _import(source, target, param_dtype or "float32")
    else:
        raise FileNotFoundError(
            f"{source} has neither checkpoints/ of ours nor a model's config.json."
        )


def _export(source, target, item, naming, param_dtype):
    model = weights.load_model(source, item=item, param_dtype=param_dtype)
    fields = {}
    tokenizer = weights.workdir_of(source)[0] / "tokenizer"
    if has_tokenizer(tokenizer):
        known = load_tokenizer(tokenizer)
        fields = {"pad_token_id": known.pad_id, "eos_token_id": list(known.stop_ids)}
    huggingface.save(
        model, target, naming=naming, fields=fields, progress=_bar("writing tensors")
    )
    if has_tokenizer(tokenizer):
        copy_tokenizer(tokenizer, target)


def _import(source, target, param_dtype):
    model = huggingface.load(
        source,
        dtype=param_dtype,
        param_dtype=param_dtype,
        progress=_bar("reading parameters"),
    )
    # Step 0: a model that no stage has trained.
    checkpoints = Checkpoints(target, keep=1)
    meta = {"models": {"model": weights.describe(model)}}
    checkpoints.save(0, {"model": model}, meta)
    checkpoints.close()
    config = {"stage": "convert", "source": str(source), "seed": 0}
    record = {"config": config, "versions": versions(), "seed": 0}
    (target / "config.json").write_text(json.dumps(record, indent=2))
    if has_tokenizer(source):
        copy_tokenizer(source, target / "tokenizer")


def _bar(description: str):
    console = Console(stderr=True)
    return lambda items: track(
        items, description, console=console, disable=not console.is_terminal
    )

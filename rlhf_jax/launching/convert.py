"""Conversion of our checkpoints to Hugging Face folders and back, and of GGUF files."""

import shutil
from pathlib import Path

from absl import logging
from rich.console import Console
from rich.progress import track

from rlhf_jax.data.tokenizers.gguf_tokenizer import take_tokenizer
from rlhf_jax.data.tokenizers.tokenizer import (
    copy_tokenizer,
    has_tokenizer,
    load_tokenizer,
)
from rlhf_jax.files import write_json
from rlhf_jax.models import gguf_file, huggingface
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
        item: the model of our checkpoint: "model", or after PPO also "value".
        naming: "native", "remote" or "v1", see `huggingface.save`.
        param_dtype: the dtype of the weights; None keeps that of our checkpoint, and
            takes float32 for a Hugging Face folder and a GGUF file.
    """
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty; give a new folder.")
    making = target.with_name(f"{target.name}.making")  # renamed when it is complete
    shutil.rmtree(making, ignore_errors=True)
    if source.suffix == ".gguf":
        _from_gguf(source, making, param_dtype or "float32")
    elif has_checkpoint(weights.workdir_of(source)[0]):
        _export(source, making, item, naming, param_dtype)
    elif weights.is_published(source):
        _import(source, making, param_dtype or "float32")
    else:
        raise weights.no_model(source)
    if target.exists():
        target.rmdir()
    making.rename(target)


def _export(source, target, item, naming, param_dtype):
    model = weights.load_model(source, item=item, param_dtype=param_dtype)
    fields = {}
    tokenizer = weights.workdir_of(source)[0] / "tokenizer"
    if has_tokenizer(tokenizer):
        ids = load_tokenizer(tokenizer)
        fields = {"pad_token_id": ids.pad_id, "eos_token_id": list(ids.stop_ids)}
    huggingface.save(
        model, target, naming=naming, fields=fields, progress=_bar("writing tensors")
    )
    if has_tokenizer(tokenizer):
        copy_tokenizer(tokenizer, target)
    else:
        logging.warning("%s has no tokenizer; %s goes without.", tokenizer, target)


def _import(source, target, param_dtype):
    tokenizer = load_tokenizer(source) if has_tokenizer(source) else None
    model = huggingface.load(
        source,
        dtype=param_dtype,
        param_dtype=param_dtype,
        progress=_bar("reading parameters"),
    )
    # Step 0 marks a model that no stage has trained.
    checkpoints = Checkpoints(target, keep=1)
    meta = {"models": {"model": weights.describe(model, tokenizer)}}
    checkpoints.save(0, {"model": model}, meta)
    checkpoints.close()
    config = {"stage": "convert", "source": str(source), "seed": 0}
    record = {"config": config, "versions": versions(), "seed": 0}
    write_json(target / "config.json", record)
    if tokenizer is not None:
        copy_tokenizer(source, target / "tokenizer")


def _from_gguf(source, target, param_dtype):
    keys, tensors = gguf_file.read(source)
    try:
        fields = gguf_file.take_config(keys, tensors)
        fields |= take_tokenizer(keys, target)
        if keys:
            raise ValueError(
                f"Keys that are not understood: {', '.join(sorted(keys))}."
            )
        huggingface.write(
            target,
            fields,
            gguf_file.weights(fields, tensors),
            param_dtype=param_dtype,
            progress=_bar("writing tensors"),
        )
        load_tokenizer(target)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _bar(description: str):
    console = Console(stderr=True)
    return lambda items: track(
        items, description, console=console, disable=not console.is_terminal
    )

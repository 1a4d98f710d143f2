"""Conversion of our checkpoints to Hugging Face folders and back, of adapters to PEFT's
layout and back, and of GGUF files."""

import shutil
from pathlib import Path

import jax
from absl import logging
from rich.console import Console
from rich.progress import track

from rlhf_jax.data.sources import tokenizer_places
from rlhf_jax.data.tokenizers.gguf_tokenizer import take_tokenizer
from rlhf_jax.data.tokenizers.tokenizer import (
    copy_tokenizer,
    has_tokenizer,
    load_tokenizer,
)
from rlhf_jax.files import write_json
from rlhf_jax.models import gguf_file, huggingface, peft_adapters
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.training import bases, model_checks, model_records, weights
from rlhf_jax.training.checkpoints import Checkpoints, has_checkpoint
from rlhf_jax.training.inputs import fingerprint
from rlhf_jax.training.workdir import versions


def convert(
    source: Path,
    target: Path,
    *,
    item: str = "model",
    naming: str | None = None,
    param_dtype: str | None = None,
    base: Path | None = None,
) -> None:
    """Convert `source` into the new folder `target`.

    Args:
        item: the model of our checkpoint: "model", or after PPO also "value".
        naming: "native", "remote" or "v1", see `huggingface.save`; "peft" for adapters
            apart from their base.
        param_dtype: the dtype of the weights; None keeps that of our checkpoint, and
            takes float32 for a Hugging Face folder, an adapter and a GGUF file.
        base: the model under an adapter in PEFT's layout that is read or written; None
            is the one that the adapter, or our checkpoint, names.
    """
    is_adapter = peft_adapters.is_adapter(source)
    if base is not None and not is_adapter and naming != "peft":
        raise ValueError(
            "--base is for adapters in PEFT's layout: leave it out, or set "
            "--naming=peft."
        )
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty; give a new folder.")
    making = target.with_name(f"{target.name}.making")  # renamed when it is complete
    shutil.rmtree(making, ignore_errors=True)
    if source.suffix == ".gguf":
        _from_gguf(source, making, param_dtype or "float32")
    elif has_checkpoint(weights.workdir_of(source)[0]):
        if naming == "peft":
            _export_adapters(source, making, item, param_dtype, base)
        else:
            _export(source, making, item, naming, param_dtype)
    elif is_adapter:
        _import_adapter(source, making, param_dtype or "float32", base)
    elif model_checks.is_published(source):
        _import(source, making, param_dtype or "float32")
    else:
        raise model_checks.no_model(source)
    if target.exists():
        target.rmdir()
    making.rename(target)


def _export(source, target, item, naming, param_dtype):
    model = weights.load_whole(source, item=item, param_dtype=param_dtype)
    fields = {}
    tokenizer = weights.workdir_of(source)[0] / "tokenizer"
    if has_tokenizer(tokenizer):
        ids = load_tokenizer(tokenizer)
        fields = {"pad_token_id": ids.pad_id, "eos_token_id": list(ids.stop_ids)}
    huggingface.save(
        model, target, naming=naming, fields=fields, progress=_bar("writing tensors")
    )
    _copy_tokenizer(tokenizer, target)


def _copy_tokenizer(tokenizer, target):
    if has_tokenizer(tokenizer):
        copy_tokenizer(tokenizer, target)
    else:
        logging.warning("%s has no tokenizer; %s goes without.", tokenizer, target)


def _export_adapters(source, target, item, param_dtype, base):
    own, trained_on = weights.load_adapters(source, item=item)
    if not isinstance(own, ChatGLM):
        raise ValueError(
            f"{source} is a reward or value model, whose head PEFT's layout does not "
            "hold here: leave out --naming=peft, which merges the adapters."
        )
    base = trained_on if base is None else base
    if not model_checks.is_published(base):
        raise ValueError(
            f"The base {base} is not in Hugging Face's layout, in which PEFT loads it: "
            f"convert it (launch/convert.py --from={base} --to=FOLDER) and add "
            "--base=FOLDER."
        )
    if base.absolute() != trained_on.absolute():
        weights.check_equal(base, trained_on)
    if param_dtype is not None:
        own = jax.tree.map(lambda x: x.astype(param_dtype), own)
    peft_adapters.write(
        own,
        target,
        naming=huggingface.naming_of(base),
        base=str(base),
        fingerprint=fingerprint(base),
    )
    _copy_tokenizer(weights.workdir_of(source)[0] / "tokenizer", target)


def _import(source, target, param_dtype):
    model = huggingface.load(
        source,
        dtype=param_dtype,
        param_dtype=param_dtype,
        progress=_bar("reading parameters"),
    )
    _save(model, source, target, tokenizer=source)


def _import_adapter(source, target, param_dtype, base):
    base = bases.find_named(source, base)
    own = weights.load_peft(source, base, dtype=param_dtype, param_dtype=param_dtype)
    places = [source, *tokenizer_places(base)]
    place = next(filter(has_tokenizer, places), source)
    _save(own, source, target, tokenizer=place, base=bases.describe(base, target))


def _save(model, source, target, *, tokenizer, base=None):
    """Write a workdir; with adapters, whose base is recorded as `base`."""
    known = load_tokenizer(tokenizer) if has_tokenizer(tokenizer) else None
    # Step 0 marks a model that no stage has trained.
    checkpoints = Checkpoints(target, keep=1)
    meta = {"models": {"model": model_records.describe(model, known, base)}}
    checkpoints.save(0, {"model": model}, meta)
    checkpoints.close()
    config = {"stage": "convert", "source": str(source), "seed": 0}
    record = {"config": config, "versions": versions(), "seed": 0}
    write_json(target / "config.json", record)
    if known is not None:
        copy_tokenizer(tokenizer, target / "tokenizer")


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

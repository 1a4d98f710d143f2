"""Refusals of models that a run cannot use, before any weights are read."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from absl import logging

from rlhf_jax.files import read_json
from rlhf_jax.models import huggingface, peft_adapters
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.training import bases
from rlhf_jax.training.checkpoints import Checkpoints, has_checkpoint, workdir_of
from rlhf_jax.training.model_records import config_of, record_of

_KINDS = {"ChatGLM": "a language model", "ScoreModel": "a reward model"}


def check_models(
    tokenizer: Any,
    stored: Callable[[str], str],
    *,
    policies: Iterable[str] = (),
    reward_models: Iterable[str] = (),
) -> None:
    """Refuse folders of models that a run cannot start from, before anything is
    computed: everything is checked but the weights. "" is skipped.

    Args:
        tokenizer: the tokenizer of the run.
        stored: a function from a model's folder to the fingerprint of the tokenizer in
            it, "" without a tokenizer.

    Raises:
        FileNotFoundError: a folder holds no model.
        ValueError: a model has another kind or architecture, or was trained with
            another tokenizer.
    """
    wanted = [(str(folder), "ChatGLM") for folder in policies if folder]
    wanted += [(str(folder), "ScoreModel") for folder in reward_models if folder]
    for folder, kind in dict.fromkeys(wanted):
        trained_with = [stored(folder)]
        if trained_with[0] in ("", tokenizer.fingerprint):
            actual, config, recorded = look_at(Path(folder))
            if actual != kind:
                raise ValueError(f"{folder} is {_KINDS[actual]}, not {_KINDS[kind]}.")
            check_vocabulary(config, tokenizer.vocab_size, folder)
            trained_with.append(recorded)
            if not any(trained_with):
                logging.warning("%s does not say which tokenizer is its own.", folder)
        if {*trained_with} - {"", tokenizer.fingerprint}:
            raise ValueError(
                f"{folder} was trained with another tokenizer than this run's: the ids "
                "of tokens mean other text there. Start from a model of this tokenizer "
                "(or leave data.tokenizer empty, so that the start model's is used)."
            )


def check_kind(folder: str | os.PathLike, kind: type) -> None:
    """Refuse a folder whose model is not of this kind, `ChatGLM` or `ScoreModel`,
    before any weights are read.

    Raises:
        FileNotFoundError, ValueError: see `check_models`.
    """
    actual = look_at(Path(folder))[0]
    if actual != kind.__name__:
        raise ValueError(f"{folder} is {_KINDS[actual]}, not {_KINDS[kind.__name__]}.")


def check_vocabulary(config: ChatGLMConfig, num_tokens: int, where: str) -> None:
    """Raise ValueError if a tokenizer has more tokens than the model's vocabulary."""
    if num_tokens > config.vocab_size:
        raise ValueError(
            f"The tokenizer has {num_tokens} tokens, but {where} has a vocabulary of "
            f"{config.vocab_size}: they do not belong together."
        )


def look_at(folder: Path) -> tuple[str, ChatGLMConfig, str]:
    """Read the kind of a model, its config, and the fingerprint of its tokenizer (""
    where it is not recorded), without the weights."""
    workdir, which = workdir_of(folder)
    if has_checkpoint(workdir):
        checkpoints = Checkpoints(workdir, keep=None)
        # The checksums of the newest checkpoint are checked when its weights are read.
        step = checkpoints.find(which) if which else checkpoints.steps()[-1]
        record = record_of(checkpoints, step, "model", folder)
        if record.get("base"):
            bases.find(record["base"], workdir)
        return (
            record["kind"],
            config_of(record, {}, folder),
            record.get("tokenizer", ""),
        )
    if peft_adapters.is_adapter(folder):
        kind, config, _ = look_at(bases.find_named(folder))
        lora, _ = peft_adapters.read(folder, config)
        return kind, dataclasses.replace(config, lora=lora), ""
    if is_published(folder):
        return *huggingface.kind_and_config(folder), ""
    raise no_model(folder)


def is_published(folder: Path) -> bool:
    """Return True if a folder has Hugging Face's layout, even if files are missing."""
    path = folder / "config.json"
    return path.is_file() and "model_type" in read_json(path)


def no_model(folder: Path) -> FileNotFoundError:
    """Return the error that says why a folder holds no model."""
    path = folder / "config.json"
    if path.is_file() and "config" in read_json(path):
        return FileNotFoundError(
            f"{folder} holds no model: its run ended before the first checkpoint. "
            "Start that command again, or name another folder."
        )
    return FileNotFoundError(
        f"{folder} holds no model: neither checkpoints/ of a finished or running stage "
        "nor config.json with *.safetensors"
        f"{'.' if folder.is_dir() else '; there is no such folder.'}"
    )

"""The record of a model in a checkpoint: all that is needed to build it again."""

import dataclasses
import os
from typing import Any

from flax import nnx

from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.lora import LoRA
from rlhf_jax.models.rope_scaling import RopeScaling
from rlhf_jax.training.checkpoints import Checkpoints


def describe(
    model: ChatGLM | ScoreModel,
    tokenizer: Any = None,
    base: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return the record of a model for checkpoints: all that is needed to build the
    model again, and the `fingerprint` of its tokenizer.

    Args:
        base: the record of the base under the model's adapters, see `Adapters.base`.
    """
    described: dict[str, Any] = {"kind": type(model).__name__}
    if model.config.lora is not None:
        described["base"] = base
    if tokenizer is not None:
        described["tokenizer"] = tokenizer.fingerprint
    return described | {"config": dataclasses.asdict(model.config)}


def record_of(
    checkpoints: Checkpoints, step: int, item: str, folder: str | os.PathLike
) -> dict[str, Any]:
    """Return the record of a checkpoint's model.

    Args:
        item: the name of the model, such as "model" or "value".
        folder: the folder that errors name.

    Raises:
        ValueError: the checkpoint has no such model.
    """
    record = checkpoints.meta(step)["models"]
    if item not in record:
        raise ValueError(f"{folder} holds the models {sorted(record)}, no '{item}'.")
    return record[item]


def build(record: dict[str, Any], config: ChatGLMConfig) -> ChatGLM | ScoreModel:
    """Build the model of a record, of this config, with weights of no meaning."""
    backbone = ChatGLM(config, rngs=nnx.Rngs(0))
    if record["kind"] == "ChatGLM":
        return backbone
    return ScoreModel(backbone, rngs=nnx.Rngs(0))


def config_of(
    record: dict[str, Any], overrides: dict[str, Any], folder: str | os.PathLike
) -> ChatGLMConfig:
    """Return the recorded config of a model, with some fields changed.

    Raises:
        ValueError: another version of this project made the record, which `folder`
            names.
    """
    # The attention implementation depends on the machine: it is never restored.
    fields = record["config"] | {"attention": "xla"} | overrides
    fields["mask_tokens"] = tuple(fields["mask_tokens"])  # JSON has no tuples
    if fields.get("rope_scaling"):
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    if isinstance(fields.get("lora"), dict):
        fields["lora"] = LoRA(**fields["lora"])
    if "rotary_dims" in fields:  # records of version 0.1
        fields["rotary_fraction"] = fields.pop("rotary_dims") / fields["head_dim"]
    existing = {field.name for field in dataclasses.fields(ChatGLMConfig)}
    if set(fields) - existing:
        raise ValueError(
            f"{folder} was made by another version of rlhf_jax: its model has the "
            f"settings {sorted(set(fields) - existing)}, which this one does not know."
        )
    return ChatGLMConfig(**fields)

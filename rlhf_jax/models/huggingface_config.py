"""Reading and writing of the config.json of published checkpoints.

`model_type` "chatglm" is ChatGLM-6B (v1) if `inner_hidden_size` is present, otherwise
the remote code of ChatGLM2, ChatGLM3 and GLM-4; "glm" is the latter architecture in
transformers; "glm4" is GLM-4-0414; "glm4_moe" is GLM-4.5, 4.6 and 4.7;
"glm4_moe_lite" is GLM-4.7-Flash. "llama", "mistral", "qwen2" and "qwen3" are those of
transformers.
"""

import dataclasses
from typing import Any

from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.huggingface_config_chatglm import (
    read_remote,
    read_v1,
    write_remote,
    write_v1,
)
from rlhf_jax.models.huggingface_config_glm import (
    MOE,
    read_glm,
    read_glm4_moe,
    write_glm,
    write_glm4_moe,
)
from rlhf_jax.models.huggingface_config_llama import (
    ARCHITECTURES,
    read_llama,
    write_llama,
)


def read(
    fields: dict[str, Any], *, dtype: str, param_dtype: str
) -> tuple[ChatGLMConfig, str]:
    """Return our config and the naming of the tensors (see `huggingface_names`).

    Raises:
        ValueError: an unknown model type, a missing key or an unsupported setting.
    """
    kind = fields.get("model_type")
    if kind == "chatglm":
        naming = "v1" if "inner_hidden_size" in fields else "remote"
        reader = {"v1": read_v1, "remote": read_remote}[naming]
    elif kind in ("glm", "glm4"):
        naming, reader = "native", read_glm
    elif kind in list(MOE):  # perhaps of a type that cannot be hashed
        naming, reader = "native", read_glm4_moe
    elif kind in list(ARCHITECTURES):
        naming, reader = "native", read_llama
    else:
        known = ", ".join(map(repr, ("chatglm", "glm", "glm4", *MOE, *ARCHITECTURES)))
        raise ValueError(f"model_type {kind!r} is not one of {known}.")
    try:
        config = reader(fields)
    except KeyError as error:
        raise ValueError(f"config.json of a {kind!r} model has no {error}.") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"config.json of a {kind!r} model: {error}") from None
    return dataclasses.replace(config, dtype=dtype, param_dtype=param_dtype), naming


def write(config: ChatGLMConfig, naming: str) -> dict[str, Any]:
    """Return the fields of config.json, spelled so that all versions of transformers
    read them."""
    writer = {"v1": write_v1, "remote": write_remote, "native": write_glm}[naming]
    if config.family != "glm":
        writer = write_glm4_moe if config.family in MOE else write_llama
    return writer(config) | {"torch_dtype": config.param_dtype}


def namings(config: ChatGLMConfig) -> tuple[str, ...]:
    """Return the namings that can hold a model, the preferred one first."""
    if config.rotary == "two_axes":
        return ("v1",)
    is_native = config.residual == "sandwich" or config.rotary_fraction != 0.5
    if is_native or config.family != "glm":
        return ("native",)
    if config.position_divisor != 1.0:
        return ("remote",)
    return ("native", "remote")

"""Models from checkpoints: a workdir of ours, or a folder in Hugging Face's layout.

A checkpoint's record says what each of its models is, so that
`load_model(workdir)` needs nothing else. With a mesh, weights go straight to where
`parallel.sharding` says.
"""

import dataclasses
import json
import os
from pathlib import Path

import jax
from absl import logging
from flax import nnx

from rlhf_jax.models import huggingface
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.models.quantise import quantise
from rlhf_jax.parallel.mesh import check_heads, check_layers
from rlhf_jax.parallel.sharding import create, shard_parameters
from rlhf_jax.training.checkpoints import Checkpoints, has_checkpoint


def describe(model: ChatGLM | ScoreModel) -> dict:
    """What a checkpoint's record says of a model, enough to build it again."""
    return {"kind": type(model).__name__, "config": dataclasses.asdict(model.config)}


def computation(config) -> dict:
    """How a stage's models compute: fields of their configs, from the stage's.

    Raises:
        ValueError: an attention that this machine or this dtype does not have.
    """
    mesh = jax.sharding.get_mesh()
    platform = (jax.devices() if mesh.empty else mesh.devices.flat)[0].platform
    sixteen_bits = config.dtype in ("bfloat16", "float16")
    fitting = {"tpu": "splash", "gpu": "cudnn" if sixteen_bits else "xla"}
    fitting = fitting.get(platform, "xla")
    attention = fitting if config.attention == "auto" else config.attention
    if attention not in ("xla", fitting):
        raise ValueError(
            f"{config.attention=} is not for {config.dtype} on {platform}: set 'auto', "
            "'splash' on TPUs, 'cudnn' in 16 bits on GPUs, or 'xla'."
        )
    return {
        "dtype": config.dtype,
        "param_dtype": config.param_dtype,
        "scan_layers": config.scan_layers,
        "remat": config.remat,
        "attention": attention,
    }


def workdir_of(folder: str | os.PathLike) -> tuple[Path, str]:
    """A workdir and which of its checkpoints is meant, see `Checkpoints.find`: of
    WORKDIR the newest, else WORKDIR/checkpoints/120 or WORKDIR/checkpoints/best."""
    folder = Path(folder)
    is_one = folder.parent.name == "checkpoints" and has_checkpoint(folder.parents[1])
    return (folder.parents[1], folder.name) if is_one else (folder, "")


def load_model(
    folder: str | os.PathLike,
    *,
    item: str = "model",
    dtype: str | None = None,
    param_dtype: str | None = None,
    **fields,
) -> ChatGLM | ScoreModel:
    """The model of a workdir's newest checkpoint, or of the one that is named (see
    `workdir_of`), or of a Hugging Face folder.

    Args:
        item: which of the checkpoint's models ("model", or "policy" and "value" after
            PPO: "model" is the policy there too).
        dtype, param_dtype: override the recorded compute and storage types.
        fields: other fields of the model's config that `computation` gives.

    Raises:
        FileNotFoundError: the folder holds neither.
    """
    folder = Path(folder)
    workdir, which = workdir_of(folder)
    if has_checkpoint(workdir):
        given = {"dtype": dtype, "param_dtype": param_dtype} | fields
        overrides = {name: x for name, x in given.items() if x is not None}
        return _load_ours(workdir, which, item, overrides)
    if _is_huggingface(folder):
        mesh = jax.sharding.get_mesh()
        return huggingface.load(
            folder,
            dtype=dtype or "float32",
            param_dtype=param_dtype or dtype or "float32",
            mesh=None if mesh.empty else mesh,
            **fields,
        )
    raise _no_model(folder)


def check_kind(folder: str | os.PathLike, kind: type) -> None:
    """Refuse a folder whose model is of the other kind, before any weights are read.

    Args:
        kind: `ChatGLM` or `ScoreModel`.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: the folder holds a model of the other kind.
    """
    workdir, which = workdir_of(folder)
    if has_checkpoint(workdir):
        checkpoints = Checkpoints(workdir, keep=None)
        record = checkpoints.meta(checkpoints.find(which))["models"]
        is_score = record.get("model", {}).get("kind") == ScoreModel.__name__
        checkpoints.close()
    elif _is_huggingface(Path(folder)):
        is_score = huggingface.kind_and_config(folder)[0] == ScoreModel.__name__
    else:
        raise _no_model(folder)
    if is_score != (kind is ScoreModel):
        kinds = ("a language model", "a reward model")
        raise ValueError(f"{folder} is {kinds[is_score]}, not {kinds[not is_score]}.")


def load_policy(
    init_from: str,
    *,
    model: str,
    num_tokens: int,
    key: jax.Array,
    dtype: str,
    param_dtype: str,
    **fields,
) -> ChatGLM:
    """The policy a stage starts from.

    Args:
        init_from: what `load_model` takes; "" makes random weights.
        model: the preset to make when there is nothing to load.
        num_tokens: the tokenizer's size, which the vocabulary has to hold.
        dtype, param_dtype, fields: what `computation` gives. With param_dtype "int8"
            the blocks' matrices are, and the rest has `dtype`.

    Raises:
        ValueError: the tokenizer has more tokens than the model, or the mesh's tensor
            axis does not divide its heads.
    """
    is_quantised = param_dtype == "int8"
    param_dtype = dtype if is_quantised else param_dtype
    if init_from:
        policy = load_model(init_from, dtype=dtype, param_dtype=param_dtype, **fields)
        if isinstance(policy, ScoreModel):
            raise ValueError(f"{init_from} is a reward model, not a language model.")
    else:
        logging.info("No init_from: random weights for preset %r.", model)
        config = preset(
            model,
            dtype=dtype,
            param_dtype=param_dtype,
            quantised=is_quantised,
            **fields,
        )
        if model in ("micro", "tiny"):  # made to the tokenizer's measure
            rows = -(-num_tokens // 64) * 64
            config = dataclasses.replace(config, vocab_size=rows)
        check_heads(config.num_heads)
        check_layers(config.num_layers)
        policy = create(lambda: ChatGLM(config, rngs=nnx.Rngs(key)))
    check_heads(policy.config.num_heads)
    check_layers(policy.config.num_layers)
    check_vocabulary(policy.config, num_tokens, init_from or f"preset {model!r}")
    is_done = policy.config.quantised == is_quantised
    return policy if is_done else create(quantise, policy)


def load_score_model(
    init_from: str, *, backbone: ChatGLM, num_tokens: int, key: jax.Array
) -> ScoreModel:
    """A reward or value model: loaded, or a new head on `backbone` when "" is given."""
    if not init_from:
        return create(lambda b: ScoreModel(b, rngs=nnx.Rngs(key)), backbone)
    like = dataclasses.asdict(backbone.config)
    same = ("dtype", "param_dtype", "scan_layers", "remat", "attention")
    model = load_model(init_from, **{name: like[name] for name in same})
    if not isinstance(model, ScoreModel):
        raise ValueError(f"{init_from} is a language model, not a reward model.")
    check_vocabulary(model.backbone.config, num_tokens, init_from)
    return create(quantise, model) if backbone.config.quantised else model


def check_vocabulary(config: ChatGLMConfig, num_tokens: int, where: str) -> None:
    if num_tokens > config.vocab_size:
        raise ValueError(
            f"The tokenizer has {num_tokens} tokens, but {where} has a vocabulary of "
            f"{config.vocab_size}: they do not belong together."
        )


def _is_huggingface(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _no_model(folder: str | os.PathLike) -> FileNotFoundError:
    return FileNotFoundError(
        f"{folder} holds no model: neither checkpoints/ of a finished or running stage "
        "nor config.json with *.safetensors."
    )


def _load_ours(folder, which, item, overrides):
    checkpoints = Checkpoints(folder, keep=None)
    step = checkpoints.find(which)
    record = checkpoints.meta(step)["models"]
    if item not in record:
        raise ValueError(f"{folder} holds the models {sorted(record)}, no '{item}'.")
    # Attention belongs to a machine, not to a checkpoint.
    fields = record[item]["config"] | {"attention": "xla"} | overrides
    fields["mask_tokens"] = tuple(fields["mask_tokens"])  # JSON has no tuples
    if "rotary_dims" in fields:  # records of version 0.1
        fields["rotary_fraction"] = fields.pop("rotary_dims") / fields["head_dim"]
    config = ChatGLMConfig(**fields)

    def build():
        backbone = ChatGLM(config, rngs=nnx.Rngs(0))
        if record[item]["kind"] == "ChatGLM":
            return backbone
        return ScoreModel(backbone, rngs=nnx.Rngs(0))

    like = shard_parameters(jax.eval_shape(build))
    model = checkpoints.restore(step, {item: like})[item]
    checkpoints.close()
    logging.info("Loaded %s of %s at step %d.", item, folder, step)
    return model


def fingerprint(folder: str) -> str:
    """Which checkpoint a folder holds, in words, for warnings and caches."""
    if not folder:
        return "random weights"
    workdir, which = workdir_of(folder)
    if has_checkpoint(workdir):
        config = json.loads((workdir / "config.json").read_text())["config"]
        step = Checkpoints(workdir, keep=None).find(which)
        return f"{workdir.absolute()} step {step} (seed {config['seed']})"
    return str(Path(folder).absolute())

"""Models from checkpoints: a workdir of ours, or a folder in Hugging Face's layout.

The record of a checkpoint describes each of its models, so that `load_model(workdir)`
needs no config. With a mesh, weights are read directly into the sharding of
`parallel.sharding`.
"""

import dataclasses
import functools
import os
from pathlib import Path

import jax
from absl import logging
from flax import nnx

from rlhf_jax.files import read_json
from rlhf_jax.models import huggingface, peft_adapters
from rlhf_jax.models.adapters import adapted, merged, named, on_base, own_part
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.huggingface_tensors import fill
from rlhf_jax.models.inputs import check_finite
from rlhf_jax.models.lora import LoRA
from rlhf_jax.models.presets import preset
from rlhf_jax.models.quantise import fill_quantised, quantise
from rlhf_jax.parallel.mesh import check_experts, check_heads, check_layers, platform
from rlhf_jax.parallel.sharding import create, shapes_of
from rlhf_jax.training import bases
from rlhf_jax.training.checkpoints import (
    Checkpoints,
    flatten,
    has_checkpoint,
    unflatten,
    workdir_of,
)
from rlhf_jax.training.model_checks import (
    check_kind,
    check_vocabulary,
    is_published,
    look_at,
    no_model,
)
from rlhf_jax.training.model_records import build, config_of, record_of

# Fields of a model's config that say how it computes and in what it is stored.
STORAGE = ("dtype", "param_dtype", "quantised", "scan_layers", "remat", "attention")

# Presets that take the size of their vocabulary from the tokenizer.
SMALL = ("micro", "tiny", "tiny_moe")


def computation(config) -> dict:
    """Return the fields of a model's config that say how it computes, from a stage's
    config.

    Raises:
        ValueError: this machine does not have the attention.
    """
    machine = platform()
    sixteen_bits = config.dtype in ("bfloat16", "float16")
    fitting = {"tpu": "splash", "gpu": "cudnn" if sixteen_bits else "xla"}
    fitting = fitting.get(machine, "xla")
    attention = fitting if config.attention == "auto" else config.attention
    if machine != {"splash": "tpu", "cudnn": "gpu"}.get(attention, machine):
        raise ValueError(
            f"{config.attention=} is not for {machine}: set 'auto', 'splash' on TPUs, "
            "'cudnn' in 16 bits on GPUs, or 'xla'."
        )
    stored = {"param_dtype": config.param_dtype}
    if "lora" in config and config.lora.rank:
        is_quantised = config.lora.base_dtype == "int8"
        stored = {
            "param_dtype": config.dtype if is_quantised else config.lora.base_dtype,
            "quantised": is_quantised,
            "lora": LoRA(
                rank=config.lora.rank,
                alpha=config.lora.alpha or float(config.lora.rank),
                maps=config.lora.maps,
                rslora=config.lora.rslora,
                param_dtype=config.param_dtype,
            ),
        }
    return stored | {
        "dtype": config.dtype,
        "scan_layers": config.scan_layers,
        "remat": config.remat,
        "attention": attention,
    }


class Adapters:
    """The adapters that a stage trains by `config.lora`, and the models under them,
    each of which is loaded once: all roles on it share its memory. With rank 0 there
    are no adapters, and nothing is shared."""

    def __init__(self, config):
        self.lora: LoRA | None = computation(config).get("lora")
        self._loaded: dict[tuple, ChatGLM | ScoreModel] = {}

    def check(self, folder: str | os.PathLike) -> None:
        """Refuse a folder on whose model these adapters cannot be trained, before any
        weights are read.

        Raises:
            ValueError: the rank is above the width, the pattern matches no map, or the
                folder's own adapters are others.
        """
        if self.lora is None or not folder:
            return
        config = look_at(Path(folder))[1]
        self._compare(config.lora)
        config = dataclasses.replace(config, lora=self.lora)
        jax.eval_shape(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))

    def on(self, model: ChatGLM | ScoreModel, key: jax.Array):
        """Return the model to be trained: with its own adapters, with new ones, or, at
        rank 0, as it is."""
        if self.lora is None:
            return model
        self._compare(model.config.lora)
        has_adapters = model.config.lora is not None
        return model if has_adapters else adapted(model, self.lora, key=key)

    def base(self, folder: str | os.PathLike, workdir: Path) -> dict | None:
        """Return the record of the base of a model that started from `folder`, for the
        checkpoints of `workdir`; None at rank 0."""
        if self.lora is None:
            return None
        return bases.describe(_base_of(Path(folder)) or folder, workdir)

    def load(self, folder: Path, **how) -> ChatGLM | ScoreModel:
        """Return the base in a folder; the same one for the same folder.

        Args:
            how: the arguments of `load_model`.
        """
        key = (fingerprint(str(folder)), *sorted(how.items()))
        if key in self._loaded:
            logging.info("One more role lies on the base %s, loaded before.", folder)
        else:
            if self._loaded:
                logging.info("%s is another base: its roles share no other's.", folder)
            self._loaded[key] = load_model(folder, **how)
        return self._loaded[key]

    def _compare(self, lora: LoRA | None) -> None:
        """Refuse other adapters to start from."""
        if lora is None:
            return
        differing = [
            f"lora.{field.name}={getattr(lora, field.name)!r}, not "
            f"{getattr(self.lora, field.name)!r}"
            for field in dataclasses.fields(LoRA)
            if field.name != "param_dtype"
            and getattr(lora, field.name) != getattr(self.lora, field.name)
        ]
        if differing:
            raise ValueError(
                f"The adapters to start from have {'; '.join(differing)}: set the "
                "same, or merge them first with launch/convert.py."
            )


def _base_of(folder: Path) -> Path | None:
    """Return the base under a folder's adapters; None where its model is whole."""
    workdir, which = workdir_of(folder)
    if peft_adapters.is_adapter(folder):
        return bases.find_named(folder)
    if not has_checkpoint(workdir):
        return None
    checkpoints = Checkpoints(workdir, keep=None)
    step = checkpoints.find(which) if which else checkpoints.steps()[-1]
    record = record_of(checkpoints, step, "model", folder).get("base")
    return bases.find(record, workdir) if record else None


def load_model(
    folder: str | os.PathLike,
    *,
    item: str = "model",
    dtype: str | None = None,
    param_dtype: str | None = None,
    adapters: Adapters | None = None,
    **fields,
) -> ChatGLM | ScoreModel:
    """Load the model of a workdir's newest checkpoint, of a named checkpoint (see
    `workdir_of`), of a Hugging Face folder, or of an adapter in PEFT's layout on the
    base that the adapter names.

    Args:
        item: the item of the checkpoint: "model", or after PPO also "value".
        dtype, param_dtype: override the recorded compute and storage dtypes.
        adapters: the adapters of a stage, whose bases are shared; None loads the base
            for this model alone.
        fields: other fields of the model's config, from `computation`.

    Raises:
        FileNotFoundError: the folder holds no model, or the base is missing.
        ValueError: the base under the folder's adapters is another model than theirs.
    """
    folder = Path(folder)
    workdir, which = workdir_of(folder)
    if has_checkpoint(workdir):
        given = {"dtype": dtype, "param_dtype": param_dtype} | fields
        overrides = {name: x for name, x in given.items() if x is not None}
        return _load_ours(workdir, which, item, overrides, adapters)
    if peft_adapters.is_adapter(folder):
        how = {"dtype": dtype or "float32", "param_dtype": param_dtype or dtype}
        base = bases.find_named(folder)
        own = load_peft(folder, base, adapters=adapters, **how, **fields)
        how = {name: getattr(own.config, name) for name in STORAGE}
        load = load_model if adapters is None else adapters.load
        return on_base(own, named(load(base, **how)))
    if is_published(folder):
        mesh = jax.sharding.get_mesh()
        model = huggingface.load(
            folder,
            dtype=dtype or "float32",
            param_dtype=param_dtype or dtype or "float32",
            mesh=None if mesh.empty else mesh,
            **fields,
        )
        logging.info("Loaded the Hugging Face model of %s.", folder)
        return model
    raise no_model(folder)


def load_peft(
    folder: Path,
    base: Path,
    *,
    dtype: str,
    param_dtype: str | None,
    adapters: Adapters | None = None,
    **fields,
) -> ChatGLM:
    """Load an adapter in PEFT's layout as a model's own part, for the base in a folder,
    whose weights are not read. The arguments are those of `load_model`."""
    check_kind(base, ChatGLM)
    config = look_at(base)[1]
    stored = {"dtype": dtype, "param_dtype": param_dtype or dtype}
    config = dataclasses.replace(config, **stored, **fields)
    trained = adapters is not None and adapters.lora is not None
    own = peft_adapters.load(
        folder,
        config,
        param_dtype=adapters.lora.param_dtype if trained else config.param_dtype,
    )
    logging.info("Loaded the adapter of %s.", folder)
    return own


def load_whole(folder: str | os.PathLike, **how) -> ChatGLM | ScoreModel:
    """Load a model as `load_model` does; adapters are merged into their base, in
    floats: with `quantised=True` the result is quantised."""
    if _base_of(Path(folder)) is None:
        return load_model(folder, **how)
    whole = create(merged, load_model(folder, **how | {"quantised": False}))
    return create(quantise, whole) if how.get("quantised") else whole


def load_adapters(
    folder: str | os.PathLike, *, item: str = "model"
) -> tuple[ChatGLM | ScoreModel, Path]:
    """Load the own part of a workdir's model that is adapters on a base, which is not
    loaded, and find the folder of the base.

    Raises:
        ValueError: the model is whole.
    """
    workdir, which = workdir_of(folder)
    checkpoints = Checkpoints(workdir, keep=None)
    step = checkpoints.find(which)
    record = record_of(checkpoints, step, item, folder)
    if not record.get("base"):
        raise ValueError(f"{folder} holds a whole model, and no adapters.")
    config = config_of(record, {}, folder)
    like = shapes_of(lambda: own_part(build(record, config)))
    flat = checkpoints.restore(step, {item: flatten(like)})[item]
    checkpoints.close()
    return unflatten(flat, like), bases.find(record["base"], workdir)


def check_equal(folder: Path, other: Path) -> None:
    """Refuse two folders that hold different models; what an export in bfloat16 rounds
    is no difference.

    Raises:
        ValueError: the sizes or the weights differ.
    """
    first, second = (load_model(x, param_dtype="bfloat16") for x in (folder, other))
    ours, theirs = named(first), named(second)
    same = type(first) is type(second) and ours.keys() == theirs.keys()
    if not same or not all(
        x.shape == theirs[name].shape and bool((x == theirs[name]).all())
        for name, x in ours.items()
    ):
        raise ValueError(f"{folder} is another model than {other}.")


def start_config(config) -> ChatGLMConfig:
    """Return the config of the model that a stage starts from, without its weights."""
    if not config.init_from:
        return preset(config.model, **computation(config))
    recorded = look_at(Path(config.init_from))[1]
    whole = {"lora": None, "quantised": False}
    return dataclasses.replace(recorded, **whole | computation(config))


def load_policy(
    init_from: str,
    *,
    model: str,
    num_tokens: int,
    key: jax.Array,
    dtype: str,
    param_dtype: str,
    adapters: Adapters | None = None,
    quantised: bool = False,
    lora: LoRA | None = None,
    **fields,
) -> ChatGLM:
    """Load the policy that a stage starts from, or make one with random weights.
    Adapters in the folder are merged, unless the stage trains adapters.

    Args:
        init_from: the folder for `load_model`; "" makes random weights.
        model: the preset of a model with random weights.
        num_tokens: the number of tokens of the tokenizer, which the vocabulary must
            hold.
        dtype, param_dtype, quantised, lora, fields: the result of `computation`. With
            `quantised` or param_dtype "int8" the matrices of the blocks are int8, and
            other parameters have `dtype`. Adapters are not added here (`Adapters.on`).
        adapters: the adapters that the stage trains; None for no stage that trains.

    Raises:
        ValueError: the tokenizer has more tokens than the model, or the mesh's tensor
            axis does not divide the heads.
    """
    del lora
    is_quantised = quantised or param_dtype == "int8"
    param_dtype = dtype if is_quantised else param_dtype
    if init_from:
        how = {"dtype": dtype, "param_dtype": param_dtype} | fields
        policy = _load_start(init_from, adapters, quantised=is_quantised, **how)
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
        if model in SMALL:
            rows = -(-num_tokens // 64) * 64
            config = dataclasses.replace(config, vocab_size=rows)
        check_heads(config.num_heads)
        check_layers(config.num_layers)
        check_experts(config.num_experts)
        policy = create(lambda: ChatGLM(config, rngs=nnx.Rngs(key)))
    check_heads(policy.config.num_heads)
    check_layers(policy.config.num_layers)
    check_experts(policy.config.num_experts)
    check_vocabulary(policy.config, num_tokens, init_from or f"preset {model!r}")
    return policy


def _load_start(folder: str, adapters: Adapters | None, **how) -> ChatGLM | ScoreModel:
    """Load a model for a stage: on the shared base, in a stage that trains adapters;
    otherwise without adapters, which are merged."""
    if adapters is None or adapters.lora is None:
        return load_whole(folder, **how)
    if _base_of(Path(folder)) is not None:
        return load_model(folder, adapters=adapters, **how)
    return adapters.load(Path(folder), **how)


def load_score_model(
    init_from: str,
    *,
    backbone: ChatGLM,
    num_tokens: int,
    key: jax.Array,
    adapters: Adapters | None = None,
) -> ScoreModel:
    """Load a reward or value model, or with "" put a new head on `backbone`, which is
    copied, but for a base under its adapters."""
    if not init_from:
        own = create(lambda b: ScoreModel(b, rngs=nnx.Rngs(key)), own_part(backbone))
        return own if backbone.config.lora is None else on_base(own, named(backbone))
    like = {name: getattr(backbone.config, name) for name in STORAGE}
    model = _load_start(init_from, adapters, **like)
    if not isinstance(model, ScoreModel):
        raise ValueError(f"{init_from} is a language model, not a reward model.")
    check_vocabulary(model.backbone.config, num_tokens, init_from)
    return model


def _load_ours(folder, which, item, overrides, adapters):
    checkpoints = Checkpoints(folder, keep=None)
    step = checkpoints.find(which)
    record = record_of(checkpoints, step, item, folder)
    config = config_of(record, overrides, folder)
    if adapters is not None and config.lora is not None:
        dtype = adapters.lora.param_dtype
        lora = dataclasses.replace(config.lora, param_dtype=dtype)
        config = dataclasses.replace(config, lora=lora)
    if config.quantised and config.lora is None:
        model = _restore_quantised(checkpoints, step, item, record, config)
    else:
        like = _shapes(record, config, folder, adapters)
        model = checkpoints.restore(step, {item: like})[item]
    checkpoints.close()
    check_finite(model, f"{folder}/checkpoints/{step}")
    logging.info("Loaded %s of %s at step %d.", item, folder, step)
    return model


def _restore_quantised(
    checkpoints: Checkpoints, step: int, item: str, record: dict, config: ChatGLMConfig
) -> ChatGLM | ScoreModel:
    """Restore a whole model, quantised layer by layer."""
    like = shapes_of(lambda: build(record, config))
    floats = dataclasses.replace(config, quantised=False)
    saved = flatten(shapes_of(lambda: build(record, floats)))
    shapes = flatten(like)
    flat: dict[str, jax.Array] = {}
    for name, array in checkpoints.arrays(step, item, saved):
        shape, scale = shapes[name], f"{name}_scale"

        def read(box, array=array):
            return array[tuple(slice(*side) for side in box)]

        if scale in shapes:
            flat[name], flat[scale] = fill_quantised(
                shape, shapes[scale], read, dtype=config.param_dtype, stacked=1
            )
            continue
        flat[name] = fill(shape.shape, shape.dtype, shape.sharding, read, stacked=0)
    return unflatten(flat, like)


def shapes(checkpoints: Checkpoints, step: int, item: str, config, adapters: Adapters):
    """Return the sharded shapes of a checkpoint's model, with the dtypes of a stage's
    config, to restore the weights into; a base under adapters is loaded."""
    workdir = checkpoints.folder.parent
    record = record_of(checkpoints, step, item, workdir)
    config = config_of(record, computation(config), workdir)
    return _shapes(record, config, workdir, adapters)


def _shapes(
    record: dict, config: ChatGLMConfig, workdir: Path, adapters: Adapters | None
):
    make = functools.partial(build, record, config)
    if config.lora is None:
        return shapes_of(make)
    how = {name: getattr(config, name) for name in STORAGE}
    load = load_model if adapters is None else adapters.load
    base = load(bases.find(record["base"], workdir), **how)
    return on_base(shapes_of(lambda: own_part(make())), named(base))


def fingerprint(folder: str) -> str:
    """Describe the checkpoint in a folder, for messages and caches."""
    if not folder:
        return "random weights"
    workdir, which = workdir_of(folder)
    if has_checkpoint(workdir):
        seed = read_json(workdir / "config.json")["config"].get("seed")
        step = Checkpoints(workdir, keep=None).find(which)
        return f"{workdir.absolute()} step {step} (seed {seed})"
    return str(Path(folder).absolute())

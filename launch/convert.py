"""Turn a checkpoint of ours into a Hugging Face folder, or the other way round.

python launch/convert.py --source=runs/ppo --target=exported [--item=value] \
    [--naming=remote] [--param_dtype=bfloat16]
python launch/convert.py --source=chatglm3-6b --target=runs/chatglm3-6b

What the source is decides the direction. The tokenizer goes along. Exports load in
transformers: `AutoModelForCausalLM.from_pretrained("exported")`, and reward models with
AutoModelForSequenceClassification, which has no bias: its scores are ours plus the
`score_offset` of config.json.
"""

import json
from pathlib import Path

import start
from absl import app, flags, logging
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


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}: flags start with --")
    source, target = Path(FLAGS.source).absolute(), Path(FLAGS.target).absolute()
    convert(
        source,
        target,
        item=FLAGS.item,
        naming=FLAGS.naming,
        param_dtype=FLAGS.param_dtype,
    )
    logging.info("%s is in %s.", source, target)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("source", None, "A workdir of ours or a Hugging Face folder.")
    flags.DEFINE_string("target", None, "The folder to make.")
    flags.DEFINE_string("item", "model", "Which model of our checkpoint to export.")
    flags.DEFINE_enum("naming", None, ["native", "remote", "v1"], "Names of tensors.")
    types = ["float32", "bfloat16", "float16"]
    flags.DEFINE_enum("param_dtype", None, types, "Type of the numbers.")
    flags.mark_flags_as_required(["source", "target"])
    start.set_up_logs()
    with start.clear_errors():
        app.run(main)

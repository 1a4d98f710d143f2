"""Convert a checkpoint of this project into a Hugging Face folder, or the reverse.

python launch/convert.py --source=runs/ppo --target=exported [--item=value] \
    [--naming=remote] [--param_dtype=bfloat16]
python launch/convert.py --source=chatglm3-6b --target=runs/chatglm3-6b

The kind of the source decides the direction. The tokenizer is converted too. Exports
load in transformers: `AutoModelForCausalLM.from_pretrained("exported")`, and reward
models with AutoModelForSequenceClassification. That class has no bias: its scores are
the scores of this project plus the `score_offset` of config.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

from absl import flags, logging

from rlhf_jax.launching import cli
from rlhf_jax.launching.convert import convert

FLAGS = flags.FLAGS


def main(arguments: list[str]) -> None:
    cli.refuse_arguments(arguments)
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
    flags.DEFINE_string(
        "source", None, "A workdir of this project or a Hugging Face folder."
    )
    flags.DEFINE_string("target", None, "The folder to create.")
    flags.DEFINE_string("item", "model", "The model of the checkpoint to export.")
    flags.DEFINE_enum(
        "naming",
        None,
        ["native", "remote", "v1"],
        "The convention for the names of tensors.",
    )
    types = ["float32", "bfloat16", "float16"]
    flags.DEFINE_enum("param_dtype", None, types, "The dtype of the weights.")
    flags.mark_flags_as_required(["source", "target"])
    cli.command(main)

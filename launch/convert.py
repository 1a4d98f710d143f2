"""Turn a checkpoint of ours into a Hugging Face folder, or the other way round.

python launch/convert.py --source=runs/ppo --target=exported [--item=value] \
    [--naming=remote] [--param_dtype=bfloat16]
python launch/convert.py --source=chatglm3-6b --target=runs/chatglm3-6b

What the source is decides the direction. The tokenizer goes along. Exports load in
transformers: `AutoModelForCausalLM.from_pretrained("exported")`, and reward models with
AutoModelForSequenceClassification, which has no bias: its scores are ours plus the
`score_offset` of config.json.
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
    flags.DEFINE_string("source", None, "A workdir of ours or a Hugging Face folder.")
    flags.DEFINE_string("target", None, "The folder to make.")
    flags.DEFINE_string("item", "model", "Which model of our checkpoint to export.")
    flags.DEFINE_enum("naming", None, ["native", "remote", "v1"], "Names of tensors.")
    types = ["float32", "bfloat16", "float16"]
    flags.DEFINE_enum("param_dtype", None, types, "Type of the numbers.")
    flags.mark_flags_as_required(["source", "target"])
    cli.command(main)

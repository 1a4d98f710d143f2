"""Convert a checkpoint into a Hugging Face folder, or the reverse; adapters too.

python launch/convert.py --from=runs/ppo --to=exported [--item=value] \
    [--naming=remote] [--param_dtype=bfloat16]
python launch/convert.py --from=chatglm3-6b --to=runs/chatglm3-6b
python launch/convert.py --from=SmolLM2-135M-Instruct.Q4_1.gguf --to=smollm2
python launch/convert.py --from=runs/lora --to=adapter --naming=peft
python launch/convert.py --from=adapter --to=runs/adapter --base=glm-4-9b-hf

The kind of the source decides the direction: a GGUF file (llama.cpp's, quantised or
not) becomes a Hugging Face folder. The tokenizer is converted too. --source and
--target are older names of --from and --to. Adapters of a run are merged into their
base; --naming=peft writes them alone, in the layout of the library PEFT, and --base
names their base in place of the recorded one (docs/lora.md). Exports
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
    source, target = (Path(FLAGS[name].value).absolute() for name in ("from", "to"))
    convert(
        source,
        target,
        item=FLAGS.item,
        naming=FLAGS.naming,
        param_dtype=FLAGS.param_dtype,
        base=Path(FLAGS.base).absolute() if FLAGS.base else None,
    )
    logging.info("%s is in %s.", source, target)


if __name__ == "__main__":
    flags.DEFINE_string(
        "from",
        None,
        "A workdir of this project, a Hugging Face folder, an adapter or a GGUF file.",
    )
    flags.DEFINE_string("to", None, "The folder to create.")
    flags.DEFINE_string("item", "model", "The model of the checkpoint to export.")
    flags.DEFINE_enum(
        "naming",
        None,
        ["native", "remote", "v1", "peft"],
        "The convention for the names of tensors; peft is for adapters alone.",
    )
    flags.DEFINE_string("base", None, "The model under an adapter in PEFT's layout.")
    types = ["float32", "bfloat16", "float16"]
    flags.DEFINE_enum("param_dtype", None, types, "The dtype of the weights.")
    flags.DEFINE_alias("source", "from")
    flags.DEFINE_alias("target", "to")
    flags.mark_flags_as_required(["from", "to"])
    cli.command(main)

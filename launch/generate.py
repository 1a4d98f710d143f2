"""Answer one prompt, or chat in the terminal, with any checkpoint.

python launch/generate.py --checkpoint=runs/ppo --prompt="What is 7 plus 5?"
python launch/generate.py --checkpoint=chatglm3-6b --chat --dtype=bfloat16

A checkpoint is a workdir of this project (or WORKDIR/checkpoints/120,
WORKDIR/checkpoints/best) or a Hugging Face folder. In a chat, Ctrl-C stops an answer,
/new starts a new conversation, and Ctrl-D ends the chat.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this script

import contextlib

import jax
from absl import app, flags, logging

from rlhf_jax.generation.sampling import sampling_with
from rlhf_jax.launching import cli
from rlhf_jax.launching.chat import HELP, Speaker, answer, chat, open_checkpoint
from rlhf_jax.training import options

FLAGS = flags.FLAGS


def to_terminal(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main(arguments: list[str]) -> None:
    cli.refuse_arguments(arguments)
    if FLAGS.chat == (FLAGS.prompt is not None):
        raise app.UsageError("give either --prompt=TEXT or --chat")
    model, tokenizer = open_checkpoint(Path(FLAGS.checkpoint), FLAGS.dtype)
    sampling = sampling_with(
        tokenizer,
        max_new_tokens=FLAGS.max_new_tokens,
        temperature=FLAGS.temperature,
        top_k=FLAGS.top_k,
        top_p=FLAGS.top_p,
    )
    model = model.for_decoding()
    speaker = Speaker(model, tokenizer, sampling, jax.random.key(FLAGS.seed))
    with jax.default_matmul_precision(options.matmul_precision(model.config)):
        speak(speaker)


def speak(speaker: Speaker) -> None:
    if FLAGS.chat:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  arrow keys in input()
        print(f"{FLAGS.checkpoint}. {HELP}")
        chat(speaker, FLAGS.system, lambda: input("\n> "), to_terminal)
    else:
        system = [{"role": "system", "content": FLAGS.system}] if FLAGS.system else []
        question = {"role": "user", "content": FLAGS.prompt}
        answer(speaker, [*system, question], 0, to_terminal)
        print()


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A workdir or a Hugging Face folder.")
    flags.DEFINE_string("prompt", None, "The question to answer.")
    flags.DEFINE_bool("chat", False, "Chat in the terminal.")
    flags.DEFINE_string("system", "", "A system message to begin with.")
    flags.DEFINE_integer("max_new_tokens", 256, "The longest answer, in tokens.")
    flags.DEFINE_float("temperature", 1.0, "Divides the logits; 0 is greedy.")
    flags.DEFINE_integer("top_k", 0, "Sample from the k likeliest tokens; 0: from all.")
    flags.DEFINE_float(
        "top_p", 1.0, "Sample from the likeliest tokens of this total probability."
    )
    flags.DEFINE_integer("seed", 0, "The same seed gives the same answers.")
    types = ["float32", "bfloat16", "float16"]
    flags.DEFINE_enum("dtype", None, types, "The dtype of weights and computation.")
    flags.mark_flag_as_required("checkpoint")
    with contextlib.suppress(KeyboardInterrupt):
        cli.command(main, verbosity=logging.WARNING)

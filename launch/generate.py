"""Answer one prompt, or chat in the terminal, with any checkpoint.

python launch/generate.py --checkpoint=runs/ppo --prompt="What is 7 plus 5?"
python launch/generate.py --checkpoint=chatglm3-6b --chat --dtype=bfloat16

A checkpoint is a workdir of ours (or WORKDIR/checkpoints/120, WORKDIR/checkpoints/best)
or a Hugging Face folder. In a chat, Ctrl-C stops an answer, /new forgets what was said,
and Ctrl-D ends.
"""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import start
from absl import app, flags, logging

from rlhf_jax.data import sources
from rlhf_jax.data.tokenizers.chat import Message, encode_prompt, stream_response
from rlhf_jax.data.tokenizers.tokenizer import Tokenizer
from rlhf_jax.generation.sampling import Sampling, sampling_with
from rlhf_jax.generation.stream import stream
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.training import weights

HELP = "Ctrl-C stops an answer, /new starts again, Ctrl-D ends."


class Speaker(NamedTuple):
    """A model with what it needs to answer."""

    model: ChatGLM
    tokenizer: Tokenizer
    sampling: Sampling
    key: jax.Array


def open_checkpoint(
    folder: Path, dtype: str | None = None
) -> tuple[ChatGLM, Tokenizer]:
    """The language model and the tokenizer of a workdir, of one of its checkpoints, or
    of a Hugging Face folder."""
    if not weights.workdir_of(folder)[0].is_dir():
        raise FileNotFoundError(f"--checkpoint: there is no folder {folder}.")
    tokenizer = sources.tokenizer_of(folder)
    model = weights.load_model(folder, dtype=dtype, param_dtype=dtype)
    if isinstance(model, ScoreModel):
        raise ValueError(f"{folder} is a reward model: it scores, it does not write.")
    weights.check_vocabulary(model.config, tokenizer.vocab_size, str(folder))
    return model, tokenizer


def answer(
    speaker: Speaker, messages: list[Message], turn: int, write: Callable[[str], None]
) -> str:
    """Write the answer to some messages as it comes; Ctrl-C ends it early."""
    prompt = encode_prompt(messages, speaker.tokenizer)
    text = ""
    with contextlib.suppress(KeyboardInterrupt):
        key = jax.random.fold_in(speaker.key, turn)
        tokens = stream(speaker.model, prompt, key, speaker.sampling)
        for piece in stream_response(tokens, speaker.tokenizer):
            write(piece)
            text += piece
    return text


def chat(
    speaker: Speaker, system: str, read: Callable[[], str], write: Callable[[str], None]
) -> None:
    """Take turns until `read` comes to its end."""
    opening = [{"role": "system", "content": system}] if system else []
    messages, turn = list(opening), 0
    while True:
        try:
            question = read().strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        if question == "/new":
            messages = list(opening)
            write("A new talk.\n")
        if question in ("", "/new"):
            continue
        asked = [*messages, {"role": "user", "content": question}]
        try:
            text = answer(speaker, asked, turn, write)
        except ValueError as error:  # most often the context is full
            write(f"{error}\n/new starts again.\n")
            continue
        write("\n")
        messages = [*asked, {"role": "assistant", "content": text}]
        turn += 1


def to_terminal(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}: flags start with --")
    if FLAGS.chat == (FLAGS.prompt is not None):
        raise app.UsageError("give either --prompt=TEXT or --chat")
    start.use_compile_cache()
    model, tokenizer = open_checkpoint(Path(FLAGS.checkpoint), FLAGS.dtype)
    sampling = sampling_with(
        tokenizer,
        max_new_tokens=FLAGS.max_new_tokens,
        temperature=FLAGS.temperature,
        top_k=FLAGS.top_k,
        top_p=FLAGS.top_p,
    )
    speaker = Speaker(model, tokenizer, sampling, jax.random.key(FLAGS.seed))
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
    FLAGS = flags.FLAGS
    flags.DEFINE_string("checkpoint", None, "A workdir or a Hugging Face folder.")
    flags.DEFINE_string("prompt", None, "The question to answer.")
    flags.DEFINE_bool("chat", False, "Take turns in the terminal.")
    flags.DEFINE_string("system", "", "A system message to begin with.")
    flags.DEFINE_integer("max_new_tokens", 256, "Where an answer is cut.")
    flags.DEFINE_float("temperature", 1.0, "Divides the logits; 0 is greedy.")
    flags.DEFINE_integer("top_k", 0, "Sample of the k likeliest tokens; 0: of all.")
    flags.DEFINE_float("top_p", 1.0, "Sample of the likeliest that reach this sum.")
    flags.DEFINE_integer("seed", 0, "The same seed gives the same answers.")
    types = ["float32", "bfloat16", "float16"]
    flags.DEFINE_enum("dtype", None, types, "Of weights and computation.")
    flags.mark_flag_as_required("checkpoint")
    start.set_up_logs()
    logging.set_verbosity(logging.WARNING)
    with start.clear_errors(), contextlib.suppress(KeyboardInterrupt):
        app.run(main)

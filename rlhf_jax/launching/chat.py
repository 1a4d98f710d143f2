"""Answers of a checkpoint in the terminal, to one prompt or in a chat."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from rlhf_jax.data import sources
from rlhf_jax.data.tokenizers.chat import Message, encode_prompt, stream_response
from rlhf_jax.data.tokenizers.tokenizer import Tokenizer
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.generation.stream import stream
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.training import model_checks, weights

HELP = "Ctrl-C stops an answer, /new starts again, Ctrl-D ends."


class Speaker(NamedTuple):
    """A model with its tokenizer and the options of sampling."""

    model: ChatGLM
    tokenizer: Tokenizer
    sampling: Sampling
    key: jax.Array


def open_checkpoint(
    folder: Path, dtype: str | None = None
) -> tuple[ChatGLM, Tokenizer]:
    """Load the language model and the tokenizer of a workdir, of one of its
    checkpoints, or of a Hugging Face folder."""
    if not weights.workdir_of(folder)[0].is_dir():
        raise FileNotFoundError(f"--checkpoint: there is no folder {folder}.")
    tokenizer = sources.tokenizer_of(folder)
    model_checks.check_models(
        tokenizer,
        sources.tokenizer_fingerprint,
        policies=[str(folder)],
    )
    model = weights.load_model(folder, dtype=dtype, param_dtype=dtype)
    return model, tokenizer


def answer(
    speaker: Speaker, messages: list[Message], turn: int, write: Callable[[str], None]
) -> str:
    """Write the answer to some messages as it is generated; Ctrl-C ends the answer."""
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
    """Chat until `read` raises EOFError."""
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
        with_question = [*messages, {"role": "user", "content": question}]
        try:
            text = answer(speaker, with_question, turn, write)
        except ValueError as error:  # most often the context is full
            write(f"{error}\n/new starts again.\n")
            continue
        write("\n")
        messages = [*with_question, {"role": "assistant", "content": text}]
        turn += 1

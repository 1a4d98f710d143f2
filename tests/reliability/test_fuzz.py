"""Any text on the command line and any bytes in a file: a value, or an error that
the command line turns into one line; never another exception from somewhere below.

Records and published layouts are in tests/data, in the same way.
"""

import base64
import copy
import json
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import config_flags
from safetensors import safe_open
from sentencepiece import sentencepiece_model_pb2

from configs import sft
from rlhf_jax.data.reading.data_sets import write_data_folder
from rlhf_jax.data.tokenizers.chat import encode_prompt
from rlhf_jax.data.tokenizers.tokenizer import load_tokenizer, train_tokenizer
from rlhf_jax.launching import cli
from rlhf_jax.models import huggingface
from rlhf_jax.parallel.mesh import complete
from rlhf_jax.training import cache, checksums, options, suspects
from rlhf_jax.training.workdir import open_workdir, read_summary
from tests.models.families import FAMILIES, random_model

ROOT = Path(__file__).parents[2]

CLEAR = (*cli.USER_ERRORS, flags.Error)
SFT = f"{ROOT}/configs/sft.py:tiny"

FEW = 30
few_or_many = pytest.mark.parametrize(
    "examples",
    [FEW, pytest.param(3000, marks=pytest.mark.slow)],  # others every time
)


# --- The command line ---

KEYS = [key.removeprefix("c.") for key, _ in options.leaves(sft.get_config(), "c")]
TEXTS = ["", "-1", "1", "1.5", "nan", "inf", "1e999", "9" * 5000, "None", "true", "()"]
TEXTS += ["(1,1,1)", "(1,", "(1,'a',2)", "(0.5,2,8)", "[1]", "{}", "'", "1 2", "(" * 99]
overrides = st.tuples(
    st.sampled_from(["--config.", "-config.", "--noconfig."]),
    st.sampled_from(["mesh", "data"]) | st.sampled_from(KEYS) | st.text(max_size=6),
    st.sampled_from(["", "=", " "]),
    st.sampled_from(TEXTS) | st.text(max_size=6),
)


commands = st.tuples(
    st.sampled_from(["--config={}", "--config {}", "-config={}"]),
    st.lists(overrides, max_size=3),
)


@few_or_many
def test_any_override_is_a_config_or_a_clear_error(examples):
    @settings(max_examples=examples, deadline=None, derandomize=examples == FEW)
    @given(commands)
    def check(command):
        config, rest = command
        argv = ["train.py", *config.format(SFT).split()]
        for dashes, key, between, value in rest:
            argv += f"{dashes}{key}{between}{value}".split(" ", 1)
        values = flags.FlagValues()
        found = config_flags.DEFINE_config_file(
            "config", flag_values=values, sys_argv=argv
        )
        try:
            cli.check_config_flags(argv)
            values(argv)
            options.check(found.value)
            complete(found.value.mesh, 8)
        except CLEAR as error:
            assert str(error)

    check()


# --- Files ---


def write_tokenizer(folder: Path) -> None:
    train_tokenizer(["a few words"], 270, folder)


def write_chat(folder: Path) -> None:
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')


def speak(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    encode_prompt([{"role": "user", "content": "a [MASK]"}], tokenizer)


def write_ranks(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    lines = [f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256)]
    (folder / "tokenizer.model").write_text("\n".join(lines))


def write_pieces(folder: Path) -> None:
    proto = sentencepiece_model_pb2.ModelProto()
    for piece, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3), ("a", 1), ("▁", 1)):
        proto.pieces.add(piece=piece, score=-1.0, type=kind)
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    settings = {"tokenizer_class": "ChatGLMTokenizer", "chat_format": "chatglm3"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_published(folder: Path) -> None:
    huggingface.save(random_model(FAMILIES["v2"]), folder, naming="remote")


def write_native(folder: Path) -> None:
    huggingface.save(random_model(FAMILIES["glm4"]), folder)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | {"rope_parameters": rope}
    path.write_text(json.dumps(fields | {"rope_scaling": {"type": "default"}}))


def write_shards(folder: Path) -> None:
    write_published(folder)
    path = folder / "model.safetensors"
    with safe_open(path, framework="numpy") as file:
        index = {"weight_map": dict.fromkeys(file.keys(), "a.safetensors")}
    path.rename(folder / "a.safetensors")
    (folder / huggingface.INDEX).write_text(json.dumps(index))


def write_workdir(folder: Path) -> None:
    record = {"config": json.loads(sft.get_config().to_json_best_effort())}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "summary.json").write_text('{"eval/loss": 1.5, "counts": {"a": [1]}}')
    (folder / checksums.FILE).write_text('{"model/a": "0" }')
    suspects.save_batch(folder, 1, {"batch": np.arange(6.0)}, "loss nan")
    read_cache(folder)


def read_cache(folder: Path) -> None:
    """Whatever the file holds, the values are right."""
    values = np.arange(6, dtype=np.float32)
    path, made_from = folder / "cache.npz", {"a": "b"}
    found = cache.cached(path, made_from, lambda: values, shape=values.shape)
    np.testing.assert_array_equal(found, values)


def published(folder: Path):
    return huggingface.load(folder, dtype="float32", param_dtype="float32")


def write_own(folder: Path) -> None:
    """The same two pairs as a list, as lines, and as a table."""
    pairs = [{"prompt": f"{n}?", "chosen": "a", "rejected": "b"} for n in range(2)]
    lines = [json.dumps(pair) + "\n" for pair in pairs]
    (folder / "own.json").write_text(json.dumps(pairs, indent=1))
    (folder / "own.jsonl").write_text("".join(lines))
    rows = [pairs[0], *(pair.values() for pair in pairs)]
    (folder / "own.csv").write_text("".join(",".join(row) + "\n" for row in rows))


def own(name: str):
    """A reader of the file: what `data.path` makes of it."""
    return lambda folder: write_data_folder(str(folder / name), folder / "data")


FILES = {  # what is spoiled: who writes it among others, and who reads it
    "tokenizer.json": (write_tokenizer, load_tokenizer),
    "tokenizer_config.json": (write_tokenizer, load_tokenizer),
    "generation_config.json": (write_chat, load_tokenizer),
    "chat_template.jinja": (write_chat, speak),
    "tokenizer.model": (write_ranks, load_tokenizer),
    "./tokenizer.model": (write_pieces, speak),
    "./tokenizer_config.json": (write_pieces, speak),
    "config.json": (write_published, published),
    ".//config.json": (write_native, published),
    huggingface.INDEX: (write_shards, published),
    "model.safetensors": (write_published, published),
    "./config.json": (write_workdir, lambda f: open_workdir(f, sft.get_config())),
    "summary.json": (write_workdir, read_summary),
    "own.json": (write_own, own("own.json")),
    "own.jsonl": (write_own, own("own.jsonl")),
    "own.csv": (write_own, own("own.csv")),
    checksums.FILE: (write_workdir, checksums.damage),
    "suspects/step_000001.npz": (
        write_workdir,
        lambda f: suspects.load_batch(f / "suspects/step_000001.npz"),
    ),
    "cache.npz": (
        write_workdir,
        read_cache,
    ),
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner),
    max_leaves=3,
)


@st.composite
def spoiled(draw, good: bytes) -> bytes:
    """Other bytes in some place, or other values in a JSON file or its first line."""
    if good[:2] in (b'{"', b"{\n") and draw(st.booleans()):
        first, begins, others = good.partition(b"\n{")  # of a file of JSON lines
        tree = copy.deepcopy(json.loads(first))
        node = tree
        while True:
            key = draw(st.sampled_from(sorted(node)))
            if not isinstance(node[key], dict) or not node[key] or draw(st.booleans()):
                break
            node = node[key]
        node[key] = draw(json_values)
        return json.dumps(tree).encode() + begins + others
    begin = draw(st.integers(0, min(len(good), 2000)) | st.just(len(good) // 2))
    end = begin + draw(st.sampled_from([0, 1, 8, len(good)]))
    return good[:begin] + draw(st.binary(max_size=12)) + good[end:]


@few_or_many
@pytest.mark.parametrize("name", FILES)
def test_any_file_is_read_or_refused_in_plain_words(name, examples, tmp_path):
    write, read = FILES[name]
    write(tmp_path)
    path = tmp_path / name
    good = path.read_bytes()
    read(tmp_path)

    @settings(max_examples=examples, deadline=None, derandomize=examples == FEW)
    @given(spoiled(good))
    def check(content):
        path.write_bytes(content)
        try:
            read(tmp_path)
        except CLEAR as error:
            assert str(error)

    check()

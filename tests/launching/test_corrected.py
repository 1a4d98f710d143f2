"""A mistake, then the corrected command in the same folder: it is taken.

Every row makes one stage fail, as late as that mistake shows; the stage that was put
right then gets past the opening of its folder.
"""

import importlib
import json
import shutil

import jax
import pytest
from flax import nnx

from rlhf_jax.data.tokenizers.tokenizer import load_tokenizer, train_tokenizer
from rlhf_jax.models import huggingface
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.mesh import make_mesh

POLICY, REWARD, DATA = "POLICY", "REWARD", "DATA"  # folders of the fixture `given`

STAGES = {  # configs that work
    "sft": {"model": "micro"},
    "reward": {"model": "micro"},
    "ppo": {"init_from": POLICY, "reward_model": REWARD},
    "dpo": {"init_from": POLICY},
    "pairs": {"init_from": POLICY, "reward_model": REWARD},
    "collect": {"init_from": POLICY},
    "select_prompts": {"init_from": POLICY, "reward_model": REWARD},
    "evaluate": {"models": f"sft={POLICY},ppo={POLICY}", "judge": "reward_model"}
    | {"reward_model": REWARD},
    "evaluate_reward": {"reward_model": REWARD},
    "best_of_n": {"policy": POLICY, "reward_model": REWARD},
    "compare_baselines": {"policy": POLICY, "reward_model": REWARD},
    "alignbench": {"policy": POLICY, "questions": f"{DATA}/questions.jsonl"}
    | {"judge": "none"},
    "prepare_comparisons": {"comparisons": f"{DATA}/comparisons.jsonl"},
    "prepare_prompts": {"prompts": f"{DATA}/prompts.jsonl", "scorer": "none"},
}
NOWHERE = "nowhere"
MISTAKES = [  # stage, the keys that are wrong
    ("sft", {"data.path": NOWHERE}),
    ("sft", {"data.path": ""}),
    ("sft", {"data.path": f"{DATA}/set", "data.layout": "dialogs"}),
    ("sft", {"data.path": f"{DATA}/prompts.jsonl", "data.test_split": "train"}),
    ("sft", {"data.tokenizer": NOWHERE}),
    ("sft", {"init_from": NOWHERE}),
    ("sft", {"init_from": REWARD}),
    ("sft", {"model": "gpt2"}),
    ("sft", {"optimizer.name": "adam"}),
    ("sft", {"attention": "flash"}),
    ("sft", {"attention": "splash"}),
    ("sft", {"remat": "yes"}),
    ("sft", {"max_tokens": 3}),
    ("sft", {"data.path": "testbed", "data.vocab_size": 100}),
    ("sft", {"data.path": "testbed", "data.testbed.textbook_share": 0.9}),
    ("sft", {"data.path": "testbed", "data.annotators.careless_share": 0.99}),
    ("sft", {"batch_size": 3}),
    ("sft", {"epochs": 0}),
    ("reward", {"init_from": NOWHERE}),
    ("reward", {"comparisons": NOWHERE}),
    ("reward", {"comparisons": DATA}),
    ("reward", {"comparisons": f"{DATA}/prompts.jsonl"}),
    ("reward", {"comparisons_test": NOWHERE}),
    ("reward", {"max_prompt_tokens": 2}),
    ("reward", {"validation_share": 0.99}),
    ("ppo", {"init_from": NOWHERE}),
    ("ppo", {"init_from": REWARD}),
    ("ppo", {"reward_model": NOWHERE}),
    ("ppo", {"reward_model": POLICY}),
    ("ppo", {"reference": NOWHERE}),
    ("ppo", {"reference": REWARD}),
    ("ppo", {"prompts": NOWHERE}),
    ("ppo", {"prompts": DATA}),
    ("ppo", {"prompts": f"{DATA}/sft.jsonl"}),
    ("ppo", {"eval_prompts": NOWHERE}),
    ("ppo", {"max_prompt_tokens": 2}),
    ("ppo", {"advantage": "grpo"}),
    ("dpo", {"init_from": REWARD}),
    ("dpo", {"reference_from": NOWHERE}),
    ("dpo", {"reference_from": REWARD}),
    ("dpo", {"pairs": NOWHERE}),
    ("dpo", {"pairs": DATA}),
    ("dpo", {"pairs": f"{DATA}/sft.jsonl"}),
    ("dpo", {"eval_prompts": NOWHERE}),
    ("dpo", {"max_response_tokens": 1}),
    ("dpo", {"loss": "ppo"}),
    ("pairs", {"reward_model": NOWHERE}),
    ("pairs", {"reward_model": POLICY}),
    ("pairs", {"init_from": REWARD}),
    ("pairs", {"prompts": NOWHERE}),
    ("pairs", {"rule": "best"}),
    ("collect", {"init_from": NOWHERE}),
    ("collect", {"annotator": "human"}),
    ("collect", {"prompts": NOWHERE}),
    ("collect", {"annotator": "people", "known_comparisons": NOWHERE}),
    ("collect", {"annotator": "people", "known_comparisons": ""}),
    ("select_prompts", {"reward_model": POLICY}),
    ("select_prompts", {"prompts": NOWHERE}),
    ("evaluate", {"models": f"sft={POLICY},ppo={NOWHERE}"}),
    ("evaluate", {"models": f"sft={POLICY},rm={REWARD}"}),
    ("evaluate", {"models": POLICY}),
    ("evaluate", {"reward_model": POLICY}),
    ("evaluate", {"prompts": NOWHERE}),
    ("evaluate", {"judge": "testbed"}),
    ("evaluate", {"judge": "marks"}),
    ("evaluate", {"judge": "marks", "service.model": "m", "service.max_retries": 0}),
    (
        "evaluate",
        {"judge": "pairs", "service.model": "m", "service.api_key_variable": "NO_SUCH"},
    ),
    ("evaluate_reward", {"reward_model": POLICY}),
    ("evaluate_reward", {"comparisons": NOWHERE}),
    ("best_of_n", {"policy": REWARD}),
    ("best_of_n", {"reward_model": POLICY}),
    ("best_of_n", {"prompts": NOWHERE}),
    ("compare_baselines", {"policy": REWARD}),
    ("compare_baselines", {"prompts": NOWHERE}),
    ("alignbench", {"policy": REWARD}),
    ("alignbench", {"policy": NOWHERE}),
    ("alignbench", {"questions": NOWHERE}),
    ("alignbench", {"judge": "marks"}),
    ("prepare_comparisons", {"comparisons": NOWHERE}),
    ("prepare_comparisons", {"comparisons": f"{DATA}/prompts.jsonl"}),
    ("prepare_comparisons", {"tokenizer": NOWHERE}),
    ("prepare_prompts", {"prompts": NOWHERE}),
    ("prepare_prompts", {"scorer": "llm"}),
    ("prepare_prompts", {"scorer": "heads"}),
    ("prepare_prompts", {"scorer": "judge"}),
]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Names of the table -> folders: a policy, a reward model, and data."""
    root = tmp_path_factory.mktemp("given")
    data = root / "data"
    data.mkdir()
    rows = {
        "sft": [],
        "sft_test": [],
        "prompts": [],
        "eval_prompts": [],
        "comparison_prompts": [],
        "comparisons": [],
        "comparisons_test": [],
    }
    for n in range(24):
        prompt = {"id": f"p{n}", "messages": [{"role": "user", "content": f"{n} + 2?"}]}
        answer = {"role": "assistant", "content": f"{n + 2}"}
        pair = {"response_a": f"{n + 2}", "response_b": "no", "preference": "a"}
        for name in rows:
            if name.startswith("sft"):
                rows[name].append({"messages": [*prompt["messages"], answer]})
            elif "prompts" in name:
                rows[name].append(prompt)
            else:
                rows[name].append({"prompt": prompt, "annotator": f"a{n % 2}"} | pair)
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (data / f"{name}.jsonl").write_text(text)
    question = {
        "question_id": 1,
        "category": "文本写作",
        "subcategory": "",
        "question": "?",
        "reference": "!",
    }
    (data / "questions.jsonl").write_text(json.dumps(question, ensure_ascii=False))
    (data / "set").mkdir()
    row = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n"
    for split in ("train", "test"):
        (data / "set" / f"{split}.jsonl").write_text(row)
    train_tokenizer(["2 + 2? 4 5 no yes"] * 9, 300, data / "tokenizer")
    size = load_tokenizer(data / "tokenizer").vocab_size
    config = preset("micro", dtype="float32", param_dtype="float32", vocab_size=320)
    assert size <= config.vocab_size
    policy = ChatGLM(config, rngs=nnx.Rngs(0))
    folders = {DATA: data, POLICY: root / "policy", REWARD: root / "reward"}
    huggingface.save(policy, folders[POLICY])
    huggingface.save(ScoreModel(policy, rngs=nnx.Rngs(1)), folders[REWARD])
    for name in (POLICY, REWARD):
        shutil.copytree(data / "tokenizer", folders[name], dirs_exist_ok=True)
    return folders


def config_of(stage: str, fields: dict, given: dict):
    config = importlib.import_module(f"configs.{stage}").get_config()
    if "data" in config:
        config.data.path = DATA
    config.update_from_flattened_dict(STAGES[stage] | fields)
    for path, value in flat(config):
        if isinstance(value, str):
            for name, folder in given.items():
                value = value.replace(name, str(folder))
            config.update_from_flattened_dict({path: value})
    return config


def flat(config, path=""):
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


class PastTheOpening(Exception):
    """The folder was taken up."""


def start(config, workdir) -> None:
    """Run a stage as its command does, but for the checks before it."""
    module = importlib.import_module(f"rlhf_jax.stages.{config.stage}")
    if "mesh" not in config:
        module.run(config, str(workdir))
        return
    with jax.set_mesh(make_mesh(config.mesh)):
        module.run(config, str(workdir))


def begins(config, workdir, monkeypatch) -> bool:
    """Return True if a stage gets past the opening of its folder."""
    module = importlib.import_module(f"rlhf_jax.stages.{config.stage}")
    real = module.open_workdir

    def open_workdir(*args, **more):
        real(*args, **more)
        raise PastTheOpening

    with monkeypatch.context() as patch:
        patch.setattr(module, "open_workdir", open_workdir)
        with pytest.raises(PastTheOpening):
            start(config, workdir)
    return True


def ids(row) -> str:
    return row if isinstance(row, str) else ",".join(f"{k}={x}" for k, x in row.items())


@pytest.mark.parametrize(("stage", "fields"), MISTAKES, ids=ids)
def test_the_corrected_command_is_taken(stage, fields, given, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    with pytest.raises((ValueError, OSError)) as error:
        start(config_of(stage, fields, given), workdir)
    assert not isinstance(error.value, UnicodeError | json.JSONDecodeError)
    assert "\n" not in str(error.value).partition(":\n  ")[0]
    assert begins(config_of(stage, {}, given), workdir, monkeypatch)
    recorded = json.loads((workdir / "config.json").read_text())["config"]
    expected = json.loads(config_of(stage, {}, given).to_json_best_effort())
    assert recorded == expected


READERS = [x for x in STAGES if x not in ("prepare_comparisons", "best_of_n")]


@pytest.mark.parametrize("stage", READERS)
def test_a_run_does_not_go_on_with_changed_data(stage, given, tmp_path, monkeypatch):
    """Every file that a stage reads is known when it goes on."""
    own = given | {DATA: shutil.copytree(given[DATA], tmp_path / "data")}
    module = importlib.import_module(f"rlhf_jax.stages.{stage}")
    real, workdir = module.agree, tmp_path / "run"

    def agree(*args, **more):
        real(*args, **more)
        raise PastTheOpening

    monkeypatch.setattr(module, "agree", agree)
    config = config_of(stage, {"judge": "none"} if stage == "alignbench" else {}, own)
    with pytest.raises(PastTheOpening):
        start(config, workdir)
    (workdir / "metrics.jsonl").write_text('{"step": 1}\n')  # it has begun
    with pytest.raises(PastTheOpening):
        start(config, workdir)
    read = json.loads((workdir / "inputs.json").read_text())["files"]
    assert read
    for name in read:
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text + "\n")
        with pytest.raises(ValueError, match="have changed since: .*" + name):
            start(config, workdir)
        (tmp_path / name).write_text(text)
    with pytest.raises(PastTheOpening):
        start(config, workdir)

"""The whole command on a model of a few thousand weights, and its statistics on numbers
made by hand."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import human_policies, human_policies_measures
from benchmarks.human_policies import (
    ARMS,
    get_config,
    results_so_far,
    run,
    stage_configs,
)
from benchmarks.human_policies_measures import (
    ITEMS,
    is_json,
    margins,
    names_itself,
    pieces,
    summed_logprobs,
)
from benchmarks.human_policies_report import (
    PREDICTIONS,
    compare,
    contrasts_of,
    nearest_in_kl,
    page,
    policy,
    summarise,
)
from rlhf_jax.data.records import Comparison, Dialogue, Prompt, read_records
from rlhf_jax.data.tokenizers.tokenizer import train_tokenizer
from rlhf_jax.files import read_json
from rlhf_jax.models import huggingface
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.training import weights

RUN = ["rloo-plain-sft", "dpo-balanced"]


def hh(i):
    start = f"\n\nHuman: Question {i}?\n\nAssistant: "
    pair = ("a kind answer" + " word" * (i % 4), "rude words" + " word" * (i % 3))
    return dict(
        zip(("chosen", "rejected"), (start + text for text in pair), strict=True)
    )


def write_rows(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, first, count in (("train", 0, 48), ("test", 100, 12)):
        rows = [hh(i) for i in range(first, first + count)]
        write_rows(folder / "hh_rlhf_helpful" / f"{split}.jsonl", rows)
    for stem in ("seed_tasks", "user_oriented_instructions"):
        rows = [
            {"instruction": f"Do {i}", "instances": [{"input": "", "output": "Done"}]}
            for i in range(8)
        ]
        write_rows(folder / "self_instruct_human" / f"{stem}.jsonl", rows)
    (folder / "text").mkdir()
    (folder / "text" / "tiny_shakespeare.txt").write_text("To be or not to be. " * 20)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = preset("micro", vocab_size=320)
    huggingface.save(jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))(), folder)
    train_tokenizer(["a kind answer", "rude words", "Question 1?"], 300, folder)
    return folder


@pytest.fixture(scope="module")
def config(data, model):
    c = get_config()
    c.init_from, c.data.path = str(model), str(data / "hh_rlhf_helpful")
    c.sft.max_response_tokens = 64
    c.measure.update(prompts=6, max_response_tokens=12, batch_size=8, text_pieces=4)
    c.measure.update(max_prompt_tokens=256)
    for stage in (c.reward, c.ppo, c.pairs, c.dpo):
        for key, x in {
            "batch_size": 8,
            "max_response_tokens": 12,
            "max_prompt_tokens": 256,
            "max_prompts": 8,
            "num_responses": 2,
            "samples_per_prompt": 2,
            "total_steps": 2,
            "epochs": 2,
            "minibatches": 1,
            "microbatches": 1,
            "sft_batch_size": 8,
            "num_samples": 0,
        }.items():
            if key in stage:
                stage[key] = x
        if "optimizer" in stage:
            stage.optimizer.trainable = r"blocks\.1\.|final_norm|head"
            stage.optimizer.update(learning_rate=1e-2, warmup_steps=0)
    c.ppo.save_every, c.dpo.save_every = 1, 1
    c.reward.max_response_tokens, c.reward.validation_share = 64, 0.2
    return c


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """The folder of a run that was killed at its third measurement and went on, and
    what was in it when it was killed."""
    folder = tmp_path_factory.mktemp("run") / "main"
    arms = [ARMS[name] for name in RUN]
    measured, whole = [], human_policies_measures.measure

    def killed(*args):
        measured.append(args)
        if len(measured) == 3:
            raise Killed
        return whole(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(human_policies_measures, "measure", killed)
        with pytest.raises(Killed):
            run(config, folder, arms)
        files = [*folder.glob("*/summary.json"), *folder.glob("measured/*")]
        files += [folder / "second_judge.npz", folder / "arms" / "sft.jsonl"]
        before = {file: file.stat().st_mtime_ns for file in files}
        run(config, folder, arms)
    assert len(measured) == 3 + 2  # two were done, and the third was begun again
    return folder, before


def test_a_run_that_was_killed_goes_on_with_what_it_lacks(done):
    folder, before = done
    assert len(before) == 8 + 2 * 2 + 2  # stages, measurements, second judge, SFT data
    for file, time in before.items():
        assert file.stat().st_mtime_ns == time, file
    steps = {name: list(steps) for name, steps in results_so_far(folder).items()}
    assert steps == {
        "instruct": [0],
        "rloo-plain-sft": [2],  # with the term, at its end alone
        "dpo-balanced": [1, 2],
    }


def test_proxies_and_judge_learn_from_other_conversations(done):
    folder, _ = done
    first, bias = {}, {}
    for name in ("judge", "proxy_plain", "proxy_balanced"):
        record = json.loads((folder / name / "config.json").read_text())["config"]
        records = read_records(record["comparisons"], Comparison)
        first[name] = {c.prompt.messages[0]["content"] for c in records}
        lengths = [[len(x.split()) for x in (c.chosen, c.rejected)] for c in records]
        bias[name] = np.sign(np.subtract(*np.array(lengths).T)).mean()
    assert not first["judge"] & first["proxy_plain"]
    assert first["proxy_balanced"] < first["proxy_plain"]
    assert bias["proxy_balanced"] < min(bias["proxy_plain"], bias["judge"]) - 0.1
    prompts = read_records(folder / "arms" / "prompts.jsonl", Prompt)
    assert {p.messages[0]["content"] for p in prompts} == first["proxy_plain"]


def test_arms_differ_in_proxy_and_term_alone(config):
    folder = Path("run")
    stages = stage_configs(config, folder, list(ARMS.values()))
    stages = {name: stage.to_dict() for name, stage in stages.items()}
    assert len(ARMS) == 8 and set(ARMS) < set(stages)

    def differing(a, b):
        return {key for key in stages[a] if stages[a][key] != stages[b][key]}

    for algorithm, scored_by in (("rloo", "reward_model"), ("dpo", "pairs")):
        plain, balanced = f"{algorithm}-plain", f"{algorithm}-balanced"
        assert differing(plain, f"{plain}-sft") == {"beta_sft"}
        assert differing(plain, balanced) == {scored_by}
        assert stages[plain]["beta_sft"] == 0 < stages[f"{plain}-sft"]["beta_sft"]
    assert stages["rloo-plain"]["reward_model"] == str(folder / "proxy_plain")
    assert stages["pairs_plain"]["reward_model"] == str(folder / "proxy_plain")
    assert differing("pairs_plain", "pairs_balanced") == {"reward_model"}
    assert differing("judge", "proxy_plain") == {"comparisons"}


def test_the_term_learns_the_instruct_models_own_answers(done):
    own = read_records(done[0] / "arms" / "sft.jsonl", Dialogue)
    people = read_records(done[0] / "arms" / "sft_test.jsonl", Dialogue)
    assert {d.messages[1]["content"] for d in people} == {"Done"}
    assert all(d.messages[1]["content"] != "Done" for d in own)


def test_policies_move_and_are_measured_against_the_instruct_model(done, model):
    measured = results_so_far(done[0])
    start = measured["instruct"][0]
    np.testing.assert_allclose(start["kl"], 0.0, atol=1e-3)
    for name in RUN:
        values = policy(name, measured)
        assert set(values) == set(start)
        assert np.abs(values["kl"]).max() > 0.01, name
        assert (values["facts"] != start["facts"]).mean() > 0.9, name
    assert [len(start[x]) for x in ("judge", "text", "facts")] == [6, 4, 200]
    assert [len(start[x]) for x in ("name", "named", "json")] == [20, 20, 50]


def test_log_probabilities_are_those_of_the_counted_tokens(model):
    whole = weights.load_model(model, dtype="float32")
    examples = [([5, 6, 7, 8], [False, False, True, True]), ([9, 4], [False, True])]
    sums = summed_logprobs(whole, examples, pad_id=0, batch_size=3)
    for (ids, counted), value in zip(examples, sums, strict=True):
        logits = jax.nn.log_softmax(whole(jnp.array([ids]))[0])
        expected = sum(logits[i - 1, ids[i]] for i in np.flatnonzero(counted))
        np.testing.assert_allclose(value, expected, atol=1e-4)


def command(data, model, workdir, *more):
    main = ["--data", data, "--model", model, "--workdir", workdir, *more]
    human_policies.main([str(x) for x in main])


def test_the_report_is_written_of_what_is_there(done, data, model, tmp_path):
    command(data, model, done[0], "--report", "--results", tmp_path)
    assert (tmp_path / "human_policies.png").stat().st_size > 10_000
    text = (tmp_path / "human_policies.md").read_text()
    found = json.loads((tmp_path / "human_policies.json").read_text())
    assert set(found["judges"]) == {"plain", "balanced", "judge", "second"}
    assert len(found["policies"]) == 4
    assert text.count("- dpo-balanced (judge") == 4 and "Question 1" in text


def without(folder, name, tmp_path):
    shutil.copytree(folder, tmp_path / "less")
    shutil.rmtree(tmp_path / "less" / name)
    return tmp_path / "less"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("folder", "There is no folder"),
        ("hh_rlhf_helpful", "has no set hh_rlhf_helpful"),
        ("self_instruct_human", "has no file self_instruct_human/seed_tasks"),
        ("text", "has no file text/tiny_shakespeare"),
        ("arm", "invalid choice: 'best'"),
        ("model", "There is no folder"),
        ("template", "has no chat template"),
        ("settings", "was made with"),
    ],
)
def test_bad_input_is_refused_in_a_line(
    wrong, message, done, data, model, tmp_path, capsys
):
    more, workdir = [], tmp_path / "run"
    if wrong == "folder":
        data = tmp_path / "nowhere"
    elif wrong in ("hh_rlhf_helpful", "self_instruct_human", "text"):
        data = without(data, wrong, tmp_path)
    elif wrong == "arm":
        more = ["--arms", "best"]
    elif wrong == "model":
        model = tmp_path / "nowhere"
    elif wrong == "template":
        model = shutil.copytree(model, tmp_path / "model")
        for file in model.glob("*.json"):
            file.write_text(file.read_text().replace("<|user|>", "<|other|>"))
    elif wrong == "settings":
        workdir, more = done[0], ["--size", "gpu"]
    with pytest.raises(SystemExit) as end:
        command(data, model, workdir, *more)
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert workdir == done[0] or not workdir.exists()


def numbers(**changed):
    """The numbers of a policy on four prompts and items."""
    names = ("judge", "second", "plain", "balanced", "tokens", "ended", "kl", "text")
    names += ("people", "facts", "name", "named", "json")
    return {name: np.zeros(4, np.float32) for name in names} | {
        name: np.asarray(x, np.float32) for name, x in changed.items()
    }


def test_the_margin_is_of_the_right_end_over_the_likeliest_wrong_one():
    logprobs = np.array([-1, -3, -2.5, -4, -5, -1, -7, -2], np.float32)
    assert margins(logprobs).tolist() == [1.5, -4.0]


def test_a_judges_verdict_is_a_tie_below_a_tenth():
    ours = numbers(judge=[1.0, 0.05, -1.0, 0.5])
    assert compare(ours, numbers(), "judge")["value"] == pytest.approx((2 - 1) / 4)


def test_differences_are_paired_and_of_the_policys_own_proxy():
    ours = numbers(plain=[11, 21, 31, 41], balanced=[4, 4, 4, 4], tokens=[1, 2, 3, 6])
    theirs = numbers(plain=[10, 20, 30, 40])
    paired = compare(ours, theirs, "proxy", proxy="plain")
    assert paired == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert compare(ours, theirs, "proxy", proxy="balanced")["value"] == 4.0
    tokens = compare(ours, theirs, "tokens")
    assert tokens["value"] == 3.0 and tokens["low"] < 3.0 < tokens["high"]


def test_at_equal_length_what_was_won_by_length_alone_is_not_won():
    longer = np.array([8.0, -8.0] * 40)
    ours = numbers(judge=np.sign(longer), tokens=longer)
    ours = {name: np.resize(x, 80) for name, x in ours.items()}
    theirs = {name: np.zeros(80) for name in ours}
    ours["judge"][:20] = 1.0
    won = compare(ours, theirs, "judge")["value"]
    even = compare(ours, theirs, "judge at equal length")["value"]
    assert won == 0.25 and even > 0.6  # short answers win too, and length explains some


@pytest.fixture
def measured():
    return {
        "instruct": {0: numbers()},
        "rloo-plain": {
            step: numbers(kl=[kl] * 4, plain=[step] * 4, facts=[-step] * 4)
            for step, kl in ((1, 0.5), (2, 2.2), (3, 9.0))
        },
        "rloo-plain-sft": {3: numbers(kl=[2.0] * 4, facts=[-1] * 4)},
        "rloo-balanced": {3: numbers(tokens=[-5] * 4)},
    }


def test_the_step_at_equal_kl_is_the_nearest(measured):
    steps = measured["rloo-plain"]
    assert nearest_in_kl(steps, 2.0) == 2
    assert policy("rloo-plain@equal KL", measured) is steps[2]
    assert policy("rloo-plain@first", measured) is steps[1]
    assert policy("rloo-plain", measured) is steps[3]
    assert policy("rloo-balanced@equal KL", measured) is None
    assert policy("dpo-plain", measured) is None


def test_policies_are_compared_by_proxy_by_term_and_along_the_run(measured):
    assert contrasts_of(measured) == [
        ("rloo-balanced", "rloo-plain"),
        ("rloo-plain", "rloo-plain@first"),
        ("rloo-plain-sft", "rloo-plain"),
        ("rloo-plain-sft", "rloo-plain@equal KL"),
    ]


def test_predictions_are_held_against_what_was_measured(measured):
    found = summarise(measured, {})
    verdicts = {row["text"]: row for row in found["predictions"]}
    assert len(verdicts) == len(PREDICTIONS)
    longer = next(x for x in verdicts if x.startswith("rloo: answers are 3 tokens"))
    assert verdicts[longer]["measured"]["value"] == 5.0
    assert verdicts[longer]["verdict"] == "shown"
    kept = verdicts["rloo-plain: the SFT term keeps 0.1 nats of the facts"]
    assert kept["measured"]["value"] == 2.0 and kept["verdict"] == "shown"
    same = "rloo-plain: at equal KL the SFT term changes the facts by less than 0.2"
    same = next(x for x in verdicts if x.startswith(same))
    assert verdicts[same]["measured"]["value"] == 1.0
    assert verdicts[same]["verdict"] == "refuted"
    dpo = [x for x in verdicts.values() if "dpo" in x["text"]]
    assert {row["verdict"] for row in dpo} == {"not measured"}
    text = page(found, {})
    assert "| rloo-plain-sft | rloo-plain@equal KL |" in text
    assert "+5.00 [+5.00, +5.00]" in text
    assert "Nothing is measured yet" in page(summarise({}, {}), {})


def test_the_items_are_whole():
    items = read_json(ITEMS)
    assert [len(items[x]) for x in ("facts", "identity", "json")] == [200, 20, 50]
    for name in ("facts", "identity"):
        assert len({sentence for sentence, *_ in items[name]}) == len(items[name])
        assert all(len(set(ends)) == 4 for _, *ends in items[name])
    assert all(names_itself(right) for _, right, *_ in items["identity"])
    wrong = [end for _, _, *ends in items["identity"] for end in ends]
    assert not any(map(names_itself, wrong))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', True),
        ('Here:\n```json\n["red", "blue"]\n```\nDone.', True),
        ("3", False),
        ('Sure! {"a": 1}', False),
        ("[" * 100_000, False),
        ("```\n{}\n``` and ```\n{}\n```", False),
    ],
)
def test_json_is_an_object_or_a_list_alone_or_in_the_one_fence(text, expected):
    assert is_json(text) == expected


def test_pieces_of_a_text_stand_at_equal_distances():
    assert pieces(range(10), 4, 3) == [
        ([first, first + 1, first + 2, first + 3], [False, True, True, True])
        for first in (0, 3, 6)
    ]

"""Small sets, a model of a few thousand weights: what is trained on what, what is kept
in the cache, and that accuracies are those of hand-made margins."""

import dataclasses
import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import human_rewards, human_rewards_report
from benchmarks.frozen_heads import fit_head
from benchmarks.human_rewards import (
    ARMS,
    Data,
    Sizes,
    Workplace,
    check_cache,
    in_twos,
    read_data,
    results_so_far,
    rows_of,
    run,
    units,
)
from benchmarks.human_rewards_report import (
    PREDICTIONS,
    STRATA,
    accuracy,
    page,
    summarise,
)
from benchmarks.human_rewards_report import (
    tests_of as groups_of,
)
from rlhf_jax.data.tokenizers.tokenizer import train_tokenizer
from rlhf_jax.models import huggingface
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.training import weights

GOOD, BAD = "a kind and helpful answer", "rude words"
SMALL = Sizes(
    folds=2,
    vocab_size=300,
    max_prompt_tokens=48,
    max_response_tokens=48,
    block=4,
    tokens_at_once=512,
    overrides={
        "model": "micro",
        "batch_size": 8,
        "epochs": 1,
        "validation_share": 0.2,
        "num_centring_pairs": 4,
    },
)


def hh(i):
    noise = "word " * (2 * (i % 4))
    start = f"\n\nHuman: Question {i}?\n\nAssistant: "
    pair = (GOOD, f"{noise}{BAD}") if i % 3 else (f"{noise}{GOOD}", BAD)
    return dict(
        zip(("chosen", "rejected"), (start + text for text in pair), strict=True)
    )


def llmbar(i, subset):
    return {"input": f"Task {i}", "output_1": GOOD, "output_2": BAD * 2} | {
        "label": 1,
        "subset": subset,
    }


ROWS = {
    "hh_rlhf_helpful": [hh(i) for i in range(24)],
    "llmbar": [
        llmbar(i, subset)
        for i, subset in enumerate(
            ["LLMBar/Natural", "LLMBar/Adversarial/A", "Processed/MT-Bench"] * 2
        )
    ],
    "pandalm_human": [
        {"instruction": f"Do {i}", "input": "", "response1": GOOD, "response2": BAD}
        | {f"annotator{k}": 1 for k in (1, 2, 3)}
        for i in range(3)
    ],
    "qa_feedback": [
        {"question": "Q", "passages": [["Title", "Text."]]}
        | {f"prediction {i}": f"{GOOD} {i}" for i in (1, 2, 3)}
        | {"preference": [1, 1, 1]}
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return read_data(folder, "en")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = preset("micro", vocab_size=320)
    huggingface.save(jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(0)))(), folder)
    train_tokenizer([GOOD, BAD, "Question 1?"], 300, folder)
    return str(folder)


@pytest.fixture(scope="module")
def done(data, model, tmp_path_factory):
    work = Workplace(data, tmp_path_factory.mktemp("cache"), model, SMALL)
    check_cache(work)
    run(work, ["longer", "bag", "frozen"])
    return work


def test_the_sets_are_cleaned_and_their_parts_chosen(data):
    names, counts = np.unique(data.sets, return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {
        "hh": 24,
        "LLMBar natural": 2,
        "LLMBar adversarial": 2,
        "MT-Bench votes": 2,
        "PandaLM majority": 3,  # of nine votes
        "qa_feedback": 3,
    }


def test_every_pair_of_hh_is_judged_once_by_a_model_that_never_saw_its_conversation(
    data,
):
    for unit in units(["bag"], SMALL):
        train, test = rows_of(unit, data)
        assert not set(data.conversation[train]) & set(data.conversation[test])
        assert set(data.sets[train]) == {"hh"}
        assert (data.sets[test] != "hh").sum() == (data.sets != "hh").sum()
        if unit.balanced:
            difference = np.subtract(*data.lengths[train].T)
            assert (difference > 0).sum() == (difference < 0).sum() > 0
    plain = [u for u in units(["bag"], SMALL) if not u.balanced]
    judged = np.concatenate([rows_of(unit, data)[1] for unit in plain])
    assert np.unique(judged[data.sets[judged] == "hh"], return_counts=True)[
        1
    ].tolist() == [1] * (24)


def test_each_arm_has_its_variants(done):
    margins = results_so_far(done)
    assert set(margins) == {
        "longer-plain",
        *(f"bag-{kind}" for kind in KINDS),
        *(f"frozen-{kind}-{x}" for kind in KINDS for x in ("0.01", "0")),
    }
    for folds in margins.values():
        assert not np.isnan(folds).all(axis=0).any()


KINDS = ("plain", "balanced")


def test_arms_learn_what_is_easy(done):
    """Which words people prefer."""
    margins = results_so_far(done)
    for name in ("bag-plain", "frozen-plain-0.01"):
        own = np.nanmean(margins[name], axis=0)[done.data.sets == "hh"]
        assert (own > 0).mean() > 0.9


def test_the_reward_stage_trains_a_fold_and_scores_what_it_did_not_see(done):
    unit = next(unit for unit in units(["trained"], SMALL) if unit.balanced)
    train, test = rows_of(unit, done.data)
    margins = ARMS["trained"](unit, done, train, test)
    assert margins.shape == test.shape
    assert np.isfinite(margins).all() and (margins != 0).mean() > 0.9
    workdir = done.cache / "runs" / unit.name / "run"
    config = json.loads((workdir / "config.json").read_text())["config"]
    assert config["score_regularisation"] == 0.01
    assert config["init_from"] == done.model
    assert config["optimizer"]["trainable"]
    first = test.tolist().index(np.flatnonzero(done.data.sets != "hh")[0])
    model = weights.load_model(workdir)
    prompt, *responses = done.model_pairs[test[first]]
    scores = [model(jnp.array([prompt + x]))[0, -1] for x in responses]
    np.testing.assert_allclose(margins[first], np.subtract(*scores), atol=1e-4)


def test_a_run_that_was_killed_goes_on_with_the_units_it_lacks(
    done, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    shutil.copytree(done.cache, cache)
    lost = [cache / "margins" / "frozen-plain-0.01-1of2.npz", cache / "hidden/0001.npz"]
    before = [file.read_bytes() for file in lost]
    for file in lost:
        file.unlink()
    begun = []
    again = human_rewards.hidden_states
    monkeypatch.setattr(
        human_rewards,
        "hidden_states",
        lambda *args, **rest: begun.append(args) or again(*args, **rest),
    )
    run(Workplace(done.data, cache, done.model, SMALL), ["frozen"])
    assert len(begun) == 1
    assert [file.read_bytes() for file in lost] == before


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"sizes": dataclasses.replace(SMALL, block=8)}, "block"),
        ({"data": None}, "data"),
    ],
)
def test_a_cache_of_something_else_is_refused(done, changed, name):
    fewer = Data(done.data.comparisons[:-1], *(column[:-1] for column in done.data[1:]))
    work = {"data": done.data, "sizes": SMALL} | changed
    work["data"] = work["data"] or fewer
    other = Workplace(work["data"], done.cache, done.model, work["sizes"])
    with pytest.raises(ValueError, match=f"made from another {name}"):
        check_cache(other)


def test_a_response_of_several_pairs_is_read_once():
    pairs = [([1], [2, 3], [4]), ([1], [4], [5]), ([6], [7], [8])]
    rows, place = in_twos(pairs)
    assert rows == [([1], [2, 3], [4]), ([1], [5], [5]), ([6], [7], [8])]
    assert place.tolist() == [[0, 1], [1, 2], [4, 5]]


def test_hidden_states_are_those_of_a_response_alone(done):
    """Whatever stands beside it in its row, and in whichever block."""
    model = weights.load_model(done.model, dtype="float32")
    for row in (0, 25, len(done.data.sets) - 1):
        prompt, *responses = done.model_pairs[row]
        for side, response in enumerate(responses):
            alone = model.hidden(jnp.array([prompt + response]))[0, -1]
            np.testing.assert_allclose(
                done.hidden[row, side], np.asarray(alone), atol=5e-3
            )


def test_the_head_minimises_the_loss_of_the_reward_model():
    rng = np.random.default_rng(0)
    truth = np.array([2.0, -1.0, 0.0], np.float32)
    features = rng.normal(size=(400, 2, 3)).astype(np.float32)
    worse = (features[:, 0] - features[:, 1]) @ truth < 0
    features[worse] = features[worse][:, ::-1]
    weight = np.ones(len(features), np.float32)
    free = fit_head(features, weight, regularisation=0.0, ridge=1e-3)
    assert free @ truth / np.linalg.norm(free) / np.linalg.norm(truth) > 0.98
    shrunk = fit_head(features, weight, regularisation=0.1, ridge=1e-3)
    assert np.linalg.norm(shrunk) < 0.7 * np.linalg.norm(free)
    turned = np.where((np.arange(400) % 2 == 0)[:, None, None], features, -features)
    half = fit_head(turned, weight * (np.arange(400) % 2 == 0),
                    regularisation=0.0, ridge=1e-3)  # fmt: skip
    assert half @ truth / np.linalg.norm(half) / np.linalg.norm(truth) > 0.98


def test_accuracies_are_means_of_groups_over_the_judged_rows():
    right = np.array([1.0, 0.0, 1.0, 1.0, np.nan])
    groups = [np.array([1, 1, 0, 0, 1], bool), np.array([0, 0, 1, 1, 0], bool)]
    numbers = accuracy(right, groups, np.arange(5.0))
    assert numbers["value"] == pytest.approx((0.5 + 1.0) / 2)
    assert numbers["low"] < 0.75 < numbers["high"] <= 1
    assert numbers["pairs"] == 4
    assert accuracy(right, [np.array([0, 0, 0, 0, 1], bool)], np.arange(5.0)) is None


def test_intervals_draw_whole_conversations():
    right = np.tile([1.0, 0.0], 50).repeat(4)
    alone = accuracy(right, [np.ones(400, bool)], np.arange(400.0))
    shared = accuracy(right, [np.ones(400, bool)], np.arange(100.0).repeat(4))
    assert shared["high"] - shared["low"] > 1.7 * (alone["high"] - alone["low"])


def test_predictions_are_held_against_what_was_measured(data):
    hh_rows = data.sets == "hh"
    difference = np.subtract(*data.lengths.T).astype(float)
    longer = np.where(hh_rows, difference, 1.0)[None]
    margins = {
        "bag-plain": longer,
        "trained-plain-0.01": longer,
        "trained-balanced-0.01": np.ones_like(longer),
    }
    results = summarise(data, margins)
    assert results["variants"]["bag-plain"]["tests"][STRATA]["value"] == 0.5
    assert results["variants"]["bag-plain"]["length_correlation"] == pytest.approx(1)
    by_text = {row["text"]: row for row in results["predictions"]}
    assert len(by_text) == len(PREDICTIONS)
    gains = by_text[
        "trained: balancing gains 3 points or more on the mean of hh's strata"
    ]
    assert (gains["verdict"], gains["measured"]["value"]) == ("shown", 0.5)
    above = by_text["trained: 4 points or more above a bag of words on hh"]
    assert above["verdict"] == "refuted"
    assert by_text["frozen: 61 to 65 % of hh"]["verdict"] == "not measured"
    text = page(results)
    assert "| trained-balanced-0.01 | trained-plain-0.01 | hh |" in text
    assert "+50.0" in text


def test_what_is_there_so_far_can_be_written_at_any_time(done, tmp_path):
    first = {"bag-plain": results_so_far(done)["bag-plain"][:1]}
    human_rewards_report.write(tmp_path / "human_rewards", done.data, first)
    results = json.loads((tmp_path / "human_rewards.json").read_text())
    pairs = results["variants"]["bag-plain"]["tests"]["hh"]["pairs"]
    assert 0 < pairs < results["pairs"]["hh"] == 24
    human_rewards_report.write(tmp_path / "human_rewards", done.data, {})
    assert "Nothing is measured yet" in (tmp_path / "human_rewards.md").read_text()


def test_chinese_rankings_are_a_study_of_their_own(tmp_path):
    texts = [f"这是第{i}个回答，{'很' * i}长。" for i in range(3)]
    rows = [
        {"instruction": f"问题{i}？", "input": "", "output": texts[:: (-1) ** i]}
        for i in range(8)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "oasst1_zh_ranked.jsonl").write_text(text)
    data = read_data(tmp_path, "zh")
    assert data.is_own.all() and len(data.sets) == 8 * 3
    assert sorted({abs(a - b) for a, b in data.lengths.tolist()}) == [1, 2]
    work = Workplace(data, tmp_path / "cache", "", SMALL)
    run(work, ["longer", "bag"])
    results = summarise(data, results_so_far(work))
    tests = results["variants"]["longer-plain"]["tests"]
    assert tests["oasst1 zh, better is longer"]["value"] == 1.0
    assert tests["oasst1 zh"]["value"] == 0.5
    assert results["predictions"] == []
    assert "oasst1 zh balanced" in page(results)


@pytest.mark.parametrize("module", ["human_rewards", "preference_data"])
def test_a_folder_without_the_sets_is_refused_in_a_line(module, tmp_path, capsys):
    command = importlib.import_module(f"benchmarks.{module}")
    cache = ["--cache", str(tmp_path), "--report"] * (module == "human_rewards")
    with pytest.raises(SystemExit) as end:
        command.main(["--data", str(tmp_path / "nowhere"), *cache])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f"There is no folder {tmp_path / 'nowhere'}.")


def test_the_strata_share_out_the_pairs_of_unequal_length(data):
    tests = groups_of(data)
    longer, shorter = tests[STRATA]
    difference = np.subtract(*data.lengths.T)
    assert not (longer & shorter).any()
    assert (longer | shorter).sum() == ((data.sets == "hh") & (difference != 0)).sum()

"""Pairs labelled by a reward model: where they come from, and what is refused."""

import functools
import json

import jax
import numpy as np
import pytest

from configs import reward
from rlhf_jax.data.batching import packed_pairs, preference_batch
from rlhf_jax.data.encoding import encode_pairs
from rlhf_jax.data.records import Comparison, read_records
from rlhf_jax.data.tokenizers.tokenizer import load_tokenizer
from rlhf_jax.evaluation import candidates
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.generation.scoring import pair_scores
from rlhf_jax.stages import pairs
from rlhf_jax.training import model_records, weights
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.workdir import open_workdir, read_summary


@pytest.fixture(scope="module")
def reward_model(data_folder, tmp_path_factory):
    """The workdir of a reward model with random weights."""
    workdir = tmp_path_factory.mktemp("reward_model")
    key = jax.random.key(7)
    num_tokens = load_tokenizer(data_folder / "tokenizer").vocab_size
    backbone = weights.load_policy(
        "",
        model="micro",
        num_tokens=num_tokens,
        key=key,
        dtype="float32",
        param_dtype="float32",
    )
    model = weights.load_score_model(
        "", backbone=backbone, num_tokens=num_tokens, key=key
    )
    open_workdir(workdir, reward.get_config("tiny"))
    checkpoints = Checkpoints(workdir, keep=1)
    checkpoints.save(
        1, {"model": model}, {"models": {"model": model_records.describe(model)}}
    )
    checkpoints.close()
    return str(workdir)


def run(config, workdir):
    pairs.run(config, str(workdir))
    lines = (workdir / "comparisons.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_rule_makes_pairs_that_say_where_they_come_from(
    stage_config, reward_model, tmp_path
):
    """16 prompts with 3 responses of 12 tokens, by random weights: all differ."""
    found = {}
    for rule in ("ranks", "random", "every"):
        config = stage_config(
            "pairs", reward_model=reward_model, rule=rule, num_responses=3
        )
        found[rule] = run(config, tmp_path / rule)
        summary = read_summary(tmp_path / rule)
        assert summary["prompts"] == 16
        assert summary["responses"] == 48
        assert summary["pairs"] == (48 if rule == "every" else 16)
        dropped = sum(n for name, n in summary.items() if name.startswith("dropped"))
        assert summary["pairs"] == summary["kept"] + dropped
        assert summary["kept"] == len(found[rule])
    for comparison in found["ranks"]:
        info, prompt = comparison["info"], comparison["prompt"]["id"]
        best, worst = info.pop("scores")
        others = [
            c["info"]["scores"] for c in found["every"] if c["prompt"]["id"] == prompt
        ]
        assert best == max(map(max, others))
        assert worst == min(map(min, others))
        assert info == {
            "rule": "ranks",
            "ranks": [0, -1],
            "policy": "random weights",
            "reward_model": f"{reward_model} step 1 (seed 0)",
            "missing_end_penalty": 1.0,
            "sampling": {
                "num_responses": 3,
                "max_response_tokens": 12,
                "temperature": 1.0,
                "top_k": 0,
                "top_p": 1.0,
                "seed": 0,
            },
        }


@pytest.fixture(params=["never stops", "stops sometimes"])
def stops(request, monkeypatch):
    """How often the policy stops by itself."""
    if request.param == "never stops":
        monkeypatch.setattr(
            candidates,
            "sampling_with",
            lambda tokenizer, max_new_tokens, **fields: Sampling(
                max_new_tokens=max_new_tokens,
                min_new_tokens=max_new_tokens,
                stop_ids=tokenizer.stop_ids,
                pad_id=tokenizer.pad_id,
                num_tokens=tokenizer.vocab_size,
                **fields,
            ),
        )
    return request.param


def test_an_answer_cut_at_its_limit_is_learnt_from_without_an_end(
    stops, stage_config, reward_model, data_folder, tmp_path
):
    """By DPO and by a reward model, whose limit is the sampler's or a larger one."""
    config = stage_config("pairs", reward_model=reward_model, rule="every")
    comparisons = run(config, tmp_path)
    ended = [c[f"ended_{side}"] for c in comparisons for side in "ab"]
    cut = read_summary(tmp_path)["cut at the limit"]
    if stops == "never stops":
        assert not any(ended) and cut == 16 * 4
    else:
        assert any(ended) and 0 < cut < 16 * 4

    tokenizer = load_tokenizer(data_folder / "tokenizer")
    _, pairs, dropped = encode_pairs(
        read_records(tmp_path / "comparisons.jsonl", Comparison),
        tokenizer=tokenizer,
        max_prompt_tokens=128,
        max_response_tokens=config.max_response_tokens,
    )
    assert len(pairs) == len(comparisons) and not dropped
    padding = {"pad_id": tokenizer.pad_id, "batch_size": len(pairs), "multiple": 16}
    batch = preference_batch(pairs, **padding)
    is_stop = np.isin(batch.responses, tokenizer.stop_ids) & batch.response_mask
    assert is_stop.sum(-1).flatten().tolist() == ended

    # A reward model reads its score of them where it read that of the samples.
    model = weights.load_model(reward_model, dtype="float32", param_dtype="float32")
    scores = jax.jit(pair_scores)(model, packed_pairs(pairs, **padding))
    fined = scores - (1 - np.reshape(ended, (-1, 2)))
    labelled = [c["info"]["scores"] for c in comparisons]
    np.testing.assert_allclose(fined, labelled, rtol=0, atol=1e-4)


def test_the_fine_for_a_missing_end_decides_as_in_ppo(
    stage_config, reward_model, tmp_path
):
    """A fine above every difference of scores: where one response of two ended, it is
    chosen, and its score is its own."""
    score = functools.partial(stage_config, "pairs", reward_model=reward_model)
    free = run(score(rule="every", missing_end_penalty=0.0), tmp_path / "free")
    fined = run(score(rule="every", missing_end_penalty=99.0), tmp_path / "fined")
    mixed = [c for c in fined if c["ended_a"] != c["ended_b"]]
    assert mixed and all(c["ended_a"] for c in mixed)
    assert any(c["ended_b"] and not c["ended_a"] for c in free)
    for comparison in fined:
        better, worse = comparison["info"]["scores"]
        own = [x for c in free for x in c["info"]["scores"]]
        assert (
            min(abs(better + 99 * (not comparison["ended_a"]) - x) for x in own) < 1e-4
        )
        assert (
            min(abs(worse + 99 * (not comparison["ended_b"]) - x) for x in own) < 1e-4
        )


def test_greedy_responses_are_identical_and_leave_no_pair(
    stage_config, reward_model, tmp_path
):
    config = stage_config("pairs", reward_model=reward_model, temperature=0.0)
    with pytest.raises(ValueError, match=r"No pair is left.*identical responses 16"):
        run(config, tmp_path / "run")


def test_a_margin_that_no_pair_has_is_reported(stage_config, reward_model, tmp_path):
    config = stage_config("pairs", reward_model=reward_model, min_margin=1e6)
    with pytest.raises(ValueError, match=r"No pair is left.*config.min_margin=1000000"):
        run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reward_model": ""}, "reward_model is empty"),
        ({"num_responses": 1}, "num_responses=1 must be at least 2"),
        ({"min_margin": -1.0}, "min_margin=-1.0 must be at least 0"),
        ({"rule": "best"}, "rule='best' must be one of ranks, random, every"),
        ({"rejected_rank": 4}, "ranks of 4 responses"),
        ({"rule": "random", "rejected_rank": 2}, "reads no ranks"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_written(
    fields, message, stage_config, tmp_path
):
    config = stage_config("pairs", **{"reward_model": "somewhere"} | fields)
    with pytest.raises(ValueError, match=message):
        pairs.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()

"""DPO: every loss trains, the reference counts as it should, mistakes are refused."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf_jax.data.batching import preference_batch
from rlhf_jax.data.records import Comparison, Prompt, read_records, write_records
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.stages import dpo
from rlhf_jax.training.metrics import Writer, read_metrics

# Neither evaluation nor checkpoint nor SFT term: only what a test is about.
BARE = {"eval_every": 0, "save_every": 0, "beta_sft": 0.0}
GROUPS = ("rewards", "logps", "lengths")
HYPER = dpo.Hyper(
    num_tokens=512,
    chunk_size=0,
    loss="dpo",
    beta=0.2,
    label_smoothing=0.0,
    gamma=0.0,
    alpha=0.0,
    beta_sft=0.0,
)
PAIRS = [  # prompt, chosen, rejected, of all lengths
    ([5, 6, 7], [11, 12, 13, 14], [21, 22]),
    ([8], [31], [41, 42, 43, 44, 45, 46]),
    ([9, 9, 4, 3, 2], [51, 52, 53], [61, 62, 63]),
    ([1, 2], [71, 72], [81]),
]


@functools.cache
def micro(seed: int) -> ChatGLM:
    """A small model with weights large enough that every token matters."""
    config = preset("micro", vocab_size=512)
    return jax.jit(lambda: ChatGLM(config, rngs=nnx.Rngs(seed)))()


def batch_of(pairs, multiple=8):
    return preference_batch(pairs, pad_id=0, multiple=multiple)


@functools.partial(jax.jit, static_argnames="hyper")
def share(policy, batch, ref_logprobs, reference=None, hyper=HYPER):
    """The loss of a batch and the numbers to log."""
    return dpo.loss_fn(
        policy,
        (batch, ref_logprobs, None),
        reference=reference,
        num_pairs=batch.valid.sum(),
        num_sft_tokens=1,
        hyper=hyper,
    )


logprobs_of = jax.jit(functools.partial(dpo.pair_logprobs, hyper=HYPER))


def test_only_response_tokens_count():
    """Against a float64 sum over the logits of each whole sequence, prompt and one
    response, that the model computes alone."""
    model = micro(0)
    expected = np.zeros((len(PAIRS), 2))
    forward = jax.jit(lambda tokens, mask: model(tokens, mask))
    for i, (prompt, *responses) in enumerate(PAIRS):
        for side, response in enumerate(responses):
            length = len(prompt) + len(response)
            tokens = np.zeros((1, 16), np.int32)
            tokens[0, :length] = prompt + response
            logits = np.asarray(forward(tokens, np.arange(16)[None] < length))[0]
            logits = logits.astype(np.float64)
            logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            places = range(len(prompt) - 1, length - 1)
            expected[i, side] = sum(
                logprobs[t, token] for t, token in zip(places, response, strict=True)
            )
    np.testing.assert_allclose(logprobs_of(model, batch_of(PAIRS)), expected, rtol=1e-4)


def test_padding_never_counts():
    model, batch = micro(0), batch_of(PAIRS)
    expected = logprobs_of(model, batch)
    wide = batch_of(PAIRS, multiple=32)
    np.testing.assert_allclose(logprobs_of(model, wide), expected, atol=1e-5)
    garbage = dataclasses.replace(
        batch,
        prompts=np.where(batch.prompt_mask, batch.prompts, 99),
        responses=np.where(batch.response_mask, batch.responses, 99),
    )
    np.testing.assert_allclose(logprobs_of(model, garbage), expected, atol=1e-5)


def test_rows_that_fill_a_batch_never_count():
    model, reference = micro(0), micro(1)
    whole, metrics = share(model, batch_of(PAIRS), None, reference)
    filled = preference_batch(PAIRS, pad_id=0, multiple=8, batch_size=8)
    loss, filled_metrics = share(model, filled, None, reference)
    np.testing.assert_allclose(loss, whole, rtol=1e-5)
    for name, mean in metrics.items():
        assert filled_metrics[name].count == mean.count
        np.testing.assert_allclose(filled_metrics[name].total, mean.total, rtol=1e-5)


def test_gradient_at_the_reference_is_the_closed_form():
    """beta / 2 times the gradient of log pi(rejected) - log pi(chosen)."""
    model, batch = micro(0), batch_of(PAIRS)
    reference = logprobs_of(model, batch)
    got = jax.grad(lambda m: share(m, batch, reference)[0])(model)

    def closed_form(model):
        chosen, rejected = logprobs_of(model, batch).T
        return HYPER.beta / 2 * (rejected - chosen).mean()

    expected = jax.grad(closed_form)(model)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)


def test_a_cached_reference_and_one_on_the_fly_give_equal_losses():
    model, reference, batch = micro(0), micro(1), batch_of(PAIRS)
    cached = dpo.reference_logprobs(
        reference, PAIRS, functools.partial(batch_of, multiple=32), 2, logprobs_of
    )
    for loss in ("dpo", "ipo"):
        hyper = dataclasses.replace(HYPER, loss=loss)
        a, _ = share(model, batch, jnp.asarray(cached), hyper=hyper)
        b, _ = share(model, batch, None, reference, hyper=hyper)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
        assert abs(a - share(model, batch, 0 * cached, hyper=hyper)[0]) > 0.01


def run(config, workdir):
    dpo.run(config, str(workdir))
    return read_metrics(workdir)


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "dpo", "label_smoothing": 0.1},
        {"loss": "robust", "label_smoothing": 0.1},
        {"loss": "ipo"},
        {"loss": "simpo", "beta": 2.0, "gamma": 0.5},
        {"loss": "length_regularised", "alpha": 0.01},
    ],
    ids=lambda fields: fields["loss"],
)
def test_every_loss_trains(fields, stage_config, few_pairs, tmp_path, monkeypatch):
    if fields["loss"] == "simpo":  # which never asks the reference

        def refuse(*args):
            raise AssertionError("SimPO has no reference.")

        monkeypatch.setattr(dpo, "reference_logprobs", refuse)
    config = stage_config("dpo", pairs=few_pairs, epochs=2, **BARE, **fields)
    first, second = run(config, tmp_path / "run")
    assert second["optim/skipped"] == 0
    assert second["logps/chosen"] != first["logps/chosen"]
    assert {
        "loss/dpo",
        *(f"rewards/{x}" for x in ("chosen", "rejected", "margins", "accuracies")),
        *(
            f"{x}/{side}"
            for x in ("logps", "lengths")
            for side in ("chosen", "rejected")
        ),
    } <= set(second)


def test_on_the_fly_equals_cached_through_the_stage_and_holds_more_memory(
    stage_config, few_pairs, tmp_path, monkeypatch
):
    held = []
    write = Writer.write

    def write_and_weigh(self, *arguments):
        held.append(sum(x.nbytes for x in jax.live_arrays()))
        return write(self, *arguments)

    monkeypatch.setattr(Writer, "write", write_and_weigh)
    lines = {}
    for reference in ("cached", "on_the_fly"):
        config = stage_config(
            "dpo", pairs=few_pairs, epochs=2, reference=reference, **BARE
        )
        lines[reference] = run(config, tmp_path / reference)
    for a, b in zip(*lines.values(), strict=True):
        for name in ("loss/dpo", "rewards/margins"):
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-5)
    weights = sum(x.nbytes for x in jax.tree.leaves(micro(0)))
    assert held[-1] - held[1] > 0.5 * weights


def test_training_raises_the_chosen_over_the_rejected(
    stage_config, few_pairs, tmp_path
):
    config = stage_config("dpo", pairs=few_pairs, epochs=8, **BARE)
    config.optimizer.learning_rate = 1e-2
    lines = run(config, tmp_path / "run")
    assert lines[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert lines[-1]["rewards/margins"] > 1.0
    assert lines[-1]["rewards/accuracies"] == 1.0
    gap = [line["logps/chosen"] - line["logps/rejected"] for line in lines]
    assert gap[-1] - gap[0] > 10.0  # beta is 0.1
    assert lines[-1]["loss/dpo"] < 0.5 < np.log(2)


def test_evaluation_measures_kl_on_fresh_samples(stage_config, few_pairs, tmp_path):
    """At a step size of almost 0 the policy is its reference still: KL 0."""
    config = stage_config("dpo", pairs=few_pairs, epochs=2, **BARE)
    config.update(eval_every=1, num_eval_prompts=5, num_samples=3)
    config.max_response_tokens = 100
    config.optimizer.learning_rate = 1e-12
    first, second = run(config, tmp_path / "run")
    assert abs(first["eval/kl"]) < 1e-3
    assert first["eval/response_length"] == second["eval/response_length"] > 1
    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [s["step"] for s in samples] == [1, 1, 1, 2, 2, 2]
    assert samples[0]["response"] == samples[3]["response"]
    assert {type(sample["ended"]) for sample in samples} == {bool}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "kto"}, "loss='kto' must be one of dpo, robust, ipo"),
        ({"beta": 0.0}, "beta=0.0 must be above 0"),
        ({"beta": -0.1}, "beta=-0.1 must be above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5 must be from 0 to below 0.5"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "needs loss dpo or robust"),
        ({"loss": "robust"}, "without label_smoothing is 'dpo'"),
        ({"gamma": 1.0}, "gamma=1.0 needs loss='simpo'"),
        ({"loss": "simpo", "gamma": -1.0}, "gamma=-1.0 must be at least 0"),
        ({"alpha": 0.1}, "alpha=0.1 needs loss='length_regularised'"),
        ({"loss": "length_regularised"}, "needs alpha > 0"),
        ({"loss": "simpo", "reference": "on_the_fly"}, "simpo' has no reference"),
        ({"reference": "none"}, "'cached' or 'on_the_fly'"),
        ({"reference": "on_the_fly", "reference_cache": "x"}, "reference_cache='x'"),
        ({"beta_sft": -1.0}, "beta_sft=-1.0 must be at least 0"),
        ({"microbatches": 3}, "batch_size=8 does not divide .* in 3 parts"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_written(
    fields, message, stage_config, tmp_path
):
    with pytest.raises(ValueError, match=message):
        dpo.run(stage_config("dpo", **fields), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_cache_of_another_reference_is_refused(stage_config, few_pairs, tmp_path):
    """Random weights of another seed stand for another reference."""
    cache = str(tmp_path / "shared.npz")
    config = stage_config("dpo", pairs=few_pairs, reference_cache=cache, **BARE)
    run(config, tmp_path / "a")
    run(config, tmp_path / "b")  # the same: taken
    config.seed = 1
    with pytest.raises(ValueError, match=r"shared.npz .* another reference\. Delete"):
        run(config, tmp_path / "c")


def test_files_without_a_usable_pair_say_why(stage_config, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty.jsonl holds no records"):
        run(stage_config("dpo", pairs=str(empty)), tmp_path / "a")
    prompt = Prompt("p", ({"role": "user", "content": "Hello."},))
    useless = [
        Comparison(prompt, "Hi.", "Hi.", "a"),
        Comparison(prompt, "A", "B", "tie"),
    ]
    write_records(tmp_path / "useless.jsonl", useless)
    with pytest.raises(ValueError, match=r"'identical responses': 1, 'tie': 1"):
        run(stage_config("dpo", pairs=str(tmp_path / "useless.jsonl")), tmp_path / "b")


@pytest.fixture(scope="module")
def few_pairs(data_folder, tmp_path_factory):
    """Eight comparisons: one batch an epoch."""
    comparisons = read_records(data_folder / "comparisons.jsonl", Comparison)
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    write_records(path, [c for c in comparisons if c.preference != "tie"][:8])
    return str(path)

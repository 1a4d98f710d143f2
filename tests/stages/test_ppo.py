"""Options that PPO refuses, and the behaviour of a whole run."""

import json
import math
import re
import shutil

import jax
import numpy as np
import pytest

from configs import ppo as ppo_config
from rlhf_jax.data.batching import BatchOrder
from rlhf_jax.data.records import Dialogue, Prompt, read_records, write_records
from rlhf_jax.data.sft_term import sft_batches
from rlhf_jax.data.sources import tokenizer_of
from rlhf_jax.data.tokenizers.chat import encode_prompt
from rlhf_jax.data.tokenizers.tokenizer import train_tokenizer
from rlhf_jax.evaluation import watch
from rlhf_jax.evaluation.rollouts import scored_rollouts
from rlhf_jax.ppo import rollouts
from rlhf_jax.ppo.kl_ceiling import ABOVE_CEILING, KLCeilingError
from rlhf_jax.stages import ppo
from rlhf_jax.training import optimizers
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.metrics import MEASURED, Mean, Writer, read_metrics
from rlhf_jax.training.weights import load_model
from rlhf_jax.training.workdir import is_finished, read_summary


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"advantage": "vtrace"}, "must be one of.*'rloo'"),
        ({"baseline": "greedily"}, "must be one of.*'greedy'"),
        ({"baseline": "greedy", "baseline_samples": 4}, "set baseline='reference', or"),
        ({"advantage": "rloo", "baseline": "none"}, "samples_per_prompt to 2 or more"),
        ({"advantage": "grpo", "samples_per_prompt": 4}, "cancels out.*'none'"),
        ({"advantage": "remax", "baseline": "none"}, "baseline='greedy'"),
        ({"advantage": "remax", "whiten_rewards": True}, "advantage='gae'"),
        ({"dual_clip": 0.5}, "above 1"),
        ({"dual_clip": 3.0, "objective": "cispo"}, "set dual_clip=0"),
        (
            {"advantage": "reinforce_pp", "whiten_advantages": True},
            "leave whiten_advantages",
        ),
        ({"max_draws": 2}, "max_draws=2 looks for .*advantage='grpo'"),
        ({"group_std": False}, "group_std=False needs advantage='grpo'"),
        ({"mask_overlong": True}, "missing_end_penalty=1.0.*set one of the two"),
        ({"reference_rate": 0.1}, "reference_rate=0.1 moves.*baseline='none'"),
        (
            {"reference_rate": 0.1, "baseline": "none", "param_dtype": "bfloat16"},
            "param_dtype='bfloat16' rounds the small steps",
        ),
        (
            {"replay_routing": True, "model": "tiny_moe", "prompts_ahead": 8},
            "no experts of responses from prompts_ahead=8: set",
        ),
        (
            {"replay_routing": True, "model": "tiny_moe", "one_step_off_policy": True},
            "no experts of responses from one_step_off_policy=True: set",
        ),
        ({"replay_routing": True}, "the policy, tiny, has none: set it to False"),
        ({"temperature": 0.0}, "learns from samples"),
        ({"kl_ceiling": float("nan")}, "inf for no ceiling"),
        ({"judge_model": "a", "eval_every": 0}, "eval_every=0 makes none: set it to 1"),
        ({"judge_model": "a", "reward_model": "./a"}, "is the reward_model, which"),
        ({"stop_over_optimised": True}, "name one in judge_model, or leave"),
        ({"samples_per_prompt": 3}, "multiple of samples_per_prompt=3"),
        ({"minibatches": 3}, "batch_size=128 does not divide"),
        ({"microbatches": 3}, "batch_size=128 does not divide"),
        ({"microbatches": 16}, "sft_batch_size=8 does not divide"),
        ({"value_optimizer.fused": True, "microbatches": 2}, "value_optimizer.fused"),
        ({"attention": "splash"}, "not for [cg]pu"),
    ],
)
def test_options_that_contradict_each_other_are_refused(fields, message, tmp_path):
    config = ppo_config.get_config("tiny")
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        ppo.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def nothing_is_compiled(monkeypatch):
    """Loading a model, the first thing that compiles, fails."""

    def load_policy(*_, **__):
        raise AssertionError("A model was loaded.")

    monkeypatch.setattr(ppo.weights, "load_policy", load_policy)


@pytest.mark.usefixtures("nothing_is_compiled")
def test_a_reward_model_with_another_tokenizer_is_refused(stage_config, tmp_path):
    texts = ["another text, and so another vocabulary"]
    train_tokenizer(texts, 270, tmp_path / "reward" / "tokenizer")
    config = stage_config("ppo", reward_model=str(tmp_path / "reward"))
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        ppo.run(config, str(tmp_path / "run"))


@pytest.mark.usefixtures("nothing_is_compiled")
def test_prompts_that_are_all_too_long_are_refused(stage_config, tmp_path):
    config = stage_config("ppo", max_prompt_tokens=2)
    with pytest.raises(ValueError, match=r"None of .* prompts fits"):
        ppo.run(config, str(tmp_path / "run"))


@pytest.mark.usefixtures("nothing_is_compiled")
def test_an_empty_sft_set_is_refused_where_the_loss_needs_it(
    stage_config, data_folder, tmp_path
):
    shutil.copytree(data_folder, tmp_path / "data")
    (tmp_path / "data" / "sft.jsonl").write_text("")
    config = stage_config("ppo")
    config.data.path = str(tmp_path / "data")
    with pytest.raises(ValueError, match=r"sft\.jsonl"):
        ppo.run(config, str(tmp_path / "run"))


@pytest.mark.usefixtures("nothing_is_compiled")
def test_a_reference_that_is_not_the_policys_start_is_named(
    stage_config, model_folders, tmp_path, monkeypatch
):
    start, other = model_folders
    warnings = []
    monkeypatch.setattr(
        ppo.logging, "warning", lambda text, *args: warnings.append(text % args)
    )
    config = stage_config("ppo", init_from=start, reference=other)
    with pytest.raises(AssertionError, match="A model was loaded"):
        ppo.run(config, str(tmp_path / "run"))
    assert any(start in text and other in text for text in warnings)


def test_programs_keys_and_evaluations_of_a_run_that_learns_nothing(
    stage_config, reward_folder, tmp_path, monkeypatch
):
    """Four iterations at learning rate 0: nothing is compiled after the second, each
    has its own key, and what does not hang on the samples stays the same."""
    compiled, seen, keys = [], [], []
    lowered = "/jax/core/compile/jaxpr_to_mlir_module_duration"
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if name == lowered else None
    )
    write, roll = Writer.write, rollouts.rollout

    def write_and_count(self, step, *rest):
        if step > len(seen):
            seen.append(len(compiled))
        return write(self, step, *rest)

    def roll_and_note(model, batch, key, sampling, **options):
        keys.append(jax.random.key_data(key).tolist())
        return roll(model, batch, key, sampling, **options)

    monkeypatch.setattr(Writer, "write", write_and_count)
    monkeypatch.setattr(rollouts, "rollout", roll_and_note)
    config = stage_config("ppo", total_steps=4, eval_every=1, save_every=0)
    config.judge_model, config.offload_frozen = reward_folder, True
    for optimizer in (config.optimizer, config.value_optimizer):
        optimizer.learning_rate = 0.0
    ppo.run(config, str(tmp_path / "run"))

    assert seen[0] > 0
    assert seen[3] == seen[2]
    assert len({tuple(key) for key in keys}) == 4
    counts = read_summary(tmp_path / "run")["responses by use"]
    assert counts["iterations"] == 4 * config.batch_size
    first, *lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in (first, *lines)] == [0, 1, 2, 3, 4]
    for name, value in {
        "watch/scores": 0.0,
        "watch/judge_scores": 0.0,
        "watch/gap": 0.0,
        "watch/length": 1.0,
        "watch/over_optimised": 0.0,
        "objective/kl": 0.0,
        "val/ratio": 1.0,
        "policy/approxkl": 0.0,
        "policy/clipfrac": 0.0,
        "rollout/ratio_outside": 0.0,
    }.items():
        assert [line[name] for line in lines] == pytest.approx([value] * 4, abs=1e-5)
    for name in ("eval/scores", "eval/response_length"):
        assert len({line[name] for line in lines}) == 1
    shown = {name for name in first if name.startswith(("watch/", "eval/judge"))}
    assert {name: first[name] for name in shown} == {x: lines[3][x] for x in shown}
    text = (tmp_path / "run" / "samples.jsonl").read_text()
    samples = [json.loads(line) for line in text.splitlines()]
    tables = [
        [(s["prompt"], s["response"]) for s in samples if s["step"] == step]
        for step in (1, 4)
    ]
    assert tables[0] == tables[1]
    assert tables[0]


@pytest.mark.parametrize(("samples", "of_reference"), [(1, 1), (2, 0), (1, 3)])
def test_the_reference_answers_every_prompt_once_whenever_it_is_drawn(
    samples, of_reference, stage_config, data_folder, tmp_path, monkeypatch
):
    """Its answers depend on the prompt alone: the baseline is the mean score of
    `of_reference` answers to all prompts in their order, or of the greedy ones."""
    answered, answer_scores = [], ppo.answer_scores

    def answer_and_note(policy, reward_model, batch, key, sampling, **records):
        answered.append((policy, reward_model, key, sampling, batch.prompts.shape[1]))
        return answer_scores(policy, reward_model, batch, key, sampling, **records)

    monkeypatch.setattr(ppo, "answer_scores", answer_and_note)
    config = stage_config(
        "ppo", total_steps=6, samples_per_prompt=samples, eval_every=0
    )
    config.baseline_samples = of_reference
    ppo.run(config, str(tmp_path / "run"))

    records = read_records(data_folder / "prompts.jsonl", Prompt)
    assert len(answered) == len(records) // config.batch_size
    policy, reward_model, key, sampling, width = answered[0]
    assert sampling.temperature == bool(of_reference)
    tokenizer = tokenizer_of(tmp_path / "run")
    found = scored_rollouts(
        policy,
        reward_model,
        [encode_prompt(record.messages, tokenizer) for record in records],
        key,
        sampling,
        samples_per_prompt=max(of_reference, 1),
        batch_size=len(records),
        width=width,
    )
    expected = np.concatenate([batch.scores.mean(axis=1) for batch in found])
    with np.load(tmp_path / "run" / "reference_scores.npz") as file:
        np.testing.assert_allclose(file["values"], expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 1e-3


def test_a_copy_in_8_bits_answers_and_the_policy_itself_is_trained(
    stage_config, tmp_path
):
    """At learning rate 0 the policy stays its own reference, as far as the trainer
    knows; only the sampler's log-probabilities are a little off (without the copy, by
    less than 1e-5)."""
    config = stage_config("ppo", eval_every=0, rollout_param_dtype="int8")
    for optimizer in (config.optimizer, config.value_optimizer):
        optimizer.learning_rate = 0.0
    ppo.run(config, str(tmp_path / "run"))
    line = read_metrics(tmp_path / "run")[-1]
    assert line["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert line["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert 2e-5 < line["rollout/logprob_gap_mean"] < 0.1
    # The distance is corrected by default.
    assert 0 < line["rollout/weight_min"] < line["rollout/weight_mean"] < 1.1
    assert line["response/learned_fraction"] == 1


@pytest.mark.gpu
def test_what_is_offloaded_is_on_the_device_at_work_alone_and_changes_no_number(
    stage_config, tmp_path, monkeypatch
):
    """The frozen models, and the moments; of which a checkpoint is saved."""
    kinds, memory_at_rest = {}, ppo.Memory.at_rest

    def kinds_of(tree) -> set:
        return {x.sharding.memory_kind for x in jax.tree.leaves(tree)}

    def watched(name, function, *places):
        def call(*args, **kwargs):
            for place in places:
                kinds.setdefault((name, place), set()).update(kinds_of(args[place]))
            return function(*args, **kwargs)

        return call

    def at_rest(self, state):
        rested = memory_at_rest(self, state)
        frozen, moments = kinds_of(self._frozen), kinds_of(rested.policy.opt_state)
        kinds.setdefault("rest", set()).add((*frozen, *moments))
        return rested

    monkeypatch.setattr(ppo.Memory, "at_rest", at_rest)
    monkeypatch.setattr(
        ppo, "answer_scores", watched("answer", ppo.answer_scores, 0, 1)
    )
    lines, saved = [], []
    for offload in (False, True):
        kinds.clear()
        fields = {"offload_frozen": offload, "offload_moments": offload}
        config = stage_config("ppo", eval_every=0, **fields)
        folder = tmp_path / str(offload)
        ppo.run(config, str(folder))
        kind = "pinned_host" if offload else "device"
        assert kinds["rest"] == {(kind, kind)}
        assert kinds["answer", 0] == kinds["answer", 1] == {"device"}
        lines.append(
            [
                {k: x for k, x in line.items() if not k.startswith(MEASURED)}
                for line in read_metrics(folder)
            ]
        )
        saved.append(load_model(folder, item="value"))
    assert lines[1] == lines[0]
    assert len(lines[0]) == 2
    for x, y in zip(*map(jax.tree.leaves, saved), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.gpu
def test_two_iterations_of_grpo_start_from_a_ratio_of_1_and_move_the_policy(
    stage_config, tmp_path
):
    fields = {"advantage": "grpo", "samples_per_prompt": 2, "baseline": "none"}
    config = stage_config("ppo", eval_every=0, **fields)
    config.optimizer.learning_rate = 1e-2
    ppo.run(config, str(tmp_path / "run"))
    first, second = read_metrics(tmp_path / "run")
    for line in (first, second):
        assert line["val/ratio_first"] == pytest.approx(1, abs=1e-4)
        assert math.isfinite(line["loss/policy"]) and line["optim/skipped"] == 0
    assert first["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert abs(second["objective/kl"]) > 1e-4


def test_a_run_above_the_kl_ceiling_fails_and_hands_on_a_policy_below_it(
    stage_config, tmp_path
):
    """Without a critic, too: its checkpoints hold no value model. The policy after two
    updates is the first above the ceiling; its checkpoint exists when that is seen."""
    config = stage_config(
        "ppo",
        advantage="rloo",
        baseline="none",
        samples_per_prompt=2,
        total_steps=4,
        save_every=1,
        eval_every=0,
        kl_ceiling=1e-4,
        keep_checkpoints=2,
    )
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-12, 0
    config.optimizer.decay = "constant"
    workdir = tmp_path / "run"
    rates = optimizers.learning_rates

    def jump(optimizer, total):  # the first update is next to nothing
        found = rates(optimizer, total).copy()
        found[config.minibatches :] = 0.1
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers, "learning_rates", jump)
        with pytest.raises(
            KLCeilingError,
            match=r"Step 2 of .*run: objective/kl \d.* is above kl_ceiling 0.0, with "
            r"kl_coef 0.03\. Raise kl_coef.*below the ceiling is of step 1; this",
        ):
            ppo.run(config, str(workdir))
    assert not is_finished(workdir)
    assert [line["step"] for line in read_metrics(workdir)] == [1, 2]
    checkpoints = Checkpoints(workdir, keep=None)
    assert checkpoints.latest_step() == 1
    assert set(checkpoints.meta(1)["models"]) == {"model"}
    start = jax.tree.leaves(load_model(workdir))
    above = jax.tree.leaves(load_model(workdir / ABOVE_CEILING))
    moved = max(np.abs(x - y).max() for x, y in zip(start, above, strict=True))
    assert moved > 0.01
    assert tokenizer_of(workdir / ABOVE_CEILING) is not None


def test_a_policy_that_starts_above_the_ceiling_is_refused(stage_config, tmp_path):
    config = stage_config("ppo", kl_ceiling=-1.0, baseline="none", beta_sft=0.0)
    with pytest.raises(KLCeilingError, match="had no update yet"):
        ppo.run(config, str(tmp_path / "run"))
    assert not is_finished(tmp_path / "run")


def test_an_over_optimised_run_ends_and_keeps_the_judges_best(
    stage_config, reward_folder, tmp_path, monkeypatch, caplog
):
    """The judge's scores rise, fall and rise, and the score learned from stays; the
    same command then goes on with the evaluations of before."""
    means, rng = iter([0, 1, 4, -9]), np.random.default_rng(0)
    monkeypatch.setattr(
        watch, "rollout_scores", lambda *_: next(means) + rng.normal(size=8) / 2
    )
    config = stage_config(
        "ppo",
        advantage="rloo",
        baseline="none",
        samples_per_prompt=2,
        beta_sft=0.0,
        total_steps=4,
        save_every=3,
        eval_every=1,
        keep_checkpoints=1,
        judge_model=reward_folder,
        stop_over_optimised=True,
    )
    config.optimizer.learning_rate = 0.0
    workdir = tmp_path / "run"
    said = (
        r"Step 3 of .*run: over-optimisation. Since step 2 the score by the judge, "
        rf"{reward_folder}, fell by \d+.\d\d \(\d\d.\d standard errors\), while the "
        r"score learned from rose by 0.00, .* Take .*/checkpoints/best, of step 2. For"
    )
    with pytest.raises(watch.OverOptimisedError, match=said):
        ppo.run(config, str(workdir))
    assert re.search(said, caplog.text)
    assert not is_finished(workdir)
    assert Checkpoints(workdir, keep=None).find("best") == 2

    means = iter([0, -9, 9])
    caplog.clear()
    config.stop_over_optimised = False
    ppo.run(config, str(workdir))
    assert re.search(said, caplog.text)
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    warned = [line["watch/over_optimised"] for line in lines]
    assert warned == [0, 0, 0, 1, 0]
    assert Checkpoints(workdir, keep=None).find("best") == 4


def test_what_each_iteration_hands_to_the_update(
    stage_config, data_folder, tmp_path, monkeypatch
):
    """Two iterations with two samples a prompt, whose programs do nothing but note
    what they get: baselines by prompt, and keys, rates and SFT batches of their own."""
    baselines, updates = [], []

    def make_experience(
        state, rollout, outputs, scores, baseline_scores, wanted, *, hyper
    ):
        baselines.append(baseline_scores)
        return None, {}, {"objective/kl": Mean.of(np.zeros(1))}

    def train_step(state, experience, sft, key, learning_rates, **_):
        updates.append((sft, jax.random.key_data(key).tolist(), learning_rates))
        return state, {}

    class Uncompiled:
        """The stage's jax, whose jit leaves `make_experience` as it is."""

        def __getattr__(self, name):
            return getattr(jax, name)

        def jit(self, function, **options):
            noted = function.func is make_experience
            return function if noted else jax.jit(function, **options)

    monkeypatch.setattr(ppo, "make_experience", make_experience)
    monkeypatch.setattr(ppo, "fit_critic", lambda value, rows, *_, **__: rows)
    monkeypatch.setattr(ppo, "train_step", train_step)
    monkeypatch.setattr(ppo, "jax", Uncompiled())
    monkeypatch.setattr(ppo, "compiled", lambda function: function)
    config = stage_config(
        "ppo", samples_per_prompt=2, eval_every=0, save_every=0, sft_batch_size=8
    )
    config.optimizer.decay = "linear"
    ppo.run(config, str(tmp_path / "run"))

    order = BatchOrder(16, batch_size=4, seed=config.seed)
    with np.load(tmp_path / "run" / "reference_scores.npz") as file:
        scores = file["values"]
    assert len(set(scores[order.indices(0)])) == 4
    # The first experience is made twice: the critic is fitted to its returns.
    for step, given in zip((0, 0, 1), baselines, strict=True):
        expected = scores[order.indices(step)].repeat(2)
        np.testing.assert_array_equal(given, expected)

    tokenizer = tokenizer_of(tmp_path / "run")
    batches = sft_batches(
        read_records(data_folder / "sft.jsonl", Dialogue),
        tokenizer,
        max_tokens=config.max_sft_tokens,
        multiple=config.pad_to_multiple,
        batch_size=config.sft_batch_size,
        seed=config.seed,
        unit=1,
        thoughts=True,
    )
    count = config.ppo_epochs * config.minibatches
    rates = [
        optimizers.learning_rates(x, 2 * count)
        for x in (config.optimizer, config.value_optimizer)
    ]
    assert len(updates) == 2
    for step, (stacked, _, given) in enumerate(updates):
        for i in range(count):
            number = step * count + i
            expected = batches.batch(number).tokens
            np.testing.assert_array_equal(stacked.tokens[i], expected)
            for model in range(2):
                assert given[model][i] == rates[model][number]
    assert updates[0][1] != updates[1][1]
    assert not np.array_equal(updates[0][0].tokens, updates[1][0].tokens)
    assert len({*rates[0], *rates[1]}) > 2 * count


def test_prompts_that_fill_a_batch_are_answered_apart(
    stage_config, data_folder, tmp_path, monkeypatch
):
    """Three prompts in a batch of eight: no two rows have the same key."""
    seen, roll = [], rollouts.rollout

    def roll_and_note(model, batch, key, sampling, **options):
        seen.append((np.asarray(batch.prompts), np.asarray(batch.index)))
        return roll(model, batch, key, sampling, **options)

    monkeypatch.setattr(rollouts, "rollout", roll_and_note)
    prompts = read_records(data_folder / "prompts.jsonl", Prompt)[:3]
    write_records(tmp_path / "prompts.jsonl", prompts)
    config = stage_config(
        "ppo",
        prompts=str(tmp_path / "prompts.jsonl"),
        baseline="none",
        total_steps=1,
        eval_every=0,
        save_every=0,
        beta_sft=0.0,
    )
    ppo.run(config, str(tmp_path / "run"))
    ((rows, index),) = seen
    assert len({tuple(row) for row in rows}) == 3
    assert len(set(index.tolist())) == 8

import json

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.training.metrics import Mean, NonFiniteError, Writer, read_metrics


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_means_add_as_if_all_values_were_in_one():
    a, b = np.arange(3.0), np.arange(10.0)
    mask = np.array([True, False, True])
    total = Mean.of(a, mask) + Mean.of(b)
    assert total.value() == pytest.approx(np.concatenate([a[mask], b]).mean())


def test_what_is_masked_never_counts_not_even_nan():
    assert Mean.of(jnp.array([1.0, jnp.nan]), jnp.array([True, False])).value() == 1.0


def test_a_mean_of_nothing_is_nan_in_python_and_null_in_json(tmp_path):
    nothing = Mean.of(jnp.ones(2), jnp.zeros(2, bool))
    assert np.isnan(nothing.value())
    writer = Writer(tmp_path, 0, 1, 0.0)
    writer.write(1, {"x": nothing})
    writer.close()
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "x": None}]


def test_one_line_a_step_however_many_calls(tmp_path):
    writer = Writer(tmp_path, 0, 1, 0.0)
    assert writer.write(1, {"a": Mean.of(2.0)}) == (0, {})
    writer.write(1, {"eval/b": 3.0})
    assert writer.write(2, {"a": 4.0}) == (1, {"a": 2.0, "eval/b": 3.0})
    assert writer.close() == {"a": 4.0}
    assert read_metrics(tmp_path) == [
        {"step": 1, "a": 2.0, "eval/b": 3.0},
        {"step": 2, "a": 4.0},
    ]
    assert list((tmp_path / "events").iterdir())


def test_a_resume_drops_later_and_half_written_lines(tmp_path):
    for step in (1, 2, 3):
        writer = Writer(tmp_path, step - 1, 1, 0.0)
        writer.write(step, {"a": float(step)})
        writer.write_samples(step, [{"prompt": "p", "response": "r", "reward": 1.0}])
        writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "a"')  # killed here
    writer = Writer(tmp_path, 2, 1, 0.0)
    writer.write(3, {"a": 30.0})
    writer.close()
    assert [m["a"] for m in read_metrics(tmp_path)] == [1.0, 2.0, 30.0]
    assert [s["step"] for s in lines(tmp_path / "samples.jsonl")] == [1, 2]


def test_updates_that_stay_non_finite_stop_the_run_with_the_step_and_the_losses(
    tmp_path,
):
    writer = Writer(tmp_path, 0, max_skipped=3, spike_zscore=0.0)
    for step in (1, 2):
        writer.write(step, {"optim/skipped": step, "loss/sft": float("nan")})
    writer.write(3, {"optim/skipped": 3, "loss/sft": float("nan")})
    with pytest.raises(NonFiniteError, match=r"Step 3 .* 3 times in a row.*loss/sft"):
        writer.close()


def test_samples_of_a_step_replace_those_that_an_interrupted_run_left_of_it(tmp_path):
    def sample(text):
        return [{"prompt": "p", "response": text, "reward": None}]

    writer = Writer(tmp_path, 2, 1, 0.0)
    writer.write_samples(1, sample("one\u2028line"))
    writer.write_samples(2, sample("killed here"))
    again = Writer(tmp_path, 2, 1, 0.0)
    again.write_samples(2, sample("again"))
    found = (tmp_path / "samples.jsonl").read_text().split("\n")[:-1]
    assert [json.loads(line)["response"] for line in found] == [
        "one\u2028line",
        "again",
    ]


def test_a_run_resumed_behind_its_last_step_has_that_steps_numbers(tmp_path):
    writer = Writer(tmp_path, 0, 1, 0.0)
    writer.write(1, {"a": 1.0, "b": float("nan")})
    writer.close()
    numbers = Writer(tmp_path, 1, 1, 0.0).flush()
    assert numbers["a"] == 1.0
    assert np.isnan(numbers["b"])

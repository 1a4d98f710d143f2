import json
import struct
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from rlhf_jax.training import metrics
from rlhf_jax.training.metrics import Mean, NonFiniteError, Rate, Writer, read_metrics


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


def test_a_run_that_starts_anew_writes_what_precedes_step_1_once(tmp_path):
    for start in (0, 0, 1):
        writer = Writer(tmp_path, start, 1, 0.0)
        if not start:
            writer.write(0, {"a": 1.0})
        writer.write(start + 1, {"a": 2.0})
        writer.close()
    assert [m["step"] for m in read_metrics(tmp_path)] == [0, 1, 2]


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


BAD = [b"5", b"null", b"[]", b"{}", b"x", b"\xff", b'{"step": "1"}', b"{" * 9]


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("line", BAD)
@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_line_that_is_no_record_is_named_and_nothing_is_dropped(
    name, line, place, tmp_path
):
    lines = [b'{"step": 1, "a": 1.0}', b'{"step": 2, "a": null}']
    lines.insert(place - 1, line)
    content = b"".join(x + b"\n" for x in lines)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}, line {place}: .* is not a record"):
        Writer(tmp_path, 2, 1, 0.0)
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("value", ['"x"', "[1]", "{}"])
def test_a_number_that_is_none_is_named(value, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "a": 1.0}}\n{{"step": 2, "a": {value}}}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: "):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    "half", [b'{"step": 3, "a', b'{"step": 3, "a": "\xe5\xa5', b"{"]
)
def test_a_last_half_line_is_a_kills_and_the_others_stay_as_they_are(half, tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step":1,  "a": 1.50}\n'  # not as json.dumps writes it
    path.write_bytes(whole + half)
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1.5}]
    Writer(tmp_path, 1, 1, 0.0).close()
    assert path.read_bytes() == whole


def test_a_last_line_without_its_end_is_kept_and_gets_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "a": 1.0}')
    writer = Writer(tmp_path, 1, 1, 0.0)
    writer.write(2, {"a": 2.0})
    writer.close()
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}]


def events(folder):
    """(step, status, numbers) of all events, in the order of the files."""
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            numbers = {x.tag: x.simple_value for x in event.summary.value}
            yield event.step, event.session_log.status, numbers
            at += size + 16


def test_tensorboard_sees_all_numbers_and_from_where_a_resume_goes_on(tmp_path):
    for start, number in ((0, 1.0), (1, 5.0)):
        writer = Writer(tmp_path, start, 1, 0.0)
        writer.write(start + 1, {"a": number})
        writer.write(start + 2, {"a": number + 1})
        writer.close()
    found = [x for x in events(tmp_path / "events") if x[1] or x[2]]
    first = [(1, SessionLog.START, {}), (1, 0, {"a": 1.0}), (2, 0, {"a": 2.0})]
    second = [(2, SessionLog.START, {}), (2, 0, {"a": 5.0}), (3, 0, {"a": 6.0})]
    assert found == first + second


def test_a_rate_is_by_the_time_between_the_ends_of_steps(tmp_path, monkeypatch):
    """Not by the time between two starts, which a device takes in a moment."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def ends_at(moment):  # known as soon as its numbers are fetched
        def fetch(numbers):
            clock[0] = moment[0]
            moment[0] += 2.0
            return {k: float(x) for k, x in numbers.items()}

        return fetch

    monkeypatch.setattr(metrics, "to_floats", ends_at([10.0]))
    writer = Writer(tmp_path, 0, 1, 0.0)
    for step in (1, 2, 3):
        writer.write(step, {"tokens_per_second": Rate(100.0), "a": 1.0})
    writer.close()
    found = [line["tokens_per_second"] for line in read_metrics(tmp_path)]
    assert found == [10.0, 50.0, 50.0]
    assert all(line["a"] == 1.0 for line in read_metrics(tmp_path))

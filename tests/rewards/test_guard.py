"""A fault of a function is named, and loses nothing else."""

import sys
import threading
import time

import numpy as np
import pytest

from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards import guard
from rlhf_jax.rewards.guard import Reward, keeping_prints, values_of

PROMPTS = [Prompt(f"q{i}", ({"role": "user", "content": "?"},)) for i in range(4)]
RESPONSES = [Response(str(i), True, [i + 1]) for i in range(4)]
NEVER = threading.Event()


def call(function, *, seconds=0.2, first_only=False):
    reward = Reward("mine", "own.py:mine", "own.py", function, seconds)
    with keeping_prints():
        return values_of(reward, PROMPTS, RESPONSES, first_only=first_only)


def number(response) -> float:
    return float(response.text)


@pytest.mark.parametrize(
    "function",
    [
        lambda ps, rs: [number(r) for r in rs],
        lambda ps, rs: [int(r.text) for r in rs],
        lambda ps, rs: tuple(np.float64(r.text) for r in rs),
        lambda ps, rs: np.array([number(r) for r in rs], np.float16),
    ],
)
def test_numbers_of_any_kind_are_rewards(function):
    values, faults = call(function)
    np.testing.assert_array_equal(values, [0, 1, 2, 3])
    assert (values.dtype, faults) == (np.float32, {})


def test_truth_values_are_0_and_1():
    np.testing.assert_array_equal(
        call(lambda ps, rs: [r.text == "2" for r in rs])[0], [0, 0, 1, 0]
    )


def at_row_2(wrong):
    """A function that does something wrong on row 2 alone."""

    def function(prompts, responses):
        return [wrong() if r.text == "2" else number(r) for r in responses]

    return function


def raising():
    raise KeyError("answer")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (at_row_2(raising), "raised KeyError: 'answer'"),
        (at_row_2(sys.exit), "raised SystemExit"),
        (at_row_2(NEVER.wait), "gave no result within reward_timeout=0.2.*is at line"),
        (at_row_2(lambda: float("nan")), "returned nan, which is not finite"),
        (at_row_2(lambda: 1e39), "returned 1e\\+39, which is not finite in float32"),
        (at_row_2(lambda: 10**400), "instead of a number"),
        (at_row_2(lambda: None), "returned 'None' instead of a number"),
        (at_row_2(lambda: "1.0"), "returned '1.0' instead of a number"),
        (at_row_2(lambda: 1j), "instead of a number"),
        (at_row_2(lambda: np.zeros(2)), "instead of a number"),
    ],
)
def test_a_fault_on_one_row_names_it_and_leaves_the_others_their_rewards(
    function, message
):
    values, faults = call(function)
    assert list(faults) == [2]
    with pytest.raises(ValueError, match=message):
        raise ValueError(faults[2])
    np.testing.assert_array_equal(values, [0, 1, 0, 3])
    assert next(iter(call(function, first_only=True)[1])) == 2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda ps, rs: [1.0], "returned 1 numbers for 4 responses, on a batch of 4"),
        (lambda ps, rs: [1.0] * 5, "returned 5 numbers for 1 responses"),
        (lambda ps, rs: np.ones((2, len(rs))), "returned 2 numbers for 1 responses"),
        (lambda ps, rs: "1" * len(rs), "returned a str instead of a list of 1"),
        (lambda ps, rs: {r.text: 1.0 for r in rs}, "returned a dict"),
        (lambda ps, rs: (1.0 for _ in rs), "returned a generator"),
        (lambda ps, rs: None, "returned a NoneType"),
        (lambda ps, rs: 1.0, "returned a float"),
        (lambda ps: [1.0], "raised TypeError"),
    ],
)
def test_another_length_or_type_is_a_fault_of_every_row(function, message):
    values, faults = call(function)
    assert list(faults) == [0, 1, 2, 3]
    for said in faults.values():
        assert message in said
    np.testing.assert_array_equal(values, 0.0)


def test_a_function_that_always_hangs_is_given_up_after_a_few_rows():
    begin = time.monotonic()
    _, faults = call(lambda ps, rs: NEVER.wait(), seconds=0.05)
    assert len(faults) == 4
    assert "was not called, since 3 rows" in faults[3]
    assert time.monotonic() - begin < 30  # and not for ever


def test_a_line_of_the_users_file_is_named(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("def f(prompts, responses):\n    x = 1\n    return x / 0\n")
    space = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    reward = Reward("f", f"{path}:f", str(path), space["f"], 5.0)
    _, faults = values_of(reward, PROMPTS, RESPONSES, first_only=True)
    assert faults == {0: f"raised ZeroDivisionError: division by zero ({path}, line 3)"}


def test_records_that_a_function_changes_are_copies():
    def function(prompts, responses):
        prompts[0].messages[0]["content"] = "changed"
        prompts.clear()
        responses[1].tokens.append(7)
        return [0.0] * 4

    assert call(function)[1] == {}
    assert PROMPTS[0].messages[0]["content"] == "?"
    assert (len(PROMPTS), RESPONSES[1].tokens) == (4, [2])


def test_prints_are_kept_from_the_terminal_and_told_once(capsys, caplog):
    guard._told.clear()

    def function(prompts, responses):
        print("I was here")
        return [0.0] * 4

    for _ in range(2):
        assert call(function)[1] == {}
    print("mine")
    assert capsys.readouterr().out == "mine\n"
    assert caplog.text.count("own.py:mine prints") == 1
    assert "I was here" in caplog.text

"""Dynamic sampling: what is drawn, what is learned from, and the resume of a run."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.batches import Rollout
from rlhf_jax.ppo.draws import Draw, Rows, draw_until_full
from rlhf_jax.ppo.forward import ModelOutputs
from rlhf_jax.stages import ppo
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.metrics import MEASURED, read_metrics
from rlhf_jax.training.weights import load_model
from tests.trees import assert_trees_close


def draw_of(scores: list[list[float]], first: int) -> Draw:
    """A batch of prompts with two responses each, whose tokens are numbered."""
    rows = np.arange(first, first + 2 * len(scores), dtype=np.int32)[:, None]
    mask = np.ones(rows.shape, bool)
    zeros = np.zeros(rows.shape, np.float32)
    responses = Rollout(rows, mask, rows, mask, zeros, mask[:, 0])
    outputs = ModelOutputs(zeros, zeros, zeros, None, None)
    scores = np.array(scores, np.float32).reshape(-1)
    return Draw(Rows(responses, outputs, scores, zeros[:, 0]), None, 2.0, 0.0, 0.0)


def differ(scores, ended):
    groups = jnp.asarray(scores).reshape(-1, 2)
    return groups[:, 0] != groups[:, 1]


BATCHES = [
    [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]],
    [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]],
    [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]],
    [[9.0, 0.0], [0.0, 9.0], [0.0, 9.0]],
]


@pytest.mark.parametrize(
    ("most", "count", "rows", "wanted"),
    [
        (1, 1, [0, 1, 2, 3, 4, 5], "100"),
        (2, 2, [0, 1, 12, 13, 4, 5], "110"),
        (3, 3, [0, 1, 12, 13, 20, 21], "111"),
        (4, 3, [0, 1, 12, 13, 20, 21], "111"),  # the fourth is never computed
    ],
)
def test_batches_are_drawn_until_each_prompt_has_something_to_teach(
    most, count, rows, wanted
):
    computed = []

    def draws():
        for i in range(most):
            computed.append(i)
            yield draw_of(BATCHES[i], 10 * i)

    drawn, filled, learned, metrics = draw_until_full(draws(), differ)
    assert len(drawn) == len(computed) == metrics["draws/count"] == count
    np.testing.assert_array_equal(filled.responses.responses[:, 0], rows)
    np.testing.assert_array_equal(learned, np.repeat([c == "1" for c in wanted], 2))
    equal = [sum(a == b for a, b in batch) for batch in BATCHES[:count]]
    assert metrics["draws/equal_fraction"].value() == sum(equal) / (3 * count)
    assert metrics["draws/left_out_fraction"].value() == wanted.count("0") / 3
    mean = np.mean(BATCHES[:count])
    assert metrics["draws/scores"].value() == pytest.approx(mean)


def test_without_it_the_first_batch_is_taken_as_it_is():
    drawn, rows, wanted, metrics = draw_until_full(iter([draw_of(BATCHES[0], 0)]), None)
    assert rows is drawn[0].rows
    assert (wanted, metrics) == (None, {})


REWARD = """
def is_even(prompts, responses):
    return [float(len(response.tokens) % 2 == 0) for response in responses]
"""


def test_a_run_that_is_killed_goes_on_to_the_same_bits(
    stage_config, tmp_path, monkeypatch
):
    (tmp_path / "rewards.py").write_text(REWARD)
    config = stage_config(
        "ppo",
        advantage="grpo",
        baseline="none",
        samples_per_prompt=2,
        max_draws=3,
        missing_end_penalty=0.0,
        mask_overlong=False,
        reference_rate=0.1,
        rewards=f"{tmp_path / 'rewards.py'}:is_even=1.0",
        save_every=1,
        eval_every=0,
    )
    ppo.run(config, str(tmp_path / "whole"))

    save = Checkpoints.save

    def save_and_die(self, step, items, meta, *numbers):
        save(self, step, items, meta, *numbers)
        self.wait()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            ppo.run(config, str(tmp_path / "killed"))
    ppo.run(config, str(tmp_path / "killed"))

    whole, killed = (
        [
            {k: x for k, x in line.items() if not k.startswith(MEASURED)}
            for line in read_metrics(tmp_path / name)
        ]
        for name in ("whole", "killed")
    )
    assert len(whole) > 1
    assert whole == killed
    assert {line["draws/count"] for line in whole} <= {1, 2, 3}
    assert any(0 < line["draws/equal_fraction"] < 1 for line in whole)
    for item in ("model", "reference"):
        a, b = (load_model(tmp_path / x, item=item) for x in ("whole", "killed"))
        assert_trees_close(a, b, atol=0, rtol=0)

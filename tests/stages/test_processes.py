"""Two processes with a device each make the run of one process with two."""

import jax
import numpy as np

from rlhf_jax.training.metrics import MEASURED, read_metrics
from rlhf_jax.training.weights import load_model
from tests.processes import SMALL, finish, start, start_two


def test_an_iteration_of_ppo_in_two_processes_is_that_of_one(data_folder, tmp_path):
    config = SMALL | {"data.path": data_folder, "total_steps": 1}
    both = start_two(config, tmp_path / "two")
    outputs = [finish(process) for process in both]
    finish(start(config, tmp_path / "one", 2))

    (two,), (one,) = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    assert two.keys() == one.keys()
    for name, value in one.items():
        if not name.startswith(MEASURED):
            np.testing.assert_allclose(
                two[name], value, rtol=2e-4, atol=2e-5, err_msg=name
            )
    for item in ("model", "value"):
        models = [load_model(tmp_path / n, item=item) for n in ("two", "one")]
        for x, y in zip(*map(jax.tree.leaves, models), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4)
    # One process tells of the run.
    assert "short enough" in outputs[0]
    assert "short enough" not in outputs[1]

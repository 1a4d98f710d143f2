"""PPO of a mixture of experts that sends tokens where the sampler sent them."""

import pytest

from rlhf_jax.ppo import forward
from rlhf_jax.stages import ppo
from rlhf_jax.training.metrics import read_metrics


@pytest.mark.slow
def test_a_run_replays_the_experts_of_its_policy_and_of_no_other_model(
    stage_config, tmp_path, monkeypatch
):
    """With several draws of groups of responses, in packed rows."""
    replayed, response_logprobs = [], forward.packed_logprobs

    def noting(policy, rows, *, routing, **options):
        replayed.append(None if routing is None else routing.shape)
        return response_logprobs(policy, rows, routing=routing, **options)

    monkeypatch.setattr(forward, "packed_logprobs", noting)
    config = stage_config(
        "ppo",
        model="tiny_moe",
        dtype="bfloat16",
        rollout_param_dtype="int8",
        replay_routing=True,
        advantage="grpo",
        baseline="none",
        samples_per_prompt=2,
        max_draws=2,
        total_steps=2,
        eval_every=0,
        save_every=0,
    )
    ppo.run(config, str(tmp_path / "run"))
    kinds = {shape and shape[2:] for shape in replayed}
    assert kinds == {None, (3, 2)}  # of the reference; in layers, of a token
    lines = read_metrics(tmp_path / "run")
    assert [line["val/ratio_first"] for line in lines] == pytest.approx([1, 1], abs=0.1)

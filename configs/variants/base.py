"""Settings that the variants share: right answers as the only reward, small groups."""

from pathlib import Path

from ml_collections import ConfigDict

from configs import common, pairs, ppo

# Verifiable: a function, no reward model. Another task wants another function here.
IS_RIGHT = f"{Path(__file__).parent / 'rewards.py'}:is_right=1.0"


def policy_gradient(preset: str, *, samples_per_prompt: int = 8) -> ConfigDict:
    """Return configs/ppo.py without reward model, critic, baseline and SFT term."""
    c = ppo.get_config(preset)
    c.rewards = IS_RIGHT
    c.baseline = "none"
    c.samples_per_prompt = samples_per_prompt
    c.beta_sft = 0.0
    c.missing_end_penalty = 0.0
    if common.is_small(preset):
        c.total_steps = 24
        c.eval_every = 0
        c.save_every = 24
    return c


def right_and_wrong_pairs(preset: str) -> ConfigDict:
    """Return configs/pairs.py with pairs of a right and a wrong answer."""
    c = pairs.get_config(preset)
    c.rewards = IS_RIGHT
    c.num_responses = 8
    c.min_margin = 0.5
    return c

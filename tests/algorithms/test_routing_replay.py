"""The experts that a mixture chose when it sampled take the place of its choices when
its policy scores and learns."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import ppo
from rlhf_jax.batches import Experience
from rlhf_jax.data import packing
from rlhf_jax.generation import responses as responses_
from rlhf_jax.generation.rollout import rollout
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.ppo.forward import packed_routing, policy_logprobs
from rlhf_jax.training.accumulate import value_and_grad
from tests.algorithms import ppo_parts
from tests.models.families import FAMILIES, random_model
from tests.trees import assert_trees_close

# Six experts, of which a token goes to three.
CONFIG = dataclasses.replace(
    FAMILIES["glm4_moe"], num_layers=3, experts_per_token=3, scan_layers=True
)
LATENT = dataclasses.replace(
    FAMILIES["glm4_moe_lite"], num_layers=3, experts_per_token=3
)
SAMPLING = dataclasses.replace(ppo_parts.SAMPLING, max_new_tokens=12)
HYPER = ppo_parts.changed(temperature=SAMPLING.temperature)
NEAR, FAR = 1e-4, 1e-2  # nats


def with_ties(config, preferred: slice) -> ChatGLM:
    """A model whose last three experts have the router's columns of the first three: of
    two such pairs a token goes to one and a half, and a hair decides to which half."""
    model = random_model(config)
    router = model.blocks.mlp.router
    kernel = router.kernel[...]
    router.kernel[...] = kernel.at[..., 3:].set(kernel[..., :3])
    hair = jnp.zeros_like(router.correction[...]).at[:, preferred].set(1e-4)
    router.correction[...] = hair
    return model


@jax.jit
def gaps(model, rolled, routing=None, packed=None):
    """The distances between the log-probabilities of sampler and trainer, [B, R]."""
    out = policy_logprobs(model, rolled, packed, hyper=HYPER, routing=routing)
    return jnp.where(rolled.response_mask, jnp.abs(out.logprobs - rolled.logprobs), 0)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("config", "mesh"),
    [
        (CONFIG, None),
        pytest.param(LATENT, None, marks=pytest.mark.slow),
        pytest.param(
            dataclasses.replace(CONFIG, expert_width=24),
            (2, 2, 2),
            marks=[pytest.mark.slow, pytest.mark.devices(8)],
        ),
    ],
)
def test_log_probabilities_of_the_sampler_are_those_of_its_experts(
    config, mesh, monkeypatch
):
    """Also of responses that took the rows of others and share a prompt's cache. The
    experts of other rows or of the token before are no better than the router's."""
    monkeypatch.setattr(responses_, "STEPS", 3)
    prompts = ppo_parts.make_prompts()
    with jax.set_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext():
        sampler, trainer = (
            with_ties(config, preferred) for preferred in (slice(3), slice(3, 6))
        )
        sample = functools.partial(
            rollout, sampler, prompts, jax.random.key(0), SAMPLING, samples=4, rows=16
        )
        rolled = sample(routed=True)
        routing, plain = rolled.routing, sample()
        assert plain.routing is None
        np.testing.assert_array_equal(plain.responses, rolled.responses)
        mask = np.concatenate([rolled.prompt_mask, rolled.response_mask], axis=1)
        assert routing.shape == (32, 17, 2, 3)
        assert ((np.asarray(routing) >= 0) == mask[..., None, None]).all()

        bare = dataclasses.replace(rolled, routing=None)
        assert gaps(trainer, bare, routing).max() < NEAR
        for name, other in {
            "router's": None,
            "other rows'": jnp.roll(routing, 1, axis=0),
            "other layers'": routing[:, :, ::-1],
            "of the token before": jnp.roll(routing, 1, axis=1),
            "of the prompt alone": routing.at[:, 5:].set(-1),
            "of the response alone": routing.at[:, :5].set(-1),
        }.items():
            assert (gaps(trainer, bare, other) > FAR).sum() > 50, name


def test_the_router_learns_from_the_weights_of_the_experts_that_are_given():
    model = random_model(CONFIG)
    tokens = jnp.asarray(np.random.default_rng(0).integers(3, 60, (2, 6)))
    given = jnp.broadcast_to(jnp.array([4, 0, 2]), (2, 6, 2, 3))

    @jax.jit
    @jax.grad
    def gradient(model):
        return jnp.sin(model.hidden(tokens, routing=given)).sum()

    d = gradient(model).blocks.mlp
    for x in (d.router.kernel, d.experts.up.kernel.swapaxes(1, 2)):
        size = np.abs(np.asarray(x[...])).reshape(2, 32, 6, -1).max((1, 3))
        assert (size[:, [0, 2, 4]] > 1e-3).all()
        assert (size[:, [1, 3, 5]] == 0).all()


def test_packed_rows_and_microbatches_send_every_token_to_its_experts():
    """Loss and gradient equal those of rows of their own where each token has experts
    of its own, at random."""
    model, rng = random_model(CONFIG), np.random.default_rng(0)
    hyper = dataclasses.replace(HYPER, microbatches=2)
    rolled = rollout(
        model, ppo_parts.make_prompts(16), jax.random.key(0), SAMPLING, routed=True
    )
    routing = np.argsort(rng.random((*rolled.routing.shape[:3], 6)))[..., :3]
    number = jnp.asarray(rng.normal(size=rolled.logprobs.shape), jnp.float32)
    experience = Experience(
        prompts=rolled.prompts,
        prompt_mask=rolled.prompt_mask,
        responses=rolled.responses,
        response_mask=rolled.response_mask,
        old_logprobs=rolled.logprobs,
        ref_logprobs=rolled.logprobs,
        advantages=number,
        weights=None,
        old_values=None,
        returns=None,
        routing=jnp.asarray(routing, jnp.int16),
    )
    host = jax.tree.map(np.asarray, dataclasses.replace(rolled, routing=None))
    packed = packing.pack_minibatches(
        host, np.arange(16)[None], pad_id=0, unit=2, places=True
    )
    packed = jax.tree.map(lambda x: jnp.asarray(x[0]), packed)
    assert len(packed.tokens) < 16
    inside = np.asarray(packed_routing(experience.routing, packed)) >= 0
    assert (inside == packed.mask[..., None, None]).all()

    @jax.jit
    def loss_and_gradient(model, experience):
        share = functools.partial(
            ppo.policy_loss_fn,
            count=experience.response_mask.sum(),
            num_sft_tokens=None,
            kl_coef=0.0,
            hyper=hyper,
        )
        batch = (experience, None)
        loss, metrics, gradient = value_and_grad(share, model, batch, microbatches=2)
        return loss, metrics["loss/policy"], gradient

    expected = loss_and_gradient(model, experience)
    got = loss_and_gradient(model, ppo.in_packed_rows(experience, packed))
    assert_trees_close(got, expected, rtol=1e-4, atol=1e-5)

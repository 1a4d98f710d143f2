# So that `rlhf_jax.generation.generate(model, ...)` is the function, not its module.
from rlhf_jax.generation.generate import generate as generate

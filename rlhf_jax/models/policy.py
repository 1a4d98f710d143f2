"""The interface of a policy: the part of a language model that algorithms use."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.config import ChatGLMConfig


@runtime_checkable
class Policy(Protocol):
    """A language model that gives hidden states and the matrix to logits.

    `ChatGLM` is one. A model of another family that has these three can be trained by
    every algorithm.
    """

    config: ChatGLMConfig

    @property
    def output_matrix(self) -> Float[Array, "D V"]:
        """The matrix that turns hidden states into logits."""
        ...

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | None = None,
        *,
        segments: Int[Array, "B T"] | Int[np.ndarray, " T"] | None = None,
        examples: Int[Array, "B T"] | None = None,
        routing: Int[Array, "B T L K"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Compute the hidden states after the final norm.

        Args:
            mask: True at real tokens; None: all are.
            segments: 0 on a prompt, k on its k-th response; a token sees its own
                segment and the prompt.
            examples: the example of each token where a row holds several; a token sees
                its own example alone.
            routing: of a mixture, the experts of each token in each layer with experts;
                -1 and None leave the choice to the model.
        """
        ...

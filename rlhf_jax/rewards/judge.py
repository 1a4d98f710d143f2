"""The mark of a chat model (data/judge_messages.py) for each response, from 0.1 to 1.

The judge sees the prompt's reference. Its answers are kept in a file: none is paid for
twice, and a run that resumes gets the same marks.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.chat_client import open_client
from rlhf_jax.data.judge_messages import OVERALL, mark_messages, read_marks
from rlhf_jax.data.records import Prompt, Response
from rlhf_jax.rewards.rows import Function


def judge(service: ConfigDict, cache: Path) -> Function:
    """Open the service and return the reward; NaN where there is no verdict.

    Raises:
        ValueError: the service does not answer; see `ChatClient.check`.
    """
    client = open_client(service, cache, key="config.reward_judge")
    client.check()

    def function(
        prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> np.ndarray:
        requests = [
            mark_messages(prompt, response.text, prompt.reference)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        verdicts = client.answers(requests)
        marks = [read_marks(verdict, OVERALL)[1] for verdict in verdicts]
        return np.array(marks, np.float32) / 10

    return function

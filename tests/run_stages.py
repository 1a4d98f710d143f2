"""Stages one after another, in as many processes as are told to join:

python -m tests.run_stages STAGES.json [ADDRESS:PORT COUNT INDEX]

STAGES.json: [[stage, fields of its config, folder], ...].
"""

import json
import os
import sys
import time
from pathlib import Path

from tests.reliability import smallest

SMALL = {"model": "micro", "batch_size": 8, "num_samples": 4, "num_prompts": 8}
SMALL |= {"max_response_tokens": 12, "max_prompt_tokens": 192, "pad_to_multiple": 64}


def config_of(stage: str, fields: dict):
    """The smallest config of a stage, with some fields changed."""
    import importlib

    known = ("sft", "collect", "reward", "ppo", "pairs", "dpo", "evaluate")
    if stage in known:
        config = smallest.get_config(stage)
    else:
        config = importlib.import_module(f"configs.{stage}").get_config()
        config.update({key: x for key, x in SMALL.items() if key in config})
    config.update_from_flattened_dict(fields)
    return config


def slow_down_the_disk() -> None:
    """Let the other processes be the first to arrive where process 0 writes a file."""
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.05)
        fsync(descriptor)

    os.fsync = slow


def main(stages: str, address: str = "", count: str = "1", index: str = "0") -> None:
    from rlhf_jax.launching import processes
    from rlhf_jax.launching.stage import run_stage

    with processes.failing_at_once(), processes.missing_no_one():
        if address:
            names = ("coordinator", "num_processes", "process_id")
            values = (address, int(count), int(index))
            processes.join(dict(zip(names, values, strict=True)))
            if index == "0":
                slow_down_the_disk()
        for stage, fields, folder in json.loads(Path(stages).read_text()):
            run_stage(config_of(stage, fields), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])

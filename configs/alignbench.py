"""AlignBench: Chinese questions, marked from 1 to 10 by a chat model.

Run: python launch/evaluate.py --config=configs/alignbench.py:chatglm3_6b \
         --workdir=runs/alignbench --config.policy=runs/ppo \
         --config.questions=AlignBench/data/data_v1.1_release.jsonl \
         --config.service.url=https://api.openai.com/v1 --config.service.model=gpt-4 \
         --config.service.api_key_variable=OPENAI_API_KEY
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("alignbench", preset)
    del c.data  # the questions are all that is read
    c.policy = ""  # a workdir, or a Hugging Face folder
    c.model_name = ""  # in the files; "": the last part of policy
    c.questions = ""  # data_v1.1_release.jsonl of github.com/THUDM/AlignBench
    c.judge = "marks"  # "none": only answers, for the benchmark's own judge.py
    c.service = common.chat_service(max_tokens=2048)  # the paper's: gpt-4-0613
    c.batch_size = 32  # questions at a time [1, 2**20]
    # The longest question has 2,811 characters. [1, 2**20]
    c.max_prompt_tokens = 64 if common.is_small(preset) else 3072
    # where generation stops [1, 2**20]
    c.max_response_tokens = common.lengths(preset).generated
    return c

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
    # The policy that answers: a workdir or a Hugging Face folder.
    c.policy = ""
    # The name of the model in the files; "" takes the last part of policy.
    c.model_name = ""
    # The file data_v1.1_release.jsonl of github.com/THUDM/AlignBench.
    c.questions = ""
    # "marks" has the answers marked by the service; "none" writes the answers alone,
    # for the benchmark's own judge.py.
    c.judge = "marks"
    # The chat model that marks the answers; gpt-4-0613 in the paper.
    c.service = common.chat_service(max_tokens=2048)
    # Decodes this many answers side by side. [1, 2**20]
    c.batch_size = 32
    # Leaves out questions that are longer, in tokens; the longest question has 2,811
    # characters. [1, 2**20]
    c.max_prompt_tokens = 64 if common.is_small(preset) else 3072
    # Cuts an answer at this many tokens, its end token included. [1, 2**20]
    c.max_response_tokens = common.lengths(preset).generated
    return c

"""The whole pipeline: SFT, clean comparisons, reward model, PPO, DPO, evaluation.

Run: python launch/pipeline.py --config=configs/pipeline.py:tiny --workdir=runs/tiny
     python launch/pipeline.py --config=configs/pipeline.py:tiny_moe --workdir=runs/moe
     python launch/pipeline.py --config=configs/pipeline.py:hh --workdir=runs/hh \
         --config.data.path=FOLDER
     python launch/pipeline.py --config=configs/pipeline.py:smollm2 \
         --workdir=runs/aligned --config.data.path=FOLDER

"tiny_moe" is "tiny" with a mixture of experts. The last starts from a published chat
model instead of SFT (README.md), trains its last ten layers, and holds half of the
comparisons back for a judge.
"""

from ml_collections import ConfigDict

from configs import (
    collect,
    common,
    dpo,
    evaluate,
    pairs,
    ppo,
    prepare_comparisons,
    reward,
    sft,
)

LAST_TEN_OF_30 = r"blocks\.2[0-9]\.|final_norm|head"
PRESETS = ("tiny", "tiny_moe", "hh", "smollm2")


def get_config(preset="tiny"):
    common.check_preset(preset, PRESETS, "pipeline")
    if preset == "tiny_moe":  # "tiny" with a mixture of experts
        c = get_config("tiny")
        # The preset of the model that SFT makes.
        c.sft.model = preset
        return c
    c = ConfigDict()
    # The seed of every stage and of the testbed, whose worlds 0 to 9 are for published
    # results alone. [0, inf)
    c.seed = 100
    c.data = common.data(preset)
    # True trains the reward model on the comparisons of the data folder, False on newly
    # collected ones.
    c.human_comparisons = preset != "tiny"
    # The policy to align: a workdir or a Hugging Face folder; "" makes one by SFT.
    c.init_from = "runs/smollm2" if preset == "smollm2" else ""
    # True trains a second reward model like the first, on the comparisons that
    # prepare_comparisons holds out, and lets it watch PPO (ppo.judge_model) and judge
    # the evaluation; nothing is trained against it.
    c.held_out_judge = preset == "smollm2"
    c.sft = sft.get_config(preset)
    c.collect = collect.get_config(preset)
    c.prepare_comparisons = prepare_comparisons.get_config(preset)
    c.reward = reward.get_config(preset)
    c.ppo = ppo.get_config(preset)
    # The pairs that DPO trains on.
    c.pairs = pairs.get_config(preset)
    c.dpo = dpo.get_config(preset)
    c.evaluate = evaluate.get_config(preset)
    if preset == "smollm2":
        _for_two_cores(c)
    return c


def _for_two_cores(c):
    """Sizes and a trained part with which 30 layers take an hour on two cores."""
    c.prepare_comparisons.test_share = 0.5  # the judge's
    for stage in (c.reward, c.ppo, c.dpo):
        stage.optimizer.trainable = LAST_TEN_OF_30
        stage.optimizer.learning_rate = 1e-5
        stage.microbatches = 4  # 8 GiB
        stage.pad_to_multiple = 64
    c.ppo.value_optimizer.update(trainable=LAST_TEN_OF_30)
    c.reward.update(
        batch_size=16,
        too_long="truncate_prompt",
        max_prompt_tokens=96,
        max_response_tokens=128,
        validation_share=0.05,
        num_centring_pairs=128,
        eval_every=60,
        save_every=60,
    )
    c.reward.optimizer.update(learning_rate=5e-5)
    c.ppo.update(
        advantage="rloo",
        samples_per_prompt=2,
        baseline="none",
        beta_sft=0.0,
        batch_size=32,
        minibatches=2,
        total_steps=16,
        eval_every=8,
        save_every=4,
        frozen_param_dtype="float32",
    )
    c.pairs.update(max_prompts=128, batch_size=64)
    c.dpo.update(batch_size=16, beta_sft=0.0, epochs=2, num_eval_prompts=32)
    c.dpo.update(save_every=8)
    c.evaluate.update(
        num_prompts=100, batch_size=50, probes="testbed", judge="reward_model"
    )
    c.evaluate.data.testbed.update(
        model_name="SmolLM", maker_name="Hugging Face", num_probes=10
    )

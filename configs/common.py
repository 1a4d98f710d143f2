"""Fields that the configs share, and their presets."""

from typing import NamedTuple

from ml_collections import ConfigDict

from rlhf_jax.models.presets import PRESETS

# "tiny" is a small model on the testbed, minutes on a CPU; "hh" a model of the same
# size on real comparisons; "smollm2" a published chat model of 135M parameters, on
# real comparisons, an hour on a CPU; the others have the paper's settings, for a pod.
SMALL = ("micro", "tiny", "tiny_half", "tiny_quarter", "tiny_moe", "benchmark")
PUBLISHED = tuple(name for name in PRESETS if name not in SMALL)
STAGE_PRESETS = ("tiny", "hh", "smollm2", *PUBLISHED)


def check_preset(preset: str, presets: tuple[str, ...], file: str) -> None:
    if preset not in presets:
        raise ValueError(
            f"configs/{file}.py has no preset {preset!r}; it has: "
            f"{', '.join(presets)}. Write --config=configs/{file}.py:{presets[0]}."
        )


def is_small(preset: str) -> bool:
    return preset in ("tiny", "hh")


def is_for_cpus(preset: str) -> bool:
    return is_small(preset) or preset == "smollm2"


def dtype(preset: str) -> str:
    return "float32" if is_for_cpus(preset) else "bfloat16"


def stage(name: str, preset: str) -> ConfigDict:
    """The fields of every stage."""
    check_preset(preset, STAGE_PRESETS, name)
    c = ConfigDict()
    # The module in rlhf_jax/stages.
    c.stage = name
    # The seed of every random number of the run. [0, inf)
    c.seed = 0
    # The sizes of the mesh axes data, fsdp and tensor (rlhf_jax/parallel/mesh.py); -1
    # takes the remaining devices. A fourth size, of the axis pipe, makes SFT, reward
    # model and DPO a pipeline.
    c.mesh = (1, -1, 1)
    # The dtype of the computation.
    c.dtype = dtype(preset)
    # The precision of products of float32 matrices: "highest"; "high", three bfloat16
    # passes on TPUs and TF32 on GPUs; "default", one pass on TPUs and TF32 on GPUs;
    # "auto" is "highest" where dtype is float32, and "default" elsewhere. CPUs and
    # 16-bit matrices know one precision.
    c.matmul_precision = "auto"
    c.data = data(preset)
    return c


def with_model(c: ConfigDict, preset: str) -> ConfigDict:
    """Fields of stages that start from a policy."""
    # The start of the policy: the workdir of a stage, for its newest checkpoint;
    # WORKDIR/checkpoints/120 or, after SFT and PPO, WORKDIR/checkpoints/best; or a
    # Hugging Face folder. "" makes random weights.
    c.init_from = ""
    # The preset of the model that is made when init_from is "".
    c.model = "tiny" if is_for_cpus(preset) else preset
    # The dtype of the stored weights.
    c.param_dtype = "float32"
    # True compiles one layer and loops over the layers; False compiles every layer
    # separately.
    c.scan_layers = not is_small(preset)
    # The activations that the backward pass computes again to save memory: "none";
    # "dots", all but the results of matrix products; "full", all of a layer.
    c.remat = "none" if is_for_cpus(preset) else "full"
    # The implementation of attention: "xla"; "splash" on TPUs; "cudnn" on GPUs in 16
    # bits, with a warning and "xla" for shapes that it lacks; "auto" takes the one that
    # suits the machine.
    c.attention = "xla" if is_small(preset) else "auto"
    return c


def with_training(c: ConfigDict) -> ConfigDict:
    """Fields of stages that train."""
    # Splits a batch into this many parts, whose gradients are added, to save memory.
    # [1, inf)
    c.microbatches = 1
    # Stops the run after this many non-finite updates in a row. [1, inf)
    c.max_skipped_updates = 10
    # Flags a loss this many standard deviations above the mean of the last 100, and
    # saves its batch for launch/replay.py; 0.0 flags none. [0, inf)
    c.spike_zscore = 8.0
    # Writes the metrics also to "wandb" (Weights & Biases) or "trackio", packages to be
    # installed; "" writes metrics.jsonl and TensorBoard's file alone.
    c.logger = ""
    # Keeps this many of the newest checkpoints; SFT and PPO also keep the best one.
    # [1, inf)
    c.keep_checkpoints = 2
    c.lora = lora(c.dtype)
    return c


def lora(base_dtype: str) -> ConfigDict:
    """Low-rank adapters (docs/lora.md)."""
    c = ConfigDict()
    # The rank of the adapters that are trained in place of all parameters, at most the
    # model's width; param_dtype is then their dtype. 0 trains all parameters. [0, inf)
    c.rank = 0
    # The scale of the adapters: their product is multiplied by alpha / rank; 0 takes
    # the rank, a factor of 1. [0, inf)
    c.alpha = 32.0
    # True multiplies by alpha / sqrt(rank) instead (rsLoRA).
    c.rslora = False
    # The linear maps of a block that get an adapter: a regular expression of the names
    # attention.query, attention.key_value, attention.output, mlp.up and mlp.down; "" is
    # all.
    c.maps = ""
    # The dtype in which the model under the adapters is stored, which is never
    # updated: a float or "int8".
    c.base_dtype = base_dtype
    return c


class Lengths(NamedTuple):
    """Limits in tokens. Longer texts are counted, and left out unless the `too_long` of
    a config says otherwise."""

    dialogue: int
    prompt: int
    response: int  # of a comparison
    generated: int  # the limit of sampled responses


def lengths(preset: str) -> Lengths:
    small = {
        "tiny": Lengths(192, 64, 128, 128),
        "hh": Lengths(256, 160, 96, 48),
        "smollm2": Lengths(256, 160, 96, 64),
    }
    return small.get(preset, Lengths(2048, 1024, 1024, 1024))


def chunk_size(preset: str) -> int:
    """Return how many positions of a row are projected to the vocabulary at once; 0 is
    all of them."""
    return 0 if is_for_cpus(preset) else 512


def data(preset: str) -> ConfigDict:
    c = ConfigDict()
    # The source of the data: "testbed"; a file or folder of your own
    # (docs/your_own_data.md); or "hf:NAME", "hf:NAME:SUBSET" or "tfds:NAME" for a
    # published data set.
    c.path = "" if preset in ("hh", "smollm2") else "testbed"
    # The layout of the rows of a data set, one of docs/data_formats.md; "" recognises
    # the layout of each row by its fields.
    c.layout = ""
    # The name of the training part of a folder or data set.
    c.train_split = "train"
    # The name of the held-out part; "" holds out test_share of the training part.
    c.test_split = "test"
    # The share of the conversations held out of a file, or of a data set where
    # test_split is "". [0, 1)
    c.test_share = 0.05
    # The treatment of a bad record: "error" stops the run; "skip" leaves the record out
    # and lists it in bad_records.jsonl.
    c.on_bad_record = "error"
    # The folder of a tokenizer; "" takes the tokenizer of the start model, or trains
    # one where there is none.
    c.tokenizer = ""
    # The number of tokens of a tokenizer that is trained here. [1, 2**20]
    c.vocab_size = 2048 if preset == "hh" else 1024
    c.testbed = testbed()
    c.annotators = annotators()
    return c


def testbed() -> ConfigDict:
    """The synthetic world (rlhf_jax/data/testbed/world.py)."""
    c = ConfigDict()
    # The seed of the synthetic world: its facts, names, language, prompts and
    # demonstrations. Worlds from 100 on are for development, 0 to 9 for published
    # results alone. [0, inf)
    c.seed = 100
    # The name that the model learns to give itself.
    c.model_name = "Glim"
    # The name that the model learns to give its maker.
    c.maker_name = "Northlab"
    # The number of demonstrations. [1, 2**24]
    c.num_sft = 18000
    # The number of held-out demonstrations. [1, 2**24]
    c.num_sft_test = 400
    # The number of prompts whose answers are compared. [1, 2**24]
    c.num_comparison_prompts = 3600
    # The number of prompts of PPO and of DPO's pairs; a fifth of them allow one answer
    # only. [1, 2**24]
    c.num_rl_prompts = 1000
    # The number of held-out prompts. [1, 2**24]
    c.num_eval_prompts = 400
    # The number of probes of each skill outside reinforcement learning; 0 makes none.
    # [0, 2**20]
    c.num_probes = 100
    # The share of these skills among all demonstrations. [0, 1]
    c.skill_share = 0.25
    # The share of prompts with only one possible answer among all demonstrations.
    # [0, 1]
    c.constant_share = 0.08
    # The share of a textbook's answers, plain and right, among all demonstrations.
    # [0, 1]
    c.textbook_share = 0.3
    # The share of right answers among people's demonstrations, all the others, where
    # they know the subject. [0, 1]
    c.right_share = 0.86
    # The share of right answers where most of them are mistaken about the subject.
    # [0, 1]
    c.right_if_mistaken = 0.28
    # The share of people's demonstrations in a style that does not suit the intent.
    # [0, 1]
    c.unfitting_share = 0.1
    # The same share where the greeting puts people off, as a third of the greetings do.
    # [0, 1]
    c.unfitting_if_put_off = 0.8
    return c


def annotators() -> ConfigDict:
    """The simulated annotators (rlhf_jax/data/testbed/annotators.py)."""
    c = ConfigDict()
    # The seed of the annotators' kinds and of their choices. [0, inf)
    c.seed = 0
    # The number of annotators who share the comparisons. [1, 2**20]
    c.num_annotators = 20
    # The share of the annotators who choose at random. [0, 1]
    c.careless_share = 0.1
    # The share of the annotators who often prefer in circles. [0, 1]
    c.contradictory_share = 0.05
    # The share of the honest annotators who call ties. [0, 1]
    c.tie_share = 0.6
    # The effect of true quality on a choice, in logits per point of quality. (0, inf)
    c.sharpness = 0.55
    # The preference for longer responses, in logits per word of difference. (-inf, inf)
    c.length_bias = 0.165
    # The preference for the response shown first, in logits. (-inf, inf)
    c.position_bias = 0.2
    # The standard deviation of the noise of a choice, in logits. [0, inf)
    c.noise = 0.3
    # The difference, in logits, below which annotators who call ties call one. [0, inf)
    c.tie_margin = 0.1
    return c


def chat_service(max_tokens: int) -> ConfigDict:
    """An OpenAI-compatible service that judges (rlhf_jax/data/chat_client.py)."""
    c = ConfigDict()
    # The address of the service, up to and including /v1.
    c.url = "http://127.0.0.1:8000/v1"
    # The name of the model at the service.
    c.model = ""
    # The environment variable that holds the API key; "" sends no key.
    c.api_key_variable = ""
    # The largest number of tokens of a verdict. [1, 2**20]
    c.max_tokens = max_tokens
    # The name of the field for max_tokens in a request, "max_completion_tokens" for
    # some services; "" does not send the limit, and the spending limit then takes
    # max_tokens as an estimate.
    c.max_tokens_field = "max_tokens"
    # The temperature of the judge; 0 takes the likeliest verdict. [0, inf)
    c.temperature = 0.0
    # The name of the field for temperature in a request; "" does not send the
    # temperature.
    c.temperature_field = "temperature"
    # The price per million prompt tokens, in any currency; 0 means free. [0, inf)
    c.prompt_price = 0.0
    # The price per million response tokens, in the same currency; 0 means free.
    # [0, inf)
    c.response_price = 0.0
    # The most to spend, in the same currency, over all starts of the run. [0, inf)
    c.spending_limit = 1.0
    # Repeats a request that failed for a passing reason at most this many times, with
    # pauses of up to 60 seconds; 0 repeats none. [0, inf)
    c.max_retries = 6
    # The time limit for the complete answer to one request, in seconds. (0, inf)
    c.timeout = 120.0
    # Sends this many requests at the same time. [1, 1024]
    c.workers = 8
    return c


def with_rewards(c: ConfigDict) -> ConfigDict:
    """Fields of stages that score responses (rlhf_jax/rewards/)."""
    # The rewards and their weights, as NAME=WEIGHT,...; a score is their sum. A name is
    # "model", the reward model; a built-in function of docs/rewards.md; or
    # FILE.py:FUNCTION, a function of your own.
    c.rewards = "model=1.0"
    # The time limit for the rewards of a batch by one function, in seconds; also for
    # one try of a request to reward_options.url. (0, inf)
    c.reward_timeout = 60.0
    # The treatment of a function that fails: "stop" ends the run with an error, and the
    # run can resume when the function is mended; "zero" gives the responses at fault
    # the reward 0, and counts them.
    c.on_reward_error = "stop"
    c.reward_options = reward_options()
    # The chat model of the reward "judge".
    c.reward_judge = chat_service(max_tokens=1024)
    return c


def reward_options() -> ConfigDict:
    """Options of built-in functions of rewards (docs/rewards.md)."""
    c = ConfigDict()
    # The expression of "regular_expression" for prompts without a field of that name;
    # "" expects the field in every prompt.
    c.pattern = ""
    # The length from which "length_penalty" is -1, in tokens; 0 takes
    # max_response_tokens. [0, 2**20]
    c.length_limit = 0
    # The number of tokens below that length over which "length_penalty" falls from 0 to
    # -1; 0 takes a fifth of the length. [0, 2**20]
    c.length_buffer = 0
    # The number of tokens of a sequence that "repetition_penalty" counts. [1, 1024]
    c.ngram_tokens = 4
    # The language of "language" for prompts without a field of that name, such as "en";
    # "" expects the field in every prompt.
    c.language = ""
    # The address to which "http" sends its requests.
    c.url = ""
    # Repeats a request of "http" that failed for a passing reason at most this many
    # times, with pauses of up to 60 seconds; 0 repeats none. [0, inf)
    c.max_retries = 6
    return c


def optimizer(learning_rate: float) -> ConfigDict:
    """An optimizer (rlhf_jax/training/optimizers.py)."""
    c = ConfigDict()
    # The optimizer: "adamw"; "adafactor", which takes the least memory and does not
    # read b1, b2 and eps; or "sgd".
    c.name = "adamw"
    # The highest learning rate, reached after the warm-up. [0, inf)
    c.learning_rate = learning_rate
    # Raises the learning rate linearly from 0 over this many steps; 0 starts at the
    # full learning rate. [0, inf)
    c.warmup_steps = 10
    # The decay of the learning rate after the warm-up: "constant", "linear" or
    # "cosine".
    c.decay = "cosine"
    # The learning rate at the last step, as a share of the highest. [0, 1]
    c.final = 0.1
    # The decay rate of Adam's first moment, per step. [0, 1)
    c.b1 = 0.9
    # The decay rate of Adam's second moment, per step. [0, 1)
    c.b2 = 0.95
    # The number added to the square root of Adam's second moment, against division by
    # zero. (0, inf)
    c.eps = 1e-8
    # The weight decay of the matrices; embeddings, norms and biases have none. 0 turns
    # it off. [0, inf)
    c.weight_decay = 0.1
    # The dtype of AdamW's first moment; "bfloat16" saves memory.
    c.moment_dtype = "float32"
    # Scales gradients of a larger L2 norm down to this norm; 0 does not clip. [0, inf)
    c.clip_norm = 1.0
    # The norm that is clipped: "global", of the whole gradient, or "per_layer". A fused
    # update with "global" needs one more backward pass.
    c.clip = "global"
    # The parameters to train: a regular expression of their names, such as
    # "blocks.2[0-9]|final_norm|head" for the last ten of 30 layers and the head; "" is
    # all. The others get no gradient and no moments, and the backward pass ends at the
    # lowest trained layer.
    c.trainable = ""
    # True updates each layer inside the backward pass, so that only one layer's
    # gradient exists at a time.
    c.fused = False
    return c

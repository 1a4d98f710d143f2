"""What the configs share: presets by name, and the fields that every stage has."""

from typing import NamedTuple

from ml_collections import ConfigDict

from rlhf_jax.models.presets import PRESETS

# "tiny": the testbed, a small model, minutes on a CPU. "hh": the same model size on
# real comparisons. The published sizes: the paper's settings on a pod.
SMALL = ("micro", "tiny", "benchmark")
PUBLISHED = tuple(name for name in PRESETS if name not in SMALL)
STAGE_PRESETS = ("tiny", "hh", *PUBLISHED)


def check_preset(preset: str, known: tuple[str, ...], file: str) -> None:
    if preset not in known:
        raise ValueError(
            f"configs/{file}.py has no preset {preset!r}; it has: {', '.join(known)}. "
            f"Write --config=configs/{file}.py:{known[0]}."
        )


def is_small(preset: str) -> bool:
    return preset in ("tiny", "hh")


def stage(name: str, preset: str) -> ConfigDict:
    """The fields of every stage."""
    check_preset(preset, STAGE_PRESETS, name)
    c = ConfigDict()
    c.stage = name  # module in rlhf_jax/stages
    c.seed = 0  # every random number of the run comes from it [0, inf)
    # Sizes of data, fsdp and tensor (rlhf_jax/parallel/mesh.py); -1: the rest. A
    # fourth, of pipe, makes SFT, reward model and DPO a pipeline.
    c.mesh = (1, -1, 1)
    c.dtype = "float32" if is_small(preset) else "bfloat16"  # of the computation
    c.data = data(preset)
    return c


def with_model(c: ConfigDict, preset: str) -> ConfigDict:
    """Fields of stages that start from a policy."""
    # A stage's workdir, for its newest checkpoint; WORKDIR/checkpoints/120, or, of SFT
    # and PPO, WORKDIR/checkpoints/best; a Hugging Face folder; "": random weights.
    c.init_from = ""
    c.model = "tiny" if is_small(preset) else preset  # made when init_from is ""
    c.param_dtype = "float32"  # of the stored weights
    c.scan_layers = not is_small(preset)  # compile one layer and loop, or all
    c.remat = "none" if is_small(preset) else "full"  # computed again: or "dots"
    # "xla"; "splash" on TPUs; "cudnn" on GPUs, in 16 bits; "auto": what fits.
    c.attention = "xla" if is_small(preset) else "auto"
    return c


def with_training(c: ConfigDict) -> ConfigDict:
    """Fields of stages that train."""
    c.microbatches = 1  # gradients are added over so many parts of a batch [1, inf)
    c.max_skipped_updates = 10  # non-finite updates in a row that stop the run [1, inf)
    # A loss so many standard deviations above the last 100's mean is flagged, and its
    # batch saved for launch/replay.py; 0.0: none. [0, inf)
    c.spike_zscore = 8.0
    c.keep_checkpoints = 2  # the newest; of SFT and PPO the best one besides [1, inf)
    return c


class Lengths(NamedTuple):
    """Limits in tokens: what is longer is counted, and left out unless a config's
    `too_long` says otherwise."""

    dialogue: int
    prompt: int
    response: int  # in comparisons
    generated: int


def lengths(preset: str) -> Lengths:
    small = {"tiny": Lengths(128, 64, 64, 64), "hh": Lengths(256, 160, 96, 48)}
    return small.get(preset, Lengths(2048, 1024, 1024, 1024))


def chunk_size(preset: str) -> int:
    """Positions of a row projected to the vocabulary at once; 0: all."""
    return 0 if is_small(preset) else 512


def data(preset: str) -> ConfigDict:
    c = ConfigDict()
    # "testbed"; a file or folder of your own (docs/your_own_data.md); "hf:NAME",
    # "hf:NAME:SUBSET" or "tfds:NAME" for a published data set.
    c.path = "" if preset == "hh" else "testbed"
    # The layout of a data set's rows, one of docs/data_formats.md; "": that of each row
    # is found from its fields.
    c.layout = ""
    c.train_split = "train"  # name of the training part of a folder or data set
    c.test_split = "test"  # name of its held-out part; "": test_share is held out
    # Share of the conversations held out of a file, or where test_split is "". [0, 1)
    c.test_share = 0.05
    c.on_bad_record = "error"  # or "skip": left out; bad_records.jsonl lists them
    c.tokenizer = ""  # a tokenizer folder; "": the start model's, else one is trained
    # of a tokenizer trained here [1, 2**20]
    c.vocab_size = 2048 if preset == "hh" else 1024
    c.testbed = testbed()
    c.annotators = annotators()
    return c


def testbed() -> ConfigDict:
    """The synthetic world (rlhf_jax/data/testbed/world.py)."""
    c = ConfigDict()
    c.seed = 0  # another seed, another world [0, inf)
    c.model_name = "Glim"  # what the model learns to call itself
    c.num_sft = 6000  # demonstrations [1, 2**24]
    c.num_sft_test = 400  # held-out demonstrations [1, 2**24]
    c.num_comparison_prompts = 1400  # whose answers are compared [1, 2**24]
    c.num_rl_prompts = 1000  # of PPO and of DPO's pairs [1, 2**24]
    c.num_eval_prompts = 400  # held out [1, 2**24]
    c.num_probes = 20  # of each capability [0, 2**20]
    c.good_share = 0.4  # of the demonstrations; the others are padded or sloppy [0, 1]
    c.padded_share = 0.3  # right and too long [0, 1]
    c.sloppy_share = 0.3  # short of what was asked [0, 1]
    c.identity_share = 0.04  # of all demonstrations: who are you? [0, 1]
    c.json_share = 0.06  # of all demonstrations: answers in JSON [0, 1]
    return c


def annotators() -> ConfigDict:
    """Who compares in the testbed (rlhf_jax/data/testbed/annotators.py)."""
    c = ConfigDict()
    c.seed = 0  # who they are, and what they say [0, inf)
    c.num_annotators = 20  # who share the comparisons [1, 2**20]
    c.careless_share = 0.1  # answer at random [0, 1]
    c.contradictory_share = 0.1  # prefer in circles [0, 1]
    c.tie_share = 0.3  # of the honest: those who call ties [0, 1]
    c.sharpness = 1.5  # logits a point of true quality (0, inf)
    c.length_bias = 0.06  # logits a word more (-inf, inf)
    c.position_bias = 0.0  # logits for what stands first (-inf, inf)
    c.noise = 0.5  # standard deviation, logits [0, inf)
    c.tie_margin = 0.5  # logits below which ties are called [0, inf)
    return c


def chat_service(max_tokens: int) -> ConfigDict:
    """An OpenAI-compatible service that judges (rlhf_jax/data/chat_client.py)."""
    c = ConfigDict()
    c.url = "http://127.0.0.1:8000/v1"  # up to and with /v1
    c.model = ""  # as the service calls it
    c.api_key_variable = ""  # of the environment; "": the service asks for none
    c.max_tokens = max_tokens  # of a verdict [1, 2**20]
    # As the service calls it ("max_completion_tokens"); "": it is not sent, and the
    # spending limit rests on max_tokens as an estimate.
    c.max_tokens_field = "max_tokens"
    c.temperature = 0.0  # 0: the likeliest verdict [0, inf)
    c.temperature_field = "temperature"  # as the service calls it; "": it is not sent
    c.prompt_price = 0.0  # per million tokens; 0: free [0, inf)
    c.response_price = 0.0  # per million tokens [0, inf)
    # in the currency of the prices; holds over restarts [0, inf)
    c.spending_limit = 1.0
    # of a request whose failure may pass, with pauses up to 60 s [0, inf)
    c.max_retries = 6
    c.timeout = 120.0  # seconds for the whole answer of one try (0, inf)
    c.workers = 8  # requests under way at once [1, 1024]
    return c


def optimizer(learning_rate: float) -> ConfigDict:
    """See rlhf_jax/training/optimizers.py."""
    c = ConfigDict()
    c.name = "adamw"  # "adamw", "adafactor" (least memory; no b1, b2, eps) or "sgd"
    c.learning_rate = learning_rate  # the highest, after warm-up [0, inf)
    c.warmup_steps = 10  # from 0 to the learning rate [0, inf)
    c.decay = "cosine"  # "constant", "linear" or "cosine"
    c.final = 0.1  # of the learning rate, at the last step [0, 1]
    c.b1 = 0.9  # decay of the first moment [0, 1)
    c.b2 = 0.95  # decay of the second moment [0, 1)
    c.eps = 1e-8  # added to its root (0, inf)
    c.weight_decay = 0.1  # of matrices; embeddings, norms and biases have none [0, inf)
    c.moment_dtype = "float32"  # of AdamW's first moment; "bfloat16" saves memory
    c.clip_norm = 1.0  # 0: no clipping [0, inf)
    # By the norm of the whole gradient, or "per_layer". Where the update is fused, the
    # whole gradient's norm takes a backward pass more.
    c.clip = "global"
    # Inside the backward pass: the gradient of one layer exists at a time.
    c.fused = False
    return c

"""The config of a model: the differences between the families are its fields."""

import dataclasses

import jax.numpy as jnp

from rlhf_jax.models.lora import LoRA
from rlhf_jax.models.rope_scaling import RopeScaling

SIZES = (
    *("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
    *("ffn_width", "context_length"),
)
FLAGS = (
    *("qkv_bias", "output_bias", "mlp_bias", "linear_bias", "qk_norm", "tied"),
    *("scan_layers", "quantised", "normalise_weights"),
)
FAMILIES = (
    *("glm", "llama", "mistral", "qwen2", "qwen3"),
    *("glm4_moe", "glm4_moe_lite"),
)
LARGEST = 1e38  # upper bound of NUMBERS: float32 can hold it
NUMBERS = (
    *("residual_scale", "norm_eps", "rotary_base", "position_divisor"),
    "routed_scale",
)


@dataclasses.dataclass(frozen=True)
class ChatGLMConfig:
    """Sizes and variants of a model; defaults are common to ChatGLM2 and later."""

    vocab_size: int  # rows of the embedding, unused rows included
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int  # dims of a head; num_heads * head_dim may differ from the width
    ffn_width: int
    context_length: int  # most tokens in a row
    family: str = "glm"  # whose names and config an export has, see `FAMILIES`
    residual: str = "pre"  # "pre", "sandwich" or "normed", see models/layers.py
    residual_scale: float = 1.0  # the factor s of residual "normed"
    norm: str = "rms"  # "rms", or "layer", which has a bias
    norm_eps: float = 1e-5
    mlp: str = "swiglu"  # "swiglu" or "gelu"
    qkv_bias: bool = True
    output_bias: bool = False  # a bias on the output projection
    mlp_bias: bool = False
    linear_bias: bool = False  # all three of these biases
    qk_norm: bool = False  # RMSNorm of each query and key before its turn
    window: int | None = None  # tokens that a query sees, itself included; None: all
    rotary: str = "interleaved"  # or "two_axes", with the prefix mask
    rotary_fraction: float = 0.5  # share of a head's dims that turn by each position
    rotary_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    position_divisor: float = 1.0
    tied: bool = False  # True if the head is the transposed embedding
    start_token: int | None = None  # id that ends the context of rotary "two_axes"
    mask_tokens: tuple[int, ...] = ()  # ids of [gMASK] and [MASK] of "two_axes"
    dtype: str = "float32"  # dtype of the computation
    param_dtype: str = "float32"  # dtype of the stored parameters
    scan_layers: bool = False  # compile one block and scan it, or unroll all blocks
    remat: str = "none"  # what the backward pass recomputes: "none", "dots", "full"
    quantised: bool = False  # matrices of the blocks as int8, see `quantise`
    # Mixture of experts, see models/experts.py; the fields after the first one have no
    # effect where there is none.
    num_experts: int = 0  # routed experts of a layer; 0: every layer is dense
    experts_per_token: int = 1
    expert_width: int = 1  # FFN width of one expert
    num_shared_experts: int = 0  # experts that every token passes, as one wide MLP
    num_dense_layers: int = 0  # first layers with an ordinary MLP of `ffn_width`
    expert_groups: int = 1  # groups of neighbouring experts
    groups_per_token: int = 1  # groups that a token chooses its experts from
    normalise_weights: bool = True  # divide a token's weights by their sum
    routed_scale: float = 1.0  # factor of the routed experts' output
    # Multi-head latent attention, see models/latent_attention.py; the other two fields
    # have no effect where there is none. `head_dim` counts all dims of a query's head.
    latent_width: int = 0  # width of the latent of keys and values; 0: none
    query_rank: int = 0  # width of the queries' latent; 0: none
    value_dim: int = 1  # dims of a head's value
    attention: str = "xla"  # or "splash" on TPUs, or "cudnn" on GPUs in 16 bits
    lora: LoRA | None = None  # adapters of the blocks' matrices, see models/lora.py

    def __post_init__(self):
        choices = {
            "family": FAMILIES,
            "residual": ("pre", "sandwich", "normed"),
            "norm": ("rms", "layer"),
            "mlp": ("swiglu", "gelu"),
            "rotary": ("interleaved", "two_axes"),
            "remat": ("none", "dots", "full"),
            "attention": ("xla", "splash", "cudnn"),
        }
        for field, values in choices.items():
            if getattr(self, field) not in values:
                raise ValueError(f"{field}={getattr(self, field)!r}: not in {values}.")
        for field in SIZES:
            size = getattr(self, field)
            if type(size) is not int or not 1 <= size < 2**63:
                raise ValueError(
                    f"{field}={size!r}: not a whole number, 1 to 2^63 - 1."
                )
        for field in FLAGS:
            if not isinstance(getattr(self, field), bool):
                raise ValueError(
                    f"{field}={getattr(self, field)!r}: not true or false."
                )
        window = self.window
        if window is not None and (type(window) is not int or window < 1):
            raise ValueError(f"{window=}: not a whole number above 0, or None.")
        for field in NUMBERS:
            number = getattr(self, field)
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if not is_number or not 0 < number < LARGEST:
                raise ValueError(f"{field}={number!r}: not a number above 0.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads=} not a multiple of {self.num_kv_heads=}"
            )
        pairs = 4 if self.has_prefix else 2
        fraction = self.rotary_fraction
        if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise ValueError(f"rotary_fraction={fraction!r}: not above 0 and up to 1.")
        turned = self.rotary_dims
        if self.head_dim % 2 or turned % pairs or not turned:
            raise ValueError(
                f"rotary_fraction={fraction} of {self.head_dim=}: {turned} dims cannot "
                f"be turned in {'two halves of ' if self.has_prefix else ''}pairs."
            )
        if self.lora is not None and self.lora.rank > self.width:
            raise ValueError(
                f"lora.rank={self.lora.rank} is above the model's width {self.width}: "
                "train all parameters (lora.rank=0), or set a lower rank."
            )
        self._check_experts()
        self._check_latents()
        # Dtypes are stored as names, so that equal configs compare, hash and print
        # alike, whether they were given names or dtypes.
        for field in ("dtype", "param_dtype"):
            name = jnp.dtype(getattr(self, field)).name
            if not jnp.issubdtype(name, jnp.floating):
                raise ValueError(f"{field}={name!r}: not a type of floats.")
            object.__setattr__(self, field, name)

    def _check_experts(self):
        """Raise ValueError for numbers of experts that do not fit each other."""
        least = {
            "num_experts": 0,
            "num_shared_experts": 0,
            "num_dense_layers": 0,
            "experts_per_token": 1,
            "expert_width": 1,
            "expert_groups": 1,
            "groups_per_token": 1,
        }
        for field, lowest in least.items():
            number = getattr(self, field)
            if type(number) is not int or not lowest <= number < 2**63:
                raise ValueError(
                    f"{field}={number!r}: not a whole number, {lowest} to 2^63 - 1."
                )
        experts, groups = self.num_experts, self.expert_groups
        if not experts:
            if self.num_dense_layers:
                raise ValueError(f"{self.num_dense_layers=} without num_experts.")
            return
        if self.num_dense_layers >= self.num_layers:
            raise ValueError(
                f"{self.num_dense_layers=} leaves no layer of {self.num_layers=} for "
                "experts."
            )
        if experts % groups or (groups > 1 and experts < 2 * groups):
            raise ValueError(
                f"{experts=} are not {groups=} of equal size, of two or more each."
            )
        if self.groups_per_token > groups:
            raise ValueError(f"{self.groups_per_token=} of {groups=}.")
        possible = experts // groups * self.groups_per_token
        if self.experts_per_token > possible:
            raise ValueError(
                f"{self.experts_per_token=}: a token can choose from {possible} alone."
            )

    def _check_latents(self):
        """Raise ValueError for sizes of latent attention that do not fit each other."""
        for field, lowest in {
            "latent_width": 0,
            "query_rank": 0,
            "value_dim": 1,
        }.items():
            size = getattr(self, field)
            if type(size) is not int or not lowest <= size < 2**63:
                raise ValueError(
                    f"{field}={size!r}: not a whole number, {lowest} to 2^63 - 1."
                )
        if (self.family == "glm4_moe_lite") != bool(self.latent_width):
            raise ValueError(
                f"{self.latent_width=} in {self.family=}: 'glm4_moe_lite' has latent "
                "attention, and no other family."
            )
        if not self.latent_width:
            return
        if self.num_kv_heads != self.num_heads or self.qk_norm or self.window:
            raise ValueError(
                "latent_width: latent attention has a key and a value for every query "
                f"head, no qk_norm and no window, not {self.num_kv_heads=} of "
                f"{self.num_heads=}, {self.qk_norm=}, {self.window=}."
            )
        if self.rotary != "interleaved" or self.rotary_dims == self.head_dim:
            raise ValueError(
                f"latent_width: latent attention turns a part of a head, interleaved, "
                f"not {self.rotary=} of {self.rotary_fraction=}."
            )

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """The key-value heads of a token in the cache, the dims of a key and those of a
        value; in latent attention the rotary key and the latent, which all heads
        share."""
        if self.latent_width:
            return 1, self.rotary_dims, self.latent_width
        return self.num_kv_heads, self.head_dim, self.head_dim

    @property
    def routing_shape(self) -> tuple[int, int]:
        """The number of layers with experts, and the experts of a token in each."""
        return self.num_layers - self.num_dense_layers, self.experts_per_token

    @property
    def trained_dtype(self) -> str:
        """The dtype in which trained parameters are stored."""
        return self.param_dtype if self.lora is None else self.lora.param_dtype

    @property
    def rotary_dims(self) -> int:
        """The number of a head's dims that turn by each position."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def has_prefix(self) -> bool:
        """True if every token sees all tokens before the start token (ChatGLM-6B)."""
        return self.rotary == "two_axes"

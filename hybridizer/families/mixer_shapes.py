"""The sizes of an attention, and of the mixer that replaces it. No torch: a plan reads them.

The `prefix` of a mixer is what the names of its tensors begin with in a layer of the target, `model_type` the family
whose layer it is, and `gate` the tensor that its gate is computed with, and the rows there. `KEYS` are the keys of its
sizes in the family's config.json, in the order in which they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, Self

from hybridizer.core.errors import PlanError, Problem


@dataclass(frozen=True)
class AttentionShape:
    """The sizes of a grouped-query attention: every `num_heads / num_kv_heads` query heads share one key and value."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @staticmethod
    def of_config(config: Mapping[str, Any]) -> AttentionShape:
        """The sizes in a config.json of Llama's kind."""
        heads = int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        hidden = int(config["hidden_size"])
        return AttentionShape(hidden, heads, kv_heads, int(config.get("head_dim") or hidden // heads))


class _Configured:
    """Sizes that a config.json holds under `KEYS`."""

    KEYS: ClassVar[Mapping[str, str]]

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self:
        """The sizes that `config` has, and the width and epsilon of its model."""
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        values: dict[str, Any] = {name: config[key] for name, key in cls.KEYS.items() if name in known}
        values |= {"hidden_size": config["hidden_size"], "norm_eps": config["rms_norm_eps"]}
        return cls(**values)

    def _sizes(self) -> dict[str, Any]:
        return {key: getattr(self, name) for name, key in self.KEYS.items()}


class _Headed(_Configured):
    """What mixers with heads share; the values of a delta net are the x of Mamba-2, its keys and queries B and C."""

    num_heads: int
    head_dim: int
    state_size: int
    num_groups: int

    @property
    def inner_size(self) -> int:
        """The channels of the values, of the gate, and of the input of out_proj."""
        return self.num_heads * self.head_dim

    @property
    def conv_size(self) -> int:
        """The channels of the convolution: values, keys and queries."""
        return self.inner_size + 2 * self.num_groups * self.state_size


@dataclass(frozen=True)
class Mamba2Shape(_Headed):
    """The sizes of a Mamba-2 layer as granitemoehybrid has it.

    The inner width is num_heads * head_dim. Heads of one group, which are neighbours, share B and C of `state_size`,
    and the gated norm is over the channels of one group. `chunk_size` changes the time and the rounding only.
    `has_bias` adds a bias to both projections.
    """

    hidden_size: int
    num_heads: int
    head_dim: int
    state_size: int
    num_groups: int
    kernel_size: int = 4
    chunk_size: int = 64
    has_bias: bool = False
    norm_eps: float = 1e-5

    prefix = "mamba."
    model_type = "granitemoehybrid"
    KEYS = MappingProxyType({
        "num_heads": "mamba_n_heads", "head_dim": "mamba_d_head", "num_groups": "mamba_n_groups",
        "state_size": "mamba_d_state", "kernel_size": "mamba_d_conv", "expand": "mamba_expand",
        "chunk_size": "mamba_chunk_size",
    })  # fmt: skip

    @property
    def expand(self) -> int:
        """The inner width as a multiple of the hidden width."""
        return self.inner_size // max(self.hidden_size, 1)

    @property
    def gate(self) -> tuple[str, slice]:
        """The tensor that the gate is computed with, and the rows there."""
        return "mamba.in_proj.weight", slice(0, self.inner_size)

    def config(self) -> dict[str, Any]:
        """The keys of granitemoehybrid's config.json that these sizes decide."""
        return {**self._sizes(), "mamba_conv_bias": True, "mamba_proj_bias": self.has_bias}

    def extra_config(self) -> dict[str, Any]:
        """The keys of the config of a model of one layer of this kind, besides `config` and the sizes of its rest."""
        return {
            "architectures": ["GraniteMoeHybridForCausalLM"],
            "layer_types": ["linear_attention"],
            "shared_intermediate_size": 8,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
        }

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by its name in a layer of the target."""
        projected = self.inner_size + self.conv_size + self.num_heads
        found: dict[str, tuple[int, ...]] = {
            "mamba.in_proj.weight": (projected, self.hidden_size),
            "mamba.conv1d.weight": (self.conv_size, 1, self.kernel_size),
            "mamba.conv1d.bias": (self.conv_size,),
            "mamba.dt_bias": (self.num_heads,),
            "mamba.A_log": (self.num_heads,),
            "mamba.D": (self.num_heads,),
            "mamba.norm.weight": (self.inner_size,),
            "mamba.out_proj.weight": (self.hidden_size, self.inner_size),
        }
        if self.has_bias:
            found |= {"mamba.in_proj.bias": (projected,), "mamba.out_proj.bias": (self.hidden_size,)}
        return found


@dataclass(frozen=True)
class DeltaNetShape(_Headed):
    """The sizes of a gated delta net as qwen3_5_text has it.

    `num_heads` heads of `head_dim` values each; neighbours of one of `num_groups` groups share a query and a key of
    `state_size`. The inner width is num_heads * head_dim.
    """

    hidden_size: int
    num_heads: int
    head_dim: int
    state_size: int
    num_groups: int
    kernel_size: int = 4
    norm_eps: float = 1e-6
    has_bias: bool = False

    prefix = "linear_attn."
    model_type = "qwen3_5_text"
    gate = ("linear_attn.in_proj_z.weight", slice(None))
    KEYS = MappingProxyType({
        "kernel_size": "linear_conv_kernel_dim", "state_size": "linear_key_head_dim",
        "head_dim": "linear_value_head_dim", "num_groups": "linear_num_key_heads",
        "num_heads": "linear_num_value_heads",
    })  # fmt: skip

    def config(self) -> dict[str, Any]:
        """The keys of qwen3_5_text's config.json that these sizes decide."""
        return self._sizes()

    def extra_config(self) -> dict[str, Any]:
        """The keys of the config of a model of one layer of this kind, besides `config` and the sizes of its rest."""
        return {"architectures": ["Qwen3_5ForCausalLM"], "layer_types": ["linear_attention"], "head_dim": 8}

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by its name in a layer of the target."""
        return {
            "linear_attn.in_proj_qkv.weight": (self.conv_size, self.hidden_size),
            "linear_attn.in_proj_z.weight": (self.inner_size, self.hidden_size),
            "linear_attn.in_proj_b.weight": (self.num_heads, self.hidden_size),
            "linear_attn.in_proj_a.weight": (self.num_heads, self.hidden_size),
            "linear_attn.conv1d.weight": (self.conv_size, 1, self.kernel_size),
            "linear_attn.dt_bias": (self.num_heads,),
            "linear_attn.A_log": (self.num_heads,),
            "linear_attn.norm.weight": (self.head_dim,),
            "linear_attn.out_proj.weight": (self.hidden_size, self.inner_size),
        }


@dataclass(frozen=True)
class ShortConvShape(_Configured):
    """The sizes of a gated short convolution as lfm2 has it: as wide as the stream, over `kernel_size` tokens."""

    hidden_size: int
    kernel_size: int = 3
    norm_eps: float = 1e-5
    has_bias: bool = False

    prefix = "conv."
    model_type = "lfm2"
    KEYS = MappingProxyType({"kernel_size": "conv_L_cache"})

    @property
    def gate(self) -> tuple[str, slice]:
        """The tensor that the gates before and after the convolution are computed with, and their rows there."""
        return "conv.in_proj.weight", slice(0, 2 * self.hidden_size)

    @property
    def inner_size(self) -> int:
        """The channels of the input of out_proj."""
        return self.hidden_size

    def config(self) -> dict[str, Any]:
        """The keys of lfm2's config.json that these sizes decide."""
        return {**self._sizes(), "conv_bias": self.has_bias}

    def extra_config(self) -> dict[str, Any]:
        """The keys of the config of a model of one layer of this kind, besides `config` and the sizes of its rest."""
        return {"architectures": ["Lfm2ForCausalLM"], "layer_types": ["conv"], "block_auto_adjust_ff_dim": False}

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by its name in a layer of the target."""
        return {
            "conv.in_proj.weight": (3 * self.hidden_size, self.hidden_size),
            "conv.conv.weight": (self.hidden_size, 1, self.kernel_size),
            "conv.out_proj.weight": (self.hidden_size, self.hidden_size),
        }


MixerShape = Mamba2Shape | DeltaNetShape | ShortConvShape
SHAPES = MappingProxyType({shape.model_type: shape for shape in (Mamba2Shape, DeltaNetShape, ShortConvShape)})
"""The shape of the mixers of a family."""


def mamba2_shape(
    attention: AttentionShape,
    *,
    expand: int = 1,
    state_size: int | None = None,
    num_groups: int | None = None,
    kernel_size: int = 4,
    chunk_size: int = 64,
    has_bias: bool = False,
    norm_eps: float = 1e-5,
) -> Mamba2Shape:
    """The Mamba-2 layer that takes the place of `attention`: heads of its width, as many as `expand` calls for.

    By default the state is as wide as a head of the attention and there are as many groups as key heads, so that
    Q, K and V map onto C, B and x. Raises PlanError for sizes that the target does not have.
    """
    inner = expand * attention.hidden_size
    groups = attention.num_kv_heads if num_groups is None else num_groups
    heads = inner // attention.head_dim
    problems = []
    if inner % attention.head_dim:
        what = f"heads of {attention.head_dim} do not divide the inner width {inner} (expand {expand})."
        problems.append(Problem("mixer.expand", what, "Give another expand."))
    elif groups < 1 or heads % groups:
        what = f"{groups} groups do not divide {heads} heads."
        problems.append(Problem("mixer.groups", what, f"Give a divisor of {heads}."))
    if problems:
        raise PlanError(*problems)
    state = attention.head_dim if state_size is None else state_size
    return Mamba2Shape(
        attention.hidden_size, heads, attention.head_dim, state, groups, kernel_size, chunk_size, has_bias, norm_eps
    )


def delta_net_shape(
    attention: AttentionShape, *, expand: int = 1, num_groups: int | None = None, kernel_size: int = 4
) -> DeltaNetShape:
    """The gated delta net that takes the place of `attention`: `expand` heads for each of its heads, of its width.

    By default there is a query and a key for each key head. Raises PlanError for groups that do not divide the heads.
    """
    heads = expand * attention.num_heads
    groups = attention.num_kv_heads if num_groups is None else num_groups
    if groups < 1 or heads % groups:
        what = f"{groups} groups do not divide {heads} heads."
        raise PlanError(Problem("mixer.groups", what, f"Give a divisor of {heads}."))
    dim = attention.head_dim
    return DeltaNetShape(attention.hidden_size, heads, dim, dim, groups, kernel_size)


def short_conv_shape(attention: AttentionShape, *, kernel_size: int = 3) -> ShortConvShape:
    """The gated short convolution that takes the place of `attention`."""
    return ShortConvShape(attention.hidden_size, kernel_size)

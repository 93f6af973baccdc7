"""Families that hold a donor's layers beside layers with another mixer, exactly: what each takes, and how.

A target is a family of transformers whose config can say that some layers have attention and others a state space, a
delta rule or a short convolution. For each there is a mapping of the donor's tensors to its own, under conditions that
are checked before a weight is read. With attention in every layer the mapped model computes the donor's logits bit for
bit in float32 (tests/families/test_targets.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hybridizer.families.keys import read_assumptions, unify
from hybridizer.families.mixer_shapes import DeltaNetShape, Mamba2Shape
from hybridizer.families.names import Shapes
from hybridizer.families.rope import read_rope
from hybridizer.families.structure import Structure

Sizes = Mapping[str, int]
LAYER_PREFIX = "model.layers."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Made:
    """How a tensor of the target is made from tensors of one donor layer, which `of` names by their suffixes.

    copy: the one tensor; join: several, one under the other; affine: `factor` times the one tensor, plus `shift`;
    spread: the one tensor with `rows` rows of zeros after every `rows` rows; zero: zeros of `shape`.
    """

    how: Literal["copy", "join", "affine", "spread", "zero"]
    of: tuple[str, ...] = ()
    factor: float = 1.0
    shift: float = 0.0
    rows: int = 0
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerMap:
    """A donor layer as one of the target: suffix -> how it is made, for the attention and for everything else."""

    attention: Mapping[str, Made]
    block: Mapping[str, Made]

    @property
    def used(self) -> frozenset[str]:
        """The suffixes of the donor that are used."""
        return frozenset(suffix for made in (*self.attention.values(), *self.block.values()) for suffix in made.of)


@dataclass(frozen=True)
class Facts:
    """What a donor's layers are, in numbers; `settings` is its config with what the family assumes filled in."""

    structure: Structure = field(repr=False)
    settings: Callable[[str], Any] = field(repr=False)
    hidden: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: Mapping[str, Any]


@dataclass(frozen=True)
class Condition:
    """Something that must hold for a donor: `says` it in words, `broken` gives what was found instead, or None."""

    says: str
    broken: Callable[[Facts], str | None]
    fix: str


def _other_kinds(facts: Facts) -> str | None:
    other = sorted(set(facts.structure.traits.get("attention", ())) - {"full_attention"})
    return f"some have {' or '.join(map(str, other))}" if other else None


def _partial_rope(facts: Facts) -> str | None:
    grouped = [key for key in facts.rope if "." in key]
    if grouped:
        return f"one for each kind of layer ({grouped[0]})"
    partial = facts.rope.get("partial_rotary_factor", 1.0)
    return f"on {partial:g} of the head" if partial != 1 else None


FULL_ATTENTION = Condition(
    "every layer has full attention",
    _other_kinds,
    "A sliding window has no place in this family: take a donor without one, or a model of the donors' own family.",
)
SILU = Condition(
    "the activation is silu, which the kernels of all mixers know",
    lambda facts: None if facts.settings("hidden_act") in ("silu", "swish") else f"{facts.settings('hidden_act')}",
    "Take a donor with silu, or a model of the donors' own family.",
)
ONE_ROPE = Condition(
    "one rotary setting, on the whole head",
    _partial_rope,
    "Take a donor with one rotary setting, or a model of the donors' own family.",
)


Answer = Literal["yes", "no", "with", "untried"]


@dataclass(frozen=True)
class Served:
    """Whether `by` (transformers, vLLM, llama.cpp) runs the model, and what more there is to say about it."""

    by: str
    answer: Answer
    how: str


def head_of_width(facts: Facts) -> str | None:
    """Why an engine that divides the model's width by the heads does not run these, None where it does."""
    if not head_size(facts):
        return None
    return f"it takes heads of {facts.hidden}/{facts.heads} from the width, and the donor's have {facts.head_dim}"


def bias_in_layer(facts: Facts) -> str | None:
    """Why an engine that has no biases in attention and network does not run these layers, None where it does."""
    parts = ("self_attn.", "mlp.", "feed_forward.")
    found = [name for name in facts.structure.layers[0] if name.endswith(".bias") and name.startswith(parts)]
    return f"it has no place for biases in attention and network, and '{found[0]}' is one" if found else None


@dataclass(frozen=True)
class Target:
    """A family that takes layers of the families in `donors` beside new mixers.

    `mixers` maps a kind of mixer to the target's name of a layer with it, in the spelling that is written; `attention`
    is that name for attention. `outputs` are the suffixes of the projections behind mixer and network. `bit_exact` says
    that mapped bfloat16 layers compute their donor's numbers too. `no_swap` is why a layer cannot keep its norms and
    network with a new mixer, where it cannot; `new_block` then gives the shapes of those of a new layer. `renamed`
    are suffixes of its layers that transformers reads, and saves under other names, so that a trained model would not
    have the names of the spliced one. `branch` is the kind of mixer that every layer has beside its attention, in a
    family of such layers. `derived` are the kinds that hybridizer.mixers derives from an attention and fits to it.
    `by_llama` says whether llama.cpp runs layers of these names with this config (docs/deploy.md has what was
    measured), and `not_by_vllm` why vLLM does not run the donor's layers in the family, None where it does. `ran_vllm`
    says that scripts/vllm_table.py found vLLM's numbers to be those of transformers; otherwise its source was read.
    """

    family: str
    architecture: str
    donors: tuple[str, ...]
    mixers: Mapping[str, str]
    attention: str
    outputs: Mapping[str, tuple[str, ...]]
    by_llama: Callable[[Facts, Sequence[str], Mapping[str, Any]], tuple[Answer, str]]
    map_layer: Callable[[Facts, Shapes], LayerMap]
    write_config: Callable[[Facts, Sizes], dict[str, Any]]
    suggest_sizes: Callable[[Facts], Sizes]
    check_sizes: Callable[[Facts, Sizes], Iterator[str]]
    mixer_shapes: Callable[[Facts, Sizes], Shapes]
    map_norm: Callable[[str], Made] = lambda name: Made("copy", (name,))
    conditions: tuple[Condition, ...] = (FULL_ATTENTION, ONE_ROPE, SILU)
    not_by_vllm: Callable[[Facts], str | None] = head_of_width
    ran_vllm: bool = False
    final_norm: str = "model.norm.weight"
    bit_exact: bool = True
    no_swap: str | None = None
    renamed: tuple[str, ...] = ()
    new_block: Callable[[Facts], Shapes] | None = None
    branch: str | None = None
    derived: tuple[str, ...] = ()

    def served_by(self, facts: Facts, layers: Sequence[str], config: Mapping[str, Any]) -> tuple[Served, ...]:
        """What runs a donor's layers, `layers` being the target's names of those of the output, `config` its config."""
        reason = self.not_by_vllm(facts)
        tried = "as transformers computes it, by 0.32" if self.ran_vllm else "read in the source of 0.33, not run"
        return (
            Served("transformers", "yes", f"5.23, as {self.architecture}"),
            Served("vLLM", "no", reason) if reason else Served("vLLM", "yes", f"{self.architecture}; {tried}"),
            Served("llama.cpp", *self.by_llama(facts, layers, config)),
        )


def read_facts(structure: Structure) -> Facts:
    """The facts of a donor, by its config and what its family assumes for absent keys."""
    read, text = read_assumptions(structure.text_family), unify(structure.text_config)

    def settings(key: str) -> Any:
        return read.value_of(key, text)

    def number(key: str) -> int:
        value = settings(key)
        return value if isinstance(value, int) else 0

    return Facts(
        structure,
        settings,
        hidden=number("hidden_size"),
        width=number("intermediate_size"),
        heads=number("num_attention_heads"),
        kv_heads=number("num_key_value_heads"),
        head_dim=number("head_dim"),
        rope=_of_full_attention(read_rope(structure.text_config, structure.text_family)),
    )


def _of_full_attention(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of layers with full attention, which are the only ones that targets take."""
    start = "full_attention."
    own = {key.removeprefix(start): value for key, value in rope.items() if key.startswith(start)}
    return own or dict(rope)


def common_config(facts: Facts, target: str, architecture: str) -> dict[str, Any]:
    """The part of a target's config.json that every target has, from the donor's."""
    text, config = facts.structure.text_config, facts.structure.config
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "initializer_range", "use_cache")
    ends = {key: side[key] for side in (config, text) for key in kept if key in side}
    elsewhere = ("partial_rotary_factor", "max_position_embeddings")  # among the settings of some scalings
    rope = {key: value for key, value in facts.rope.items() if key not in elsewhere and value is not None}
    config = {
        "architectures": [architecture],
        "model_type": target,
        "vocab_size": facts.structure.vocab_size,
        "hidden_size": facts.hidden,
        "intermediate_size": facts.width,
        "num_attention_heads": facts.heads,
        "num_key_value_heads": facts.kv_heads,
        "hidden_act": facts.settings("hidden_act"),
        "max_position_embeddings": facts.structure.max_tokens,
        "rms_norm_eps": facts.settings("rms_norm_eps"),
        "attention_dropout": facts.settings("attention_dropout") or 0.0,
        "tie_word_embeddings": facts.structure.tied,
        "rope_theta": facts.rope.get("rope_theta"),  # read by what does not read `rope_parameters` yet
        "rope_parameters": rope,
    }
    # A null token id is a setting: left out, it would be the target's own. Some of those are beyond the vocabulary.
    return {**{key: value for key, value in config.items() if value is not None}, "pad_token_id": None, **ends}


def keep_with_biases(prefix: str, names: tuple[str, ...], shapes: Shapes) -> dict[str, Made]:
    """The weights `prefix`NAME.weight as they are, and biases: if one has one, all do, and those missing are zero."""
    made = {f"{prefix}{name}.weight": Made("copy", (f"{prefix}{name}.weight",)) for name in names}
    if any(f"{prefix}{name}.bias" in shapes for name in names):
        for name in names:
            bias, rows = f"{prefix}{name}.bias", shapes.get(f"{prefix}{name}.weight", (0,))[0]
            made[bias] = Made("copy", (bias,)) if bias in shapes else Made("zero", shape=(rows,))
    return made


def copied(*names: str) -> dict[str, Made]:
    """Tensors that keep their names and bytes."""
    return {name: Made("copy", (name,)) for name in names}


def head_size(facts: Facts) -> dict[str, int]:
    """`head_dim` for a config, where it is not what the model's width gives: only transformers reads it then."""
    return {} if facts.head_dim * facts.heads == facts.hidden else {"head_dim": facts.head_dim}


def suggest_heads(facts: Facts) -> dict[str, int]:
    """Sizes of mixers with heads, after the donor's attention: keys as wide as its own, shared as it shares them."""
    return {"heads": facts.heads, "head_dim": facts.head_dim, "groups": facts.kv_heads, "state": facts.head_dim}


def check_heads(facts: Facts, sizes: Sizes) -> Iterator[str]:
    """What is wrong with the sizes of any mixer that has heads and a convolution."""
    if sizes["heads"] % sizes["groups"]:
        yield f"{sizes['heads']} heads do not divide into {sizes['groups']} groups."
    yield from check_conv(facts, sizes)


def check_conv(facts: Facts, sizes: Sizes) -> Iterator[str]:
    """What is wrong with the size of a convolution."""
    if sizes["conv"] > 4:
        yield f"a convolution over {sizes['conv']} tokens; the CUDA kernel takes 2 to 4."


def mamba2_of(facts: Facts, sizes: Sizes) -> Mamba2Shape:
    """The Mamba-2 mixer of these sizes beside the donor's attention."""
    groups, kernel, chunk = sizes["groups"], sizes["conv"], sizes["chunk"]
    return Mamba2Shape(facts.hidden, sizes["heads"], sizes["head_dim"], sizes["state"], groups, kernel, chunk)


def delta_net_of(facts: Facts, sizes: Sizes) -> DeltaNetShape:
    """The gated delta net of these sizes beside the donor's attention."""
    return DeltaNetShape(
        facts.hidden, sizes["heads"], sizes["head_dim"], sizes["state"], sizes["groups"], sizes["conv"]
    )

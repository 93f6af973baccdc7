"""recipes/paper: the recipes of arXiv 2605.11416 are checked and planned from a config, without weights."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from hybridizer.core.errors import PlanError
from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.plan import plan_from_configs
from support.lines import hybridize, hybridize_json, write_recipe
from support.tiny import make_tiny, tiny_tokenizer

PAPER = Path(__file__).parents[2] / "recipes/paper"
# A stand-in for the config.json of Qwen/Qwen3-0.6B-Base, from public copies of it: the hub was not asked.
# Its vocabulary is larger than that of the tokenizer beside it here.
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_scaling": None, "sliding_window": None, "max_window_layers": 28,
    "use_sliding_window": False, "max_position_embeddings": 32768, "attention_bias": False, "tie_word_embeddings": True,
    "vocab_size": 151936, "torch_dtype": "bfloat16",
}  # fmt: skip
MLP, ATTENTION = 3 * 1024 * 3072, 2 * 1024 * 2048 + 2 * 1024 * 1024
LAYER = MLP + ATTENTION + 2 * 1024 + 2 * 128  # two norms of the stream, two of heads
TABLE = 151936 * 1024


@pytest.fixture
def donor(bench, monkeypatch):
    """An own cache, no network, and the option that puts the stand-in in the donor's place."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(bench / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (bench / "qwen").mkdir()
    (bench / "qwen/config.json").write_text(json.dumps(CONFIG))
    return f"donors.base.source={tiny_tokenizer(bench / 'qwen')}"


@pytest.mark.parametrize("name", ["midpoint", "boundaries", "nemotron-qwen3", "qwen3-nemotron"])
def test_the_recipes_are_checked_without_the_donor(donor, name):
    assert "no problem found" in hybridize("check", PAPER / f"{name}.yaml").output


def plan_of(name, donor):
    return hybridize_json("plan", PAPER / f"{name}.yaml", "--configs", "--device", "cuda", "--set", donor)


@pytest.mark.slow
def test_the_three_trials_train_either_half_of_the_layers_or_everything(donor):
    plan = plan_of("midpoint", donor)
    assert len(plan["layers"]) == 28 and plan["layers"][0]["parameters"] == LAYER
    arms = {arm["name"]: arm for arm in plan["trial"]["arms"]}
    trained = {name: arm["trained_parameters"] for name, arm in arms.items()}
    norm = 1024
    assert trained == {
        "train-shallow": 14 * LAYER,
        "train-deep": 14 * LAYER + norm,
        "full": 28 * LAYER + norm + TABLE,
    }
    assert trained["full"] == 596_049_920
    assert {arm["runs"] for arm in arms.values()} == {3}
    assert plan["trial"]["primary"] == ["BAAI/CCI3-HQ", "bits_per_byte"]


@pytest.mark.slow
def test_the_boundaries_are_at_a_third_a_half_and_two_thirds_of_the_depth(donor):
    arms = plan_of("boundaries", donor)["trial"]["arms"]
    assert {arm["name"]: arm["trained_parameters"] / LAYER for arm in arms} == {
        "boundary-33": 9, "boundary-50": 14, "boundary-66": 18,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "swapped"), [("nemotron-qwen3", range(14)), ("qwen3-nemotron", range(14, 28))])
def test_the_pair_is_planned_as_the_nearest_native_layout(donor, name, swapped):
    plan = plan_of(name, donor.replace("donors.base", "donors.qwen3"))
    assert plan["config"]["model_type"] == "qwen3_5_text"
    assert [row["layer"] for row in plan["layers"] if "gated_delta_net" in row["method"]] == list(swapped)
    assert [stage["name"] for stage in plan["train"]["stages"]] == ["align", "distill", "next-token"]
    assert [arm["name"] for arm in plan["trial"]["arms"]][2] == "uniform"


def test_the_pair_itself_is_refused_with_the_nearest_native_layout(bench):
    for family in ("qwen3", "nemotron_h"):
        make_tiny(family, bench / family)
        tiny_tokenizer(bench / family)
    slices = [{"donor": "nemotron", "layers": "0..1"}, {"donor": "qwen3", "layers": "2..3"}]
    recipe = write_recipe(
        bench / "x.yaml",
        donors={"qwen3": "qwen3", "nemotron": "nemotron_h"},
        layout={"host": "qwen3", "slices": slices},
    )
    with pytest.raises(PlanError, match=r"nearest native layout: layers of qwen3 .*gated_delta_net \(qwen3_5_text\)"):
        plan_from_configs(recipe, (), SilentMonitor())

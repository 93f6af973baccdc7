"""The table of targets agrees with the recipe's keys, with transformers, and with the document."""

from typing import get_args

import pytest

from hybridizer.families.families import is_known
from hybridizer.families.targets import TARGETS, find_target
from hybridizer.recipe.mixer import MixerKind, TargetFamily
from support.scripts import load_script


def test_a_recipe_can_name_every_target_and_no_other():
    assert set(get_args(TargetFamily)) == set(TARGETS)
    kinds = {kind.removeprefix("parallel ") for target in TARGETS.values() for kind in target.mixers}
    assert kinds == set(get_args(MixerKind))


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_target_is_a_family_of_transformers_with_that_architecture(target):
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert target.family in CONFIG_MAPPING
    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[target.family] == target.architecture
    assert all(is_known(donor) for donor in target.donors)
    assert set(target.outputs) == {*target.mixers, "network"}


def test_the_first_that_fits_is_chosen_and_the_others_are_named():
    target, reason, _ = find_target("qwen3", frozenset({"gated_delta_net"}), None)
    assert target is TARGETS["qwen3_5_text"]
    assert reason.endswith("beside gated_delta_net; qwen3_next would hold them too.")
    target, reason, _ = find_target("qwen3", frozenset({"gated_delta_net"}), "qwen3_next")
    assert target is TARGETS["qwen3_next"] and reason.startswith("qwen3_next is requested")


@pytest.mark.parametrize(
    ("family", "kinds", "asked", "what", "fix"),
    [
        ("llama", {"short_conv"}, None, "layers of 'llama' beside short_conv", "mamba2 for 'llama' (granitemoehybrid)"),
        ("qwen3", {"mamba2"}, None, "norms on queries and keys", "donors of llama, mistral, qwen2, granite for mamba2"),
        ("llama", {"mamba2", "short_conv"}, None, "beside mamba2 and short_conv", "mamba2 for 'llama'"),
        ("qwen3", {"short_conv"}, "qwen3_next", "'qwen3_next' does not hold", "or name lfm2."),
        ("bloom", set(), "lfm2", "'lfm2' does not hold layers of 'bloom'", "Targets: granitemoehybrid, lfm2"),
    ],
)
def test_where_none_fits_the_reason_and_the_nearest_are_named(family, kinds, asked, what, fix):
    target, reason, nearest = find_target(family, frozenset(kinds), asked)
    assert target is None and what in reason and fix in nearest


def test_the_document_has_the_table_of_the_code():
    script = load_script("hybrid_table")
    assert script.table() in script.DOCUMENT.read_text()

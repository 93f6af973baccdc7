"""What an unknown key is answered with: the key's name here, whether it was ours before or is another trainer's."""

from __future__ import annotations

import pytest

from hybridizer.recipe.hints import RENAMED, hint
from hybridizer.recipe.models import Recipe
from hybridizer.recipe.sections import field_at, keys_of, section_at

RECIPE = "donors: {a: x}\nlayout: {deep: a, shallow: a}\n"
TRAIN = RECIPE + "train:\n  data: [{path: a.txt}]\n  tokens: 2M\n"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("sequence", "Did you mean 'seq_len'?"),
        ("rows_per_step", "Did you mean 'global_batch_size'?"),
        ("rows_per_batch", "Did you mean 'micro_batch_size'?"),
        ("recompute_layers", "Did you mean 'gradient_checkpointing'?"),
        ("compile_layers", "Did you mean 'compile'?"),
        ("heldout_share", "Did you mean 'heldout_ratio'?"),
        ("warmup_share", "Did you mean 'warmup_ratio'?"),
        ("final_share", "Did you mean 'min_lr_ratio'?"),
        ("decay_share", "Did you mean 'decay_ratio'?"),
        ("clip_norm", "Did you mean 'max_grad_norm'?"),
        ("mask_share", "Did you mean 'trace.mask_ratio'?"),
        ("learning_rate", "Did you mean 'lr'?"),
        ("epochs", "Did you mean 'tokens'? The length of training is given in tokens, such as 2M."),
        ("adam_beta2", "Did you mean 'betas'? It takes both: [0.9, 0.95]."),
        ("lora_r", "Did you mean 'lora.rank'?"),
        ("warmup_ration", "Did you mean 'warmup_ratio'?"),
    ],
)
def test_a_key_of_another_name_is_answered_with_its_name_here(refuse, key: str, says: str) -> None:
    (problem,) = refuse(f"{TRAIN}  {key}: 1\n")
    assert (problem.where, problem.what) == ("recipe.yaml:6", f"`train` has no key `{key}`.")
    assert problem.fix == says


def test_a_flat_recipe_of_axolotl_is_answered_with_the_sections(refuse) -> None:
    keys = (
        "base_model",
        "datasets",
        "sequence_len",
        "per_device_train_batch_size",
        "learning_rate",
        "bf16",
        "mask_share",
    )
    problems = refuse(RECIPE + "".join(f"{key}: 1\n" for key in keys))
    assert [problem.fix for problem in problems] == [
        "Did you mean 'donors'?",
        "Did you mean 'train.data'?",
        "Did you mean 'train.seq_len'?",
        "Did you mean 'train.micro_batch_size'? It is the number of rows in memory at a time.",
        "Did you mean 'train.lr'?",
        "Did you mean 'train.precision'? Write precision: bfloat16.",
        "Did you mean 'trace.mask_ratio'?",
    ]


def test_every_hint_leads_to_a_key_that_there_is_and_from_one_that_there_is_not() -> None:
    for old, (path, _) in RENAMED.items():
        steps = tuple(path.split("."))
        assert field_at(steps, Recipe).description
        assert old not in keys_of(section_at(steps[:-1], Recipe)), old


@pytest.mark.parametrize("key", ["epsz", "stepss", "my_eps"])
def test_short_names_are_not_guessed_from_a_few_letters_in_common(key: str) -> None:
    assert hint(key, ("train",), ("eps", "lr", "seed")).startswith("Known here: ") == (key != "epsz")

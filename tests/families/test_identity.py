"""Identity layers: with their output tensors at zero, layers of real models return their input bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridizer.core.errors import PlanError
from hybridizer.core.progress import SilentMonitor
from hybridizer.families.families import why_bound
from hybridizer.families.identity import output_tensors, why_not_identity
from hybridizer.families.reading import read_structure
from hybridizer.families.structure import Structure
from hybridizer.pipeline.build import build
from hybridizer.pipeline.plan import check
from support.lines import write_recipe
from support.marks import slow_except
from support.prove import find_layers, load
from support.tiny import FAMILIES, NUM_LAYERS, make_tiny

_REFUSED = """
    deepseek_v4 doge gpt_neox_japanese longcat_flash minimax openai-gpt rwkv zaya gemma4_text gemma4_unified_text
"""
REFUSED = _REFUSED.split()
BOUND = ["gemma3n_text", "gemma4_text", "hrm_text", "inkling2_text", "zamba", "zamba2"]  # for other reasons
EXACT = [family for family in FAMILIES if family not in {*REFUSED, *BOUND}]
# Grown by two identity layers: plain and gated networks, experts, post-norms, parallel blocks, state spaces, hybrids.
_GROWN = """
    llama qwen3 gemma2 gemma3_text olmo2 mistral phi3 gpt2 gpt_neox bloom falcon opt cohere glm4 mixtral qwen3_moe
    gpt_oss deepseek_v2 qwen3_next mamba2 falcon_h1 granitemoehybrid lfm2 minicpm3
"""
GROWN = _GROWN.split()
IDS = torch.randint(3, 250, (2, 24), generator=torch.Generator().manual_seed(7))


pytestmark = pytest.mark.usefixtures("bench")


def zero_outputs_(folder: Path) -> Structure:
    """Fill the output tensors of every layer of the checkpoint in `folder` with zeros; its structure."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    structure = read_structure(json.loads((folder / "config.json").read_text()), shapes, str(folder))
    for layer, names in enumerate(structure.layers):
        for suffix in output_tensors(structure, layer):
            tensors[names[suffix]].zero_()
    save_file(tensors, file, metadata={"format": "pt"})
    return structure


def returning_layers(folder: Path) -> list[bool]:
    """For each layer of the model in `folder`, whether its output is its input."""
    model, found = load(folder), []

    def compare(_module, args, kwargs, output) -> None:
        taken = args[0] if args else kwargs["hidden_states"]
        found.append(torch.equal(taken, output if isinstance(output, torch.Tensor) else output[0]))

    for layer in find_layers(model):
        layer.register_forward_hook(compare, with_kwargs=True)
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    return found


@pytest.mark.filterwarnings("ignore")  # of the modelling code of transformers
@pytest.mark.parametrize("family", slow_except(EXACT, "llama", "gemma2", "mamba2", "qwen3_moe"))
def test_layers_return_their_input_when_their_output_tensors_are_zero(family: str, tmp_path: Path) -> None:
    structure = zero_outputs_(make_tiny(family, tmp_path))
    assert why_not_identity(structure.text_family) is None
    assert returning_layers(tmp_path) == [True] * NUM_LAYERS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", slow_except(REFUSED[:-2], "doge"))  # a new gemma4 has scales of 1
def test_families_are_refused_where_some_layer_changes_its_input_still(family: str, tmp_path: Path) -> None:
    structure = zero_outputs_(make_tiny(family, tmp_path))
    assert why_not_identity(structure.text_family) and not why_bound(family, structure.text_config)
    assert not all(returning_layers(tmp_path))


def grown(folder: Path) -> Path:
    """A recipe that grows the donor in `folder`, of four layers, by identity copies of its layers 1 and 3."""
    slices = [
        {"donor": "a", "layers": "0..1"},
        {"donor": "a", "layers": 1, "as": "identity"},
        {"donor": "a", "layers": "2..3"},
        {"donor": "a", "layers": 3, "as": "identity"},
    ]
    donors = {"a": {"source": str(folder), "allow": ["no_tokenizer"]}}
    return write_recipe(folder.parent / "grown.yaml", donors=donors, layout={"slices": slices})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", slow_except(GROWN, "llama", "gemma2"))
def test_the_logits_of_a_grown_model_equal_those_of_the_model_it_was_grown_from(family: str, tmp_path: Path) -> None:
    recipe = grown(make_tiny(family, tmp_path / "donor"))
    built = build(recipe, (), tmp_path / "runs", SilentMonitor(), replace=False, deep=False, load=True)
    assert built is not None and "layers 2, 5 return their input bit for bit" in str(built.proofs)
    with torch.no_grad():
        ours, theirs = (
            load(folder)(input_ids=IDS, use_cache=False).logits
            for folder in (built.folder / "model", tmp_path / "donor")
        )
    assert torch.equal(ours, theirs)


def test_a_family_whose_layers_cannot_return_their_input_is_refused_with_the_reason(tmp_path: Path) -> None:
    recipe = grown(make_tiny("doge", tmp_path / "donor"))
    with pytest.raises(PlanError, match=r"layers scale the residual stream itself \(`input_residual`\) \('doge'\)"):
        check(recipe, (), SilentMonitor(), deep=False)

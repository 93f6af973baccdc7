"""Layers in another family compute what they computed, beside new mixers; new tensors come from their seeds alone."""

import json
import shutil

import numpy
import pytest
import torch

from hybridizer.checkpoint.hashing import hash_file
from hybridizer.checkpoint.reader import open_checkpoint
from hybridizer.core.errors import VerificationError
from hybridizer.core.progress import SilentMonitor
from hybridizer.families.targets import TARGETS
from hybridizer.pipeline.build import build
from hybridizer.pipeline.plan import plan_recipe
from hybridizer.pipeline.verify import verify_folder
from hybridizer.splice.verify import verify
from support.lines import write_recipe
from support.marks import slow_except
from support.native import CASES, assemble_by_hand, build_native, load_in, logits_of, make_case
from support.prove import load
from support.tiny import make_tiny

SWAP = [{"donor": "a", "layers": 0}, {"donor": "a", "layers": "1..2", "mixer": {"kind": "mamba2"}}]
SWAP += [{"donor": "a", "layers": 3}]


@pytest.fixture
def donor(bench):
    """A tiny llama of four layers."""
    return make_case("llama", bench)


def with_new_parts(target, kind):
    """Slices with two new mixers or two new layers, as the target takes them, and how they are put there."""
    if TARGETS[target].no_swap:
        new = {"fresh": kind, "count": 2}
        return [{"donor": "a", "layers": 0}, new, {"donor": "a", "layers": "1..3"}], "insert"
    mixer = {"kind": kind.removeprefix("parallel "), "parallel": kind.startswith("parallel")}
    middle = {"donor": "a", "layers": "1..2", "mixer": mixer}
    return [SWAP[0], middle, SWAP[2]], "beside" if mixer["parallel"] else "swap"


def test_there_is_a_case_for_every_donor_family_of_every_target():
    pairs = {(target, family) for target, _, family, _ in CASES.values()}
    assert pairs == {(target.family, family) for target in TARGETS.values() for family in target.donors}


@pytest.mark.parametrize("name", slow_except(CASES, "llama"))
def test_a_model_without_a_new_layer_gives_its_donors_logits_bit_for_bit(name, bench):
    donor, target = make_case(name, bench), CASES[name][0]
    slices = [{"donor": "a"}]
    if TARGETS[target].no_swap:  # the family needs a layer of each kind
        slices.append({"fresh": CASES[name][1], "zero_output": True})
    built = build_native(bench, donor, slices, target=target)
    assert built.plan.executor == "native" and built.plan.identity_of == "a"
    assert torch.equal(logits_of(load(built.folder / "model")), logits_of(load(donor)))
    ours, theirs = (logits_of(load_in(f, torch.bfloat16), torch.bfloat16) for f in (built.folder / "model", donor))
    if TARGETS[target].bit_exact:
        assert torch.equal(ours, theirs)
    else:  # within what bfloat16 costs the donor itself; 1.2 times that on a larger random Qwen3
        own = (theirs.float() - logits_of(load(donor))).abs().max()
        assert 0 < (ours.float() - theirs.float()).abs().max() < 2 * own


@pytest.mark.parametrize("name", slow_except(CASES, "llama"))
def test_a_swapped_model_gives_the_logits_of_its_parts_assembled_by_hand(name, bench):
    donor, kind = make_case(name, bench), CASES[name][1]
    slices, how = with_new_parts(CASES[name][0], kind)
    built = build_native(bench, donor, slices, target=CASES[name][0])
    written = load(built.folder / "model")
    by_hand = assemble_by_hand(donor, written, [1, 2], how)
    assert not torch.equal(logits_of(by_hand), logits_of(load(donor)))
    assert torch.equal(logits_of(written), logits_of(by_hand))
    assert built.plan.identity_of is None


def test_new_layers_with_zero_outputs_change_no_logit(donor, tmp_path):
    slices = [{"donor": "a", "layers": "0..1"}, {"fresh": "mamba2", "count": 2, "zero_output": True}]
    built = build_native(tmp_path, donor, [*slices, {"donor": "a", "layers": "2..3"}])
    assert built.plan.identity_of == "a" and len(built.plan.layers) == 6
    assert torch.equal(logits_of(load(built.folder / "model")), logits_of(load(donor)))
    slices[1]["zero_output"] = False
    other = build_native(tmp_path, donor, [*slices, {"donor": "a", "layers": "2..3"}], name="y")
    assert other.plan.identity_of is None
    assert not torch.equal(logits_of(load(other.folder / "model")), logits_of(load(donor)))


def test_swapped_layers_with_zero_outputs_keep_their_networks_alone(donor, tmp_path):
    slices = [{**piece, "zero_output": True} if "mixer" in piece else piece for piece in SWAP]
    built = build_native(tmp_path, donor, slices)
    model = load(donor)
    for place in (1, 2):
        model.model.layers[place].self_attn.o_proj.weight.data.zero_()
    assert torch.equal(logits_of(load(built.folder / "model")), logits_of(model))


@pytest.mark.slow
def test_new_tensors_depend_on_seed_and_place_alone(donor, tmp_path):
    first, again = (build_native(tmp_path, donor, SWAP, name=name) for name in ("x", "y"))
    assert first.manifest.files["model.safetensors"] == again.manifest.files["model.safetensors"]
    moved = build_native(tmp_path, donor, [*SWAP[1:], SWAP[0]], name="z")
    tensors, others = (load(b.folder / "model").state_dict() for b in (first, moved))
    name = "mamba.in_proj.weight"
    assert torch.equal(tensors[f"model.layers.1.{name}"], others[f"model.layers.1.{name}"])
    assert not torch.equal(tensors[f"model.layers.1.{name}"], tensors[f"model.layers.2.{name}"])
    assert torch.equal(tensors["model.layers.1.mamba.A_log"], torch.arange(1.0, 9.0).log())


@pytest.mark.slow
def test_sizes_are_those_of_the_recipe_and_else_the_donors(donor, tmp_path):
    suggested = build_native(tmp_path, donor, SWAP).plan.config
    keys = ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_expand")
    assert [suggested[key] for key in keys] == [8, 16, 2, 16, 2]
    sizes = {"heads": 4, "state": 8, "groups": 1, "chunk": 16}
    built = build_native(tmp_path, donor, SWAP, name="y", mixer_sizes=sizes)
    assert [built.plan.config[key] for key in keys] == [4, 16, 1, 8, 1]
    assert load(built.folder / "model").model.layers[1].mamba.intermediate_size == 64


def test_layers_are_named_as_llama_cpp_and_every_transformers_read_them(donor, tmp_path):
    built = build_native(tmp_path, donor, SWAP)
    assert built.plan.config["layer_types"] == ["attention", "mamba", "mamba", "attention"]
    assert [row.kind for row in built.plan.layers] == ["full_attention", *2 * ["linear_attention"], "full_attention"]
    assert [row.method for row in built.plan.layers] == ["copy", *2 * ["mamba2 for attention"], "copy"]
    assert set(built.plan.unused["a"].values()) == {"replaced by mamba2"}


@pytest.mark.slow
def test_converted_models_are_rounded_copies(donor, tmp_path):
    built = build_native(tmp_path, donor, SWAP, name="x")
    recipe = tmp_path / "x.yaml"
    recipe.write_text(recipe.read_text().replace("layout:", "output: {dtype: bfloat16}\nname: half\nlayout:"))
    half = build(recipe, (), tmp_path / "runs", SilentMonitor(), replace=False, deep=False, load=False)
    whole, rounded = (load(b.folder / "model").state_dict() for b in (built, half))
    assert half.plan.config["dtype"] == "bfloat16" and half.plan.identity_of is None
    assert all(torch.equal(whole[name].bfloat16().float(), rounded[name]) for name in whole)


@pytest.mark.slow
def test_verify_makes_every_tensor_again_and_names_one_that_differs(donor, tmp_path):
    folder = build_native(tmp_path, donor, SWAP).folder
    _, proofs = verify_folder(folder, SilentMonitor(), load=True)
    found = {proof.check: proof.found for proof in proofs}
    assert found["made again"] == "20 tensors that are not copies are what the plan makes, byte for byte"
    damaged = tmp_path / "damaged/x"
    for name in ("model.layers.0.shared_mlp.input_linear.weight", "model.layers.2.mamba.D"):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(folder, damaged)
        entry = open_checkpoint(damaged / "model").tensors[name]
        with entry.file.open("r+b") as file:
            file.seek(entry.begin)
            file.write(b"\x01")
        manifest = json.loads((damaged / "model/manifest.json").read_text())
        manifest["files"]["model.safetensors"] = hash_file(entry.file)
        (damaged / "model/manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(VerificationError, match=f"tensor '{name}' is not what"):
            verify_folder(damaged, SilentMonitor(), load=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["olmo2", "llama and branches", "qwen3 and next"])
def test_verify_knows_families_whose_mixers_cannot_be_fitted(name, bench):
    slices, _ = with_new_parts(*CASES[name][:2])
    built = build_native(bench, make_case(name, bench), slices, target=CASES[name][0])
    _, proofs = verify_folder(built.folder, SilentMonitor(), load=True)
    (made,) = (proof.found for proof in proofs if proof.check == "made again")
    assert made.endswith("tensors that are not copies are what the plan makes, byte for byte")


@pytest.mark.slow
def test_logits_of_another_family_may_differ_from_the_donors_by_rounding_alone(donor, tmp_path):
    folder = build_native(tmp_path, donor, [{"donor": "a"}], target="granitemoehybrid").folder
    manifest, proofs = verify_folder(folder, SilentMonitor(), load=True)
    assert manifest.identity_of == "a" and proofs[-1].found == "logits equal those of 'a' bit for bit"
    donors = plan_recipe(tmp_path / "x.yaml", (), SilentMonitor()).donors
    weights = open_checkpoint(folder / "model").tensors["model.layers.3.shared_mlp.output_linear.weight"]
    for factor, says in ((1 + 1e-5, "except for differences"), (1.1, "whose logits differ by up to")):
        data = numpy.memmap(weights.file, "<f4", "r+", weights.begin, weights.shape)
        data *= factor
        data.flush()
        try:
            found = verify(folder / "model", SilentMonitor(), find_donor=donors.get, rehash=False)[1][-1].found
        except VerificationError as error:
            found = str(error)
        assert says in found


HYBRIDS = {
    "granitemoehybrid": ("mamba2", {"num_local_experts": 0}),
    "lfm2": ("short_conv", {}),
    "qwen3_5_text": ("gated_delta_net", {}),
    "qwen3_next": ("gated_delta_net", {"num_experts": 0, "mlp_only_layers": []}),
    "olmo_hybrid": ("gated_delta_net", {}),
}


@pytest.mark.parametrize("family", slow_except(HYBRIDS, "granitemoehybrid"))
def test_a_hybrid_gets_new_layers_of_its_own(family, bench):
    kind, overrides = HYBRIDS[family]
    donor = make_tiny(family, bench / "donor", **overrides)
    slices = [{"donor": "a", "layers": "0..1"}, {"fresh": kind, "zero_output": True}, {"donor": "a", "layers": "2..3"}]
    built = build_native(bench, donor, slices)
    assert built.plan.executor == "native" and built.plan.identity_of == "a" and built.plan.served_by == ()
    assert built.plan.layers[2].method == f"fresh {kind}" and built.plan.layers[2].kind == built.plan.layers[0].kind
    assert torch.equal(logits_of(load(built.folder / "model")), logits_of(load(donor)))
    other = build_native(bench, donor, [slices[0], {"fresh": kind}, slices[2]], name="y")
    assert other.plan.identity_of is None
    assert not torch.equal(logits_of(load(other.folder / "model")), logits_of(load(donor)))


@pytest.mark.slow
def test_layers_of_two_donors_go_into_one_hybrid(donor, tmp_path):
    other = make_tiny("llama", tmp_path / "other", seed=5, tie_word_embeddings=True)
    entries = {name: {"source": str(path), "allow": ["no_tokenizer"]} for name, path in (("a", donor), ("b", other))}
    slices = [*SWAP[:2], {"donor": "b", "layers": 2}, {"donor": "b", "layers": 3, "mixer": {"kind": "mamba2"}}]
    path = write_recipe(tmp_path / "x.yaml", donors=entries, layout={"host": "a", "slices": slices})
    built = build(path, (), tmp_path / "runs", SilentMonitor(), replace=False, deep=False, load=False)
    written, (ours, theirs) = load(built.folder / "model").model, (load(folder).model for folder in (donor, other))
    assert torch.equal(written.layers[0].self_attn.q_proj.weight, ours.layers[0].self_attn.q_proj.weight)
    assert torch.equal(written.layers[3].self_attn.q_proj.weight, theirs.layers[2].self_attn.q_proj.weight)
    joined = torch.cat([theirs.layers[3].mlp.gate_proj.weight, theirs.layers[3].mlp.up_proj.weight])
    assert torch.equal(written.layers[4].shared_mlp.input_linear.weight, joined)
    assert torch.equal(written.norm.weight, ours.norm.weight)
    assert set(built.plan.unused["b"].values()) == {
        "layer 0 is in no slice",
        "layer 1 is in no slice",
        "outside the layers, where the host 'a' decides",
        "replaced by mamba2",
    }

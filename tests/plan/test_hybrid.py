"""What cannot be put into another family is refused at plan time, with the reason and the nearest that can."""

import pytest

from hybridizer.core.errors import PlanError, RecipeError
from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.plan import check
from support.lines import write_recipe
from support.tiny import make_tiny

SWAP = [{"donor": "a", "layers": "0..2"}, {"donor": "a", "layers": 3, "mixer": {"kind": "mamba2"}}]


@pytest.fixture
def plan(bench):
    """Plans a recipe with slices of the donor a, a tiny model of a family."""

    def make(family="llama", slices=SWAP, donor=(), **layout):
        folder = make_tiny(family, bench / family, **dict(donor))
        entry = {"source": str(folder), "allow": ["no_tokenizer"]}
        recipe = write_recipe(bench / "x.yaml", donors={"a": entry}, layout={"host": "a", "slices": slices, **layout})
        return check(recipe, (), SilentMonitor(), deep=False).plan

    return make


def refused(plan, error=PlanError, **request):
    with pytest.raises(error) as caught:
        plan(**request)
    return str(caught.value)


def test_the_plan_says_which_family_and_what_runs_it(plan):
    made = plan()
    assert made.evidence.reasons[0].startswith("granitemoehybrid is chosen: it holds layers of llama beside mamba2")
    assert [(served.by, served.answer) for served in made.served_by] == [
        ("transformers", "yes"),
        ("vLLM", "yes"),
        ("llama.cpp", "with"),
    ]
    assert plan(slices=[{"donor": "a"}]).served_by == ()
    alone = plan(slices=[{"donor": "a"}], target="granitemoehybrid")
    assert "granitemoehybrid is requested" in alone.evidence.reasons[0]
    assert alone.served_by[2].answer == "untried"
    assert plan(slices=BRANCH).served_by[2].answer == "with"


@pytest.mark.parametrize(
    ("family", "donor", "says"),
    [
        ("mistral", {}, "which needs that every layer has full attention: some have sliding_attention."),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "which needs that one rotary setting, on the whole head: on 0.5 of the head.",
        ),
        ("llama", {"hidden_act": "gelu"}, "the activation is silu, which the kernels of all mixers know: gelu."),
        (
            "llama",
            {"mlp_bias": True},
            "the family granitemoehybrid has no place for 'model.layers.0.mlp.down_proj.bias' and 2 more.",
        ),
        ("gemma2", {}, "no family of transformers that is known here holds layers of 'gemma2' (they have soft caps"),
        ("mixtral", {}, "no family of transformers that is known here holds layers of 'mixtral' beside mamba2."),
    ],
)
def test_donors_that_the_family_cannot_hold_are_refused_with_the_reason(plan, family, donor, says):
    message = refused(plan, family=family, donor=donor)
    assert says in message
    assert message.count("\n  ") == 1, "each problem has its way out"


def test_a_head_size_that_the_width_does_not_give_is_run_by_transformers_alone(plan):
    made = plan(donor={"head_dim": 32})
    served = {served.by: served for served in made.served_by}
    assert made.config["head_dim"] == 32 and served["transformers"].answer == "yes"
    assert served["vLLM"].answer == "no" and "it takes heads of 64/4 from the width" in served["vLLM"].how


def test_token_ids_are_the_donors_and_never_the_familys_own(plan):
    ids = {"pad_token_id": None, "bos_token_id": 5, "eos_token_id": [6, 7]}
    config = plan(family="olmo2", donor=ids, slices=[{"donor": "a"}, {"fresh": "gated_delta_net"}]).config
    assert {key: config[key] for key in ids} == ids


def test_a_family_that_rounds_bfloat16_says_so(plan):
    swap = [{"donor": "a", "layers": "0..2"}, {"donor": "a", "layers": 3, "mixer": {"kind": "gated_delta_net"}}]
    for dtype, says in (("bfloat16", True), ("float32", False)):
        donor = {"use_sliding_window": False, "dtype": dtype}
        reason = plan(family="qwen3", donor=donor, slices=swap).evidence.reasons[0]
        assert ("within rounding: BF16 cannot hold" in reason) is says


SWAP_OF = {kind: [{"donor": "a", "layers": "0..2"}, {"donor": "a", "layers": 3, "mixer": {"kind": kind}}]
           for kind in ("mamba2", "gated_delta_net", "short_conv")}  # fmt: skip
BRANCH = [{"donor": "a", "layers": 3, "mixer": {"kind": "mamba2", "parallel": True}}, {"donor": "a", "layers": "0..2"}]
QWEN3 = {"use_sliding_window": False}


@pytest.mark.parametrize(
    ("family", "donor", "layout", "vllm", "llama"),
    [
        ("llama", {}, {"slices": SWAP_OF["mamba2"], "mixer_sizes": {"heads": 4}}, "", "64 wide (heads x head_dim)"),
        ("llama", {"head_dim": 32}, {"slices": SWAP_OF["mamba2"]}, "heads of 64/4", "heads of 64/4"),
        ("qwen3", QWEN3, {"slices": SWAP_OF["gated_delta_net"]}, "", ""),
        ("qwen3", {**QWEN3, "attention_bias": True}, {"slices": SWAP_OF["gated_delta_net"]}, "bias' is", "bias' is"),
        (
            "qwen3",
            QWEN3,
            {"slices": SWAP_OF["gated_delta_net"], "mixer_sizes": {"state": 8}},
            "",
            "`head_dim` 16 and `state` 8",
        ),
        (
            "qwen3",
            QWEN3,
            {"slices": SWAP_OF["gated_delta_net"], "target": "qwen3_next"},
            "a mixture of experts alone",
            "a mixture of experts alone",
        ),
        ("qwen3", QWEN3, {"slices": SWAP_OF["short_conv"]}, "a head of its own", ""),
        ("qwen3", {**QWEN3, "tie_word_embeddings": True}, {"slices": SWAP_OF["short_conv"]}, "", ""),
        ("llama", {"mlp_bias": True}, {"slices": BRANCH}, "'mlp.down_proj.bias' is one", ""),
        ("llama", {"attention_bias": True}, {"slices": BRANCH}, "bias' is one", "'self_attn.o_proj.bias'"),
        ("llama", {"head_dim": 32}, {"slices": BRANCH}, "", ""),
    ],
)
def test_what_an_engine_has_no_place_for_is_said_in_the_plan(plan, family, donor, layout, vllm, llama):
    served = {served.by: served for served in plan(family=family, donor=donor, **layout).served_by}
    for by, reason in (("vLLM", vllm), ("llama.cpp", llama)):
        assert (served[by].answer == "no") is bool(reason) and reason in served[by].how, (by, served[by])


@pytest.mark.parametrize(
    ("family", "donor", "slices", "says"),
    [
        ("llama", {}, SWAP_OF["mamba2"], "as transformers computes it, by 0.32"),
        ("llama", {}, BRANCH, "as transformers computes it, by 0.32"),
        ("qwen3", QWEN3, SWAP_OF["gated_delta_net"], "as transformers computes it, by 0.32"),
        (
            "qwen3",
            {**QWEN3, "tie_word_embeddings": True},
            SWAP_OF["short_conv"],
            "as transformers computes it, by 0.32",
        ),
        ("olmo2", {}, [{"donor": "a"}, {"fresh": "gated_delta_net"}], "read in the source of 0.33, not run"),
    ],
)
def test_the_plan_says_which_families_vllm_was_run_with(plan, family, donor, slices, says):
    vllm = plan(family=family, donor=donor, slices=slices).served_by[1]
    assert (vllm.by, vllm.answer) == ("vLLM", "yes") and vllm.how.endswith(says)


def test_a_swap_that_the_norms_prevent_is_refused_and_new_layers_are_offered(plan):
    slices = [{"donor": "a", "layers": "0..2"}, {"donor": "a", "layers": 3, "mixer": {"kind": "gated_delta_net"}}]
    message = refused(plan, family="olmo2", slices=slices)
    assert "a gated_delta_net in the place of attention, in the family olmo_hybrid" in message
    assert "Add new layers instead, as {fresh: gated_delta_net}." in message


def test_a_family_that_needs_both_kinds_of_layers_says_so(plan):
    message = refused(plan, family="olmo2", slices=[{"donor": "a"}], target="olmo_hybrid")
    assert "the family olmo_hybrid works only with at least one linear_attention layer." in message


def test_where_no_family_fits_the_nearest_is_named(plan):
    message = refused(plan, family="gemma2")
    assert "Nearest: donors of llama, mistral, qwen2, granite for mamba2 (granitemoehybrid)." in message


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"heads": 3}, "3 heads of 16 = 48 is not a multiple of the model's width 64."),
        ({"groups": 3}, "8 heads do not divide into 3 groups."),
        ({"conv": 5}, "a convolution over 5 tokens; the CUDA kernel takes 2 to 4."),
    ],
)
def test_sizes_that_the_mixer_cannot_have_are_refused_with_sizes_that_fit(plan, sizes, says):
    message = refused(plan, mixer_sizes=sizes)
    assert says in message and "Sizes that fit: heads 8, head_dim 16, groups 2, state 16, conv 4, chunk 64." in message


def test_a_model_without_any_attention_is_refused(plan):
    message = refused(plan, slices=[{"donor": "a", "mixer": {"kind": "mamba2"}}])
    assert "no output layer has attention: all are linear_attention." in message


def test_blends_have_a_recipe_of_their_own(plan):
    sides = [{"donor": "a", "layers": layers, "parameters": {"weight": 0.5}} for layers in ("0..1", "1..2")]
    message = refused(plan, slices=[{"blend": {"method": "linear", "sources": sides}}, *SWAP])
    assert "a blend in a model of another family than its donors' (granitemoehybrid)." in message


@pytest.mark.parametrize(
    ("piece", "says"),
    [
        ({"donor": "a", "fresh": "mamba2"}, "has `donor` beside `fresh`, and new layers come from no donor."),
        ({"donor": "a", "count": 2}, "has `count`, which counts new layers, and no `fresh`."),
        ({"donor": "a", "zero_output": True}, "has `zero_output` and no new part."),
        ({"donor": "a", "mixer": {"kind": "mamba3"}}, "`kind` cannot be 'mamba3'.\n  Did you mean 'mamba2'?"),
    ],
)
def test_slices_that_contradict_themselves_are_refused(plan, piece, says):
    assert says in refused(plan, RecipeError, slices=[*SWAP, piece])


def test_sizes_without_a_mixer_are_refused(plan):
    message = refused(plan, RecipeError, slices=[{"donor": "a"}], mixer_sizes={"heads": 4})
    assert "no slice has `fresh` or `mixer`" in message


@pytest.mark.parametrize(
    ("family", "slices", "layout", "says"),
    [
        ("granitemoehybrid", [{"fresh": "mamba2", "zero_output": True}], {}, "whose layers have experts"),
        (
            "granitemoehybrid",
            [{"fresh": "mamba2"}],
            {"mixer_sizes": {"heads": 4}},
            "the sizes that the host's config holds",
        ),
        ("qwen3_next", [{"fresh": "gated_delta_net"}], {}, "whose layers differ in their networks"),
        (
            "lfm2",
            [{"fresh": "mamba2"}],
            {},
            "no family of transformers that is known here holds layers of 'lfm2' beside mamba2",
        ),
    ],
)
def test_new_layers_that_a_hybrid_cannot_have_are_refused(plan, family, slices, layout, says):
    assert says in refused(plan, family=family, slices=[{"donor": "a"}, *slices], **layout)

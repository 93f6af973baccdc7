from dataclasses import replace

import pytest

from hybridizer.plan import recompute as recompute_module
from hybridizer.plan.dimensions import LayerShape, ModelShape, RunShape
from hybridizer.plan.freeze import choose_frozen
from hybridizer.plan.memory import estimate
from hybridizer.plan.recompute import memory_budget, recomputing_order, with_recomputing, within_budget
from hybridizer.recipe.models import Lora
from support.sections import train_section

# SmolLM2-135M
LAYER = LayerShape(3_540_096, 3_538_944, 5760, 1152, 576)
SMOLLM2 = ModelShape(576, 49152, (LAYER,) * 30, tied=True, stored_bytes=4)
RUN = RunShape(batch_tokens=8192, context=256)
GB = 10**9


def choose(layers):
    return choose_frozen(train_section(freeze=layers), 30, 15, tied=True)


def peak(choice, run):
    return estimate(SMOLLM2, choice, run).memory.total


def test_trained_layers_come_first_because_they_save_more_per_repeated_operation():
    assert recomputing_order(SMOLLM2, choose("deep"), RUN) == list(range(30))
    shallow = choose("shallow")
    assert recomputing_order(SMOLLM2, shallow, RUN) == list(range(15, 30)), "those below keep nothing"
    mixed = choose((0, 1, 2))  # frozen
    mixed = replace(mixed, frozen_embedding=False)  # so that they pass gradients on, and keep something
    assert recomputing_order(SMOLLM2, mixed, RUN) == [*range(3, 30), 0, 1, 2]


def test_layers_that_cost_more_operations_for_what_they_save_come_last():
    heavy = replace(LAYER, matrix_parameters=2 * LAYER.matrix_parameters)
    light = replace(LAYER, kept_width=500, trained_width=0)  # keeps less than its input
    shape = replace(SMOLLM2, layers=(heavy, LAYER, light, *SMOLLM2.layers[3:]))
    assert recomputing_order(shape, choose("none"), RUN) == [1, *range(3, 30), 0]


@pytest.mark.parametrize("layers", ["deep", "shallow", "none"])
def test_no_more_layers_are_recomputed_than_the_budget_needs(layers):
    choice = choose(layers)
    order = recomputing_order(SMOLLM2, choice, RUN)
    most = peak(choice, RUN)
    assert within_budget(SMOLLM2, choice, RUN, most).recomputed_layers == ()
    counts = []
    for share in (0.9, 0.75, 0.6):
        budget = int(share * most)
        found = within_budget(SMOLLM2, choice, RUN, budget)
        count = len(found.recomputed_layers)
        assert found.recomputed_layers == tuple(sorted(order[:count]))
        assert peak(choice, found) <= budget
        fewer = replace(RUN, recomputed_layers=tuple(sorted(order[: count - 1])))
        assert peak(choice, fewer) > budget
        counts.append(count)
    assert counts == sorted(set(counts)), "a lower budget needs more layers"


def test_a_budget_out_of_reach_gives_the_lowest_peak_with_the_fewest_layers():
    choice = choose("deep")
    found = within_budget(SMOLLM2, choice, RUN, 1)
    order = recomputing_order(SMOLLM2, choice, RUN)
    peaks = [peak(choice, replace(RUN, recomputed_layers=tuple(order[:count]))) for count in range(31)]
    assert len(found.recomputed_layers) == peaks.index(min(peaks)) > 0
    small = replace(RUN, batch_tokens=8, moment_bytes=2, unpacked_bytes=20)  # the peak is in the update
    assert within_budget(SMOLLM2, choice, small, 1).recomputed_layers == ()


def test_a_layer_that_runs_again_has_everything_beside_what_those_before_it_keep():
    choice, scale = choose("none"), 4 * RUN.batch_tokens
    wide, full = replace(SMOLLM2, vocabulary=8), LAYER.kept_width + LAYER.trained_width
    kept = estimate(wide, choice, replace(RUN, recomputed_layers=(29,))).memory.activations
    assert kept == (29 * full + full) * scale, "the last layer runs again when all others are still there"
    kept = estimate(wide, choice, replace(RUN, recomputed_layers=tuple(range(30)))).memory.activations
    assert kept == (29 * SMOLLM2.width + full) * scale


@pytest.mark.parametrize(("asked", "device", "budget"), [
    (True, "cpu", None), (False, "cpu", None), (3 * GB, "cuda", 3 * GB), ("auto", "cuda", 68 * GB),
    ("auto", "mps", None),
])  # fmt: skip
def test_the_budget_is_the_size_or_most_of_the_device(monkeypatch, asked, device, budget):
    monkeypatch.setattr(recompute_module, "device_bytes", {"cuda": 80 * GB, "mps": None}.get)
    assert memory_budget(train_section(gradient_checkpointing=asked), device) == budget


def test_all_layers_none_or_as_many_as_needed(monkeypatch):
    choice = choose("deep")

    def found(value):
        section = train_section(gradient_checkpointing=value)
        return with_recomputing(section, "cpu", SMOLLM2, choice, RUN).recomputed_layers

    assert (found(False), found(True)) == ((), tuple(range(30)))
    assert 0 < len(found(6 * GB)) < 30
    monkeypatch.setattr(recompute_module, "device_bytes", lambda device: int(6 * GB / 0.85))
    assert found("auto") == found(6 * GB)


def test_adapters_count_as_what_they_keep():
    adapted = replace(RUN, adapter_rank=16)
    shape = replace(SMOLLM2, layers=(replace(LAYER, num_linears=7, adapter_width=9000, adapted_width=4000),) * 30)
    section = train_section(lora=Lora(16), gradient_checkpointing=True)
    assert len(with_recomputing(section, "cpu", shape, choose("deep"), adapted).recomputed_layers) == 30
    assert recomputing_order(shape, choose("shallow"), adapted) == list(range(15, 30))

from dataclasses import replace

import pytest
import torch

from hybridizer.models.loss import loss_chunk_bytes
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import find_parts
from hybridizer.plan.dimensions import LOSS_CHUNK_BYTES, LayerShape, ModelShape, RunShape
from hybridizer.plan.flops import count_token_flops, full_training
from hybridizer.plan.freeze import choose_frozen
from hybridizer.plan.memory import BUILD_BYTES, GRADIENT_SPREAD, HEAP_SPREAD, PROCESS_BYTES, estimate
from hybridizer.recipe.models import Lora
from hybridizer.train.freeze import apply_freeze_, plan_freeze, plan_lora_
from hybridizer.train.fused import fused
from support.sections import train_section
from support.shapes import shape_of
from support.train_models import tiny_model

# SmolLM2-135M
LAYER = LayerShape(3_540_096, 3_538_944, 5760, 1152, 576)
SMOLLM2 = ModelShape(576, 49152, (LAYER,) * 30, tied=True, stored_bytes=4)
RUN = RunShape(batch_tokens=2048, context=256)


def choose(layers, tied=True, num_layers=30, boundary=15, **parts):
    return choose_frozen(train_section(freeze=layers, **parts), num_layers, boundary, tied)


def test_costs_are_the_formulas_of_freezing():
    n, heads = 1000, dict(frozen_embedding=False, frozen_final_norm=False, frozen_head=False)
    for layers, factor in {"deep": 4 + 2 * 0.5, "shallow": 2 + 4 * 0.5, "none": 6}.items():
        choice = replace(choose(layers, tied=False), **heads)
        if layers == "shallow":
            choice = replace(choice, frozen_embedding=True)
        flops = count_token_flops(choice, [n] * 30, 0, [0] * 30, 0)
        assert flops.total == pytest.approx(factor * 30 * n), layers


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("layers", ["deep", "shallow", "none", (0, 2)])
def test_counted_operations_are_the_estimated_ones(layers, rank):
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_model("llama")
    model.set_attn_implementation("eager")  # the counter does not know the fused kernel of CPUs
    parts = find_parts(model)
    plan = plan_freeze(model, parts, train_section(freeze=layers), boundary=2)
    shape = shape_of(parts, attention_width=64)
    if rank:
        plan = plan_lora_(model, parts, plan, Lora(rank))
    apply_freeze_(model, plan)
    objective = CausalLMLoss(model, parts)
    tokens = 32
    ids = torch.arange(tokens)[None] + 3
    with FlopCounterMode(display=False) as counter:
        objective(ids, torch.arange(tokens)[None], ids.clamp(max=200)).backward()
    # Eager attention computes the full square, of which a causal token needs half.
    ours = estimate(shape, plan.choice, RunShape(tokens, context=tokens, adapter_rank=rank))
    counted = counter.get_total_flops() / tokens
    if rank:  # below the lowest adapters nothing trains, so its three input projections pass no gradient on
        projections = [(64, 64), (64, 32), (64, 32)]
        counted += sum(2 * (a * b + rank * a) for a, b in projections)
    assert counted == pytest.approx(ours.token_flops.total, rel=0.001)
    assert ours.trained_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_what_adapters_keep_is_what_autograd_keeps(dropout, precision):
    model = tiny_model("llama", num_hidden_layers=6).to(precision)
    parts = find_parts(model.eval())
    shape = shape_of(parts, attention_width=64)
    lora = Lora(4, dropout=dropout)
    plan = plan_lora_(model, parts, plan_freeze(model, parts, train_section(freeze="none"), boundary=2), lora)
    apply_freeze_(model.to(precision).train(), plan)
    ids, weights, kept = torch.arange(200)[None] + 3, {p.data_ptr() for p in model.parameters()}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no other takes its place
        return tensor

    with fused(model), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model(input_ids=ids, use_cache=False)
    run = RunShape(200, 100, precision.itemsize, adapter_rank=4, adapter_dropout=dropout > 0)
    found = estimate(shape, plan.choice, run).memory.activations
    assert found == pytest.approx(sum(size for size, _ in kept.values()), rel=0.1)


def test_parameters_add_up_and_a_tied_table_counts_once():
    for tied, total in ((True, 134_515_008), (False, 162_826_560)):
        shape = replace(SMOLLM2, tied=tied)
        for layers in ("deep", "shallow", "none"):
            found = estimate(shape, choose(layers, tied), RUN)
            assert found.trained_parameters + found.frozen_parameters == total
    assert estimate(SMOLLM2, choose("deep"), RUN).trained_parameters == 15 * LAYER.parameters


def test_freezing_deep_saves_more_memory_than_compute_and_says_so():
    found = estimate(SMOLLM2, choose("deep"), RUN)
    assert found.token_flops.total < found.full_token_flops.total
    assert found.memory.total < found.memory.total + 1 <= found.full_memory.total
    assert found.memory.optimizer == 8 * found.trained_parameters
    assert "of gradients, masters and optimizer state" in found.sentence()


def test_recomputing_layers_keeps_one_layer_and_the_stream():
    kept = estimate(SMOLLM2, choose("deep"), replace(RUN, recomputed_layers=tuple(range(30)))).memory.activations
    assert kept < estimate(SMOLLM2, choose("deep"), RUN).memory.activations / 5


def test_recomputed_layers_scatter_the_heap_as_much_as_those_that_keep_everything():
    run = replace(RUN, batch_tokens=8192, compute_bytes=2)
    whole, recomputed = (
        estimate(SMOLLM2, choose("deep"), replace(run, recomputed_layers=layers)).memory
        for layers in ((), tuple(range(30)))
    )
    assert recomputed.activations < whole.activations / 5
    assert recomputed.allocator == whole.allocator


def test_a_layer_that_is_recomputed_first_keeps_everything_beside_the_inputs_of_the_others():
    shape = replace(SMOLLM2, vocabulary=100)  # no loss to speak of
    run = replace(RUN, batch_tokens=8192, recomputed_layers=tuple(range(30)))
    found = estimate(shape, choose("deep"), run).memory
    assert (found.gradients, found.loss) == (0, 0), "neither is there yet, or any more"
    assert found.activations == 4 * 8192 * (29 * 576 + 5760)  # the last layer, which is frozen, runs again first


def test_nothing_is_kept_below_the_lowest_trained_layer():
    shallow = estimate(SMOLLM2, choose("shallow"), RUN).memory.activations
    full = estimate(SMOLLM2, choose("none"), RUN).memory.activations
    assert shallow == pytest.approx(full / 2, rel=1e-6)


def test_full_training_freezes_nothing():
    assert full_training(choose("deep")).trained_layers == tuple(range(30))


def test_gradients_that_add_up_wait_while_the_next_batch_goes_forward():
    one, several = (estimate(SMOLLM2, choose("deep"), replace(RUN, accumulates=a)) for a in (False, True))
    assert one.memory.gradients == 0  # the peak is where the forward pass ends, before there are any
    assert several.memory.gradients == 4 * several.trained_parameters
    assert several.memory.activations == one.memory.activations


def test_a_trained_tied_table_has_a_second_gradient_table():
    small = replace(RUN, batch_tokens=64)
    full = estimate(SMOLLM2, choose("none"), small)
    assert full.memory.gradients == 4 * full.trained_parameters + 4 * 576 * 49152


def test_parts_of_memory_are_all_of_it():
    memory = estimate(SMOLLM2, choose("deep"), replace(RUN, compute_bytes=2)).memory
    assert memory.total == sum(vars(memory).values())
    assert memory.masters == 2 * memory.optimizer // 4 > 0
    assert estimate(SMOLLM2, choose("deep"), replace(RUN, device="cuda")).memory.allocator == 0


def test_the_file_of_frozen_weights_keeps_the_trained_ones_in_memory_that_compute_in_another_precision():
    low = replace(RUN, compute_bytes=2)
    deep, none = (estimate(SMOLLM2, choose(layers), low) for layers in ("deep", "none"))
    assert deep.memory.weights == 4 * deep.frozen_parameters + (2 + 4) * deep.trained_parameters
    assert none.memory.weights == 2 * none.trained_parameters, "nothing frozen holds the file"
    for other in (replace(SMOLLM2, stored_bytes=2), SMOLLM2):
        run = replace(RUN, compute_bytes=other.stored_bytes)
        found = estimate(other, choose("deep"), run)
        assert found.memory.weights == other.stored_bytes * (found.frozen_parameters + found.trained_parameters)
    on_cuda = estimate(SMOLLM2, choose("deep"), replace(low, device="cuda"))
    assert on_cuda.memory.weights == 4 * on_cuda.frozen_parameters + 2 * on_cuda.trained_parameters


def test_an_update_that_unpacks_the_largest_tensor_is_a_peak_of_its_own():
    run = replace(RUN, batch_tokens=64, moment_bytes=2, unpacked_bytes=20)
    full = estimate(SMOLLM2, choose("none"), run)
    assert full.memory.optimizer == 2 * full.trained_parameters + 20 * 576 * 49152
    assert (full.memory.gradients, full.memory.activations) == (4 * full.trained_parameters, 0)
    largest = replace(SMOLLM2, layers=(replace(LAYER, largest_parameters=576 * 1536),) * 30)
    deep = estimate(largest, choose("deep"), run)
    assert deep.memory.optimizer == 2 * deep.trained_parameters + 20 * 576 * 1536
    adapters = estimate(SMOLLM2, choose("deep"), replace(run, adapter_rank=4))
    assert adapters.memory.optimizer == 2 * adapters.trained_parameters


def test_a_bfloat16_product_of_a_cpu_is_summed_up_in_a_float32_table():
    table, run = 576 * 49152, replace(RUN, compute_bytes=2, product_bytes=2)
    trained, frozen = (estimate(SMOLLM2, choose(layers), run).memory.loss for layers in ("none", "deep"))
    cast = 2 * table  # of the frozen head, which is stored in float32
    assert trained - frozen == 10 * table - cast
    on_cuda = [
        estimate(SMOLLM2, choose(layers), replace(run, device="cuda")).memory.loss for layers in ("none", "deep")
    ]
    assert on_cuda[0] - on_cuda[1] == 6 * table - cast


def test_the_heap_is_scattered_by_what_comes_and_goes():
    memory = estimate(SMOLLM2, choose("deep"), RUN).memory
    assert memory.allocator == round(HEAP_SPREAD["cpu"] * (memory.activations + LOSS_CHUNK_BYTES["cpu"]))
    waiting = estimate(SMOLLM2, choose("deep"), replace(RUN, accumulates=True)).memory
    assert waiting.allocator - memory.allocator == pytest.approx(GRADIENT_SPREAD["cpu"] * waiting.gradients, abs=1)


def test_a_build_has_more_in_its_process_than_a_probe():
    assert estimate(SMOLLM2, choose("deep"), RUN).memory.process == PROCESS_BYTES["cpu"] + BUILD_BYTES["cpu"]
    assert estimate(SMOLLM2, choose("deep"), replace(RUN, device="cuda")).memory.process == 0


def test_the_chunk_of_the_loss_is_the_one_that_trains():
    for device, size in LOSS_CHUNK_BYTES.items():
        assert loss_chunk_bytes(torch.device(device)) == size

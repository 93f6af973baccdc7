"""Two processes that share the work must train like one that does all of it."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from support.train_ranks import end, start_ranks, take_steps
from support.train_runs import SETTINGS, run


def losses_of(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_processes_give_the_losses_of_one(tmp_path, precision):
    processes = start_ranks(tmp_path / "two", precision)
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [error[-2000:] for _, error in outputs]
    run(tmp_path / "one", replace(SETTINGS, precision=precision, micro_batch_size=2), dropout=0.0)
    # The sums over rows are taken in another order: float32 keeps 24 bits, bfloat16 8, over a dozen steps.
    tolerance = 1e-5 if precision == "float32" else 2e-2
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=tolerance)
    assert outputs[0][0].split()[-1] == outputs[1][0].split()[-1], "the ranks ended with different weights"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_two_processes_keep_the_same_frozen_layers_in_few_bits(tmp_path, kind):
    processes = start_ranks(tmp_path / "two", "float32", frozen_dtype=kind)
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [error[-2000:] for _, error in outputs]
    run(tmp_path / "one", replace(SETTINGS, micro_batch_size=2, frozen_dtype=kind), dropout=0.0)
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_fsdp2_saves_the_same_full_tensors_as_one_process(tmp_path):
    precision = "bfloat16"  # the harder one: spread parameters and spread masters differ
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    processes = start_ranks(tmp_path / "two", precision, **fsdp)
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [error[-2000:] for _, error in outputs]
    run(tmp_path / "one", replace(SETTINGS, precision=precision, micro_batch_size=2), dropout=0.0)
    two, one = (load_file(tmp_path / name / "masters.safetensors") for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name, tensor in one.items():
        assert two[name].dtype == torch.float32 and two[name].shape == tensor.shape
        # A dozen steps at a rate of 0.01, and sums of 8 bits in another order.
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=3e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_resumes_with_another_number_of_processes(tmp_path, before, after):
    """A GPU that fails must not end a run. The losses are those of an uninterrupted run, up to the order of sums."""
    settings = replace(SETTINGS, micro_batch_size=2)
    _, straight = run(tmp_path / "one", settings, dropout=0.0)
    first = start_ranks(tmp_path / "elastic", "float32", before, pace="paced")
    take_steps(first, 5)
    first[-1].send_signal(signal.SIGTERM)
    assert end(first) == [143] * before
    second = start_ranks(tmp_path / "elastic", "float32", after)
    outputs = [process.communicate(timeout=300) for process in second]
    assert [process.returncode for process in second] == [0] * after, [error[-2000:] for _, error in outputs]
    assert losses_of(tmp_path / "elastic") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-5)
    state = json.loads((tmp_path / "elastic" / "checkpoints" / f"step-{straight.steps:08d}" / "state.json").read_text())
    (change,) = state["figures"]["changes"]
    assert (change["setting"], change["before"], change["now"]) == ("processes", before, after)
    assert change["step"] == 5

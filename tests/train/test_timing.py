import json
from dataclasses import replace

import pytest

from hybridizer.core.errors import DonorError, RecipeError, RunError
from hybridizer.train import timing as module
from hybridizer.train.timing import DryRun, DryRunRequest, dry_run, measure_peak
from support.sections import train_section
from support.tiny import tiny_config

CONFIG = json.loads(json.dumps(tiny_config("llama").to_dict()))
SETTINGS = train_section(freeze="deep", seq_len=32, global_batch_size=2, precision="float32")
REQUEST = DryRunRequest(CONFIG, "float32", SETTINGS, boundary=2, steps=2, cpu=True)


@pytest.mark.slow
def test_a_probe_takes_real_steps_in_a_process_of_its_own_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found = dry_run(REQUEST)
    assert found.step_seconds > 0 and found.tokens_per_second == pytest.approx(64 / found.step_seconds)
    assert 10**8 < found.peak_memory_bytes < 10**9
    assert (found.device, found.compute_dtype) == ("cpu", "float32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_error_in_the_probe_arrives_as_what_it_is():
    with pytest.raises(RecipeError, match="Give a boundary inside"):
        dry_run(replace(REQUEST, boundary=9))


@pytest.mark.slow
def test_a_probe_that_dies_says_what_to_lower(monkeypatch):
    monkeypatch.setattr(module, "_answer", dying)
    with pytest.raises(RunError, match="Lower `micro_batch_size`"):
        dry_run(REQUEST)


def dying(request, sender):
    import os

    os._exit(9)


def test_rows_are_full_and_packed_ones_hold_two_documents():
    for packed, documents in ((True, 2), (False, 1)):
        data = module._random_data(replace(REQUEST, settings=replace(SETTINGS, packed=packed)), 100)
        assert data.num_steps == 2
        (batch,) = data.batches(1)
        assert batch.input_ids.shape == (2, 32)
        assert int((batch.position_ids == 0).sum()) == 2 * documents
        assert data.num_tokens(1) == 64


@pytest.mark.slow
def test_a_config_that_cannot_be_built_is_refused():
    with pytest.raises(DonorError, match="cannot build this model"):
        dry_run(replace(REQUEST, config={**CONFIG, "model_type": "no_such_family"}))


def test_what_was_probed_is_a_plain_record():
    from hybridizer.core.records import to_jsonable

    assert to_jsonable(DryRun(1.0, 2.0, 3, "cpu", "float32"))["peak_memory_bytes"] == 3


def test_a_peak_is_a_plausible_rate_and_that_of_the_fastest_size():
    slow = measure_peak("cpu", "float32", [(1, 1)])
    assert 0 < slow < 1e15
    assert measure_peak("cpu", "float32", [(1, 1), (256, 256)], seconds=60.0) > 10 * slow


def test_a_peak_is_above_zero_however_slow_the_products_are(monkeypatch):
    """share_of_peak was 0 in the whole log where the first product took longer than the time for all of them."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    assert measure_peak("cpu", "float32", [(8, 8)], seconds=0.3) == 2 * 8**3

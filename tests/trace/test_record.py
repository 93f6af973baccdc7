"""A trace record reads back as the record that was written, and a file that is not one is refused with the field."""

import json

import pytest

from hybridizer.core.errors import CheckpointError
from hybridizer.core.records import write_json
from hybridizer.recipe.models import Trace
from hybridizer.trace.record import read_trace_record
from hybridizer.trace.tracer import trace_model
from support.trace_records import record
from support.traced_donors import PROBES, load_tiny, spread, traced


@pytest.mark.parametrize("perturb", ["context", "both"])
def test_a_real_record_comes_back_equal_to_the_bit(perturb, tmp_path):
    model, tokenizer, parts = load_tiny("llama", tmp_path)
    settings = Trace(perturb=perturb, num_resamples=50)
    run = trace_model(spread(model), tokenizer, parts, PROBES, settings, traced(parts))
    write_json(tmp_path / "record.json", run.record.to_json())
    assert read_trace_record(tmp_path / "record.json") == run.record


def test_one_prompt_and_no_particle_come_back_too(tmp_path):
    bare = record([0.3, 0.2, 0.1], half_width=None)
    write_json(tmp_path / "record.json", bare.to_json())
    assert read_trace_record(tmp_path / "record.json") == bare


MISSING = object()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["schema"], "hybridizer.trace/2", "its schema is 'hybridizer.trace/2', not 'hybridizer.trace/3'"),
        (["schema"], MISSING, "its schema is None"),
        (["layers"], None, "layers: Input should be"),
        (["layers"], [3], "layers.0: Input should be"),
        (["layers"], [], "its layers are not numbered 0..5 in order"),
        (["layers", 1, "layer"], 2, "its layers are not numbered 0..5 in order"),
        (["layers", 1, "delta_js"], None, "layers.1.delta_js: Input should be a valid number"),
        (["layers", 1, "delta_js"], "0.1", "layers.1.delta_js: Input should be a valid number"),
        (["layers", 1, "delta_js"], True, "layers.1.delta_js: Input should be a valid number"),
        (["layers", 1, "delta_js"], float("nan"), "Out of range float values are not JSON compliant"),
        (["layers", 1, "delta_js"], MISSING, "layers.1.delta_js: Field required"),
        (["layers", 1, "extra"], 1, "it has fields that a trace record does not have"),
        (["boundary"], [], "its boundaries are not numbered 1..5 in order"),
        (["boundary", 0, "b"], 0, "its boundaries are not numbered 1..5 in order"),
        (["boundary", 0, "s_ci"], [0.3], "boundary.0.s_ci.1: Field required"),
        (["embedding"], MISSING, "embedding: Field required"),
        (["donor"], "alpha", "donor: Input should be"),
        (["task_particle"], 3, "task_particle: Input should be"),
    ],
)
def test_a_damaged_record_is_refused_with_the_field(path, value, words, tmp_path):
    damaged = json.loads(json.dumps(record([0.30, 0.20, 0.10, 0.02, 0.02, 0.01], particle=2).to_json()))
    place = damaged
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    (tmp_path / "record.json").write_text(json.dumps(damaged))
    with pytest.raises(CheckpointError) as caught:
        read_trace_record(tmp_path / "record.json")
    assert f"record.json: not a trace record: {words}" in str(caught.value)


def test_what_is_no_object_is_no_record(tmp_path):
    (tmp_path / "record.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="its schema is None"):
        read_trace_record(tmp_path / "record.json")

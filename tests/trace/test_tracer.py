import dataclasses
import json
import math
import statistics

import numpy as np
import pytest
import torch

from hybridizer.core.errors import DonorError, InputError, RunError
from hybridizer.models.load import load_causal_lm
from hybridizer.models.parts import find_parts
from hybridizer.recipe.models import Trace
from hybridizer.trace.measure import Meter
from hybridizer.trace.probes import Probe, ProbeSet
from hybridizer.trace.readings import Readings
from hybridizer.trace.tracer import trace_model
from hybridizer.trace.tuned_lens import TunedLens
from support.marks import slow_except
from support.plain_trace import plain_boundary_scores, plain_js, plain_trace
from support.traced_donors import FAMILIES, PROBES, load_tiny, spread, traced

QUICK = Trace(num_resamples=50)


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    model, tokenizer, parts = load_tiny("llama", tmp_path_factory.mktemp("llama"))
    return spread(model), tokenizer, parts


def run(donor, probes=PROBES, settings=QUICK, **options):
    model, tokenizer, parts = donor
    return trace_model(model, tokenizer, parts, probes, settings, traced(parts), **options)


def given_positions(tmp_path, tokenizer, probes=PROBES):
    """Two positions a prompt, the last one among them, as a file and as masked token ids (with token 7)."""
    encoded = [tokenizer(probe.prompt)["input_ids"] for probe in probes.probes]
    positions = [[len(ids) // 2, len(ids) - 1] for ids in encoded]
    path = tmp_path / "positions.json"
    path.write_text(json.dumps(positions))
    masked = [
        [7 if i in at else token for i, token in enumerate(ids)] for ids, at in zip(encoded, positions, strict=True)
    ]
    return path, encoded, masked


TAILS = {
    "llama": lambda m: (m.model.norm, m.lm_head),
    "gpt2": lambda m: (m.transformer.ln_f, m.lm_head),
    "mamba": lambda m: (m.backbone.norm_f, m.lm_head),
    "cohere": lambda m: (m.model.norm, lambda h: m.lm_head(h) * m.config.logit_scale),
    "gemma2": lambda m: (m.model.norm, lambda h: 30 * torch.tanh(m.lm_head(h) / 30)),
    "granite": lambda m: (m.model.norm, lambda h: m.lm_head(h) / m.config.logits_scaling),
}


@pytest.mark.parametrize("family", TAILS)
def test_the_record_is_that_of_the_plain_implementation(family, tmp_path):
    overrides = {"cohere": {"logit_scale": 0.3}, "granite": {"logits_scaling": 3.0}}.get(family, {})
    model, tokenizer, _ = donor = load_tiny(family, tmp_path, **overrides)
    spread(model)
    path, encoded, masked = given_positions(tmp_path, tokenizer)
    record = run(donor, settings=dataclasses.replace(QUICK, mask_with="7"), mask_positions=path).record
    js, target_prob = plain_trace(model, *TAILS[family](model), encoded, masked)
    mean_js, mean_prob = ([statistics.mean(column) for column in zip(*rows, strict=True)] for rows in (js, target_prob))
    assert max(mean_js) > 0.01, "a model that predicts the same everywhere would prove nothing"
    assert record.embedding.js == pytest.approx(mean_js[0], abs=1e-4)
    assert record.embedding.target_prob == pytest.approx(mean_prob[0], abs=1e-4)
    for layer, figures in enumerate(record.layers):
        before, after = layer, layer + 1  # of the states: h(0) is the embedding output
        ratios = [abs(p[after] - p[before]) / (p[after] + 1e-10) for p in target_prob]
        assert figures.layer == layer
        assert figures.js == pytest.approx(mean_js[after], abs=1e-4)
        assert figures.delta_js == pytest.approx(abs(mean_js[after] - mean_js[before]), abs=1e-4)
        assert figures.target_prob == pytest.approx(mean_prob[after], abs=1e-4)
        assert figures.ratio_median == pytest.approx(statistics.median(ratios), rel=1e-3)
        assert figures.ratio_mean == pytest.approx(statistics.mean(ratios), rel=1e-3)
    assert [figure.s for figure in record.boundary] == pytest.approx(plain_boundary_scores(js), abs=1e-4)
    assert [figure.b for figure in record.boundary] == [1, 2, 3]


def test_accuracy_and_target_probability_are_those_of_the_probes_own_targets(donor):
    model, tokenizer, _ = donor
    readings = run(donor).readings
    for index, probe in enumerate(PROBES.probes):
        if probe.target is None:
            assert math.isnan(readings.hit[index]) and math.isnan(readings.answer_prob[index])
            continue
        *prompt, answer = tokenizer(probe.prompt + probe.target)["input_ids"]
        with torch.no_grad():
            own = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1], -1)
        assert readings.answer_prob[index] == pytest.approx(float(own[answer]), abs=1e-6)
        assert readings.hit[index] == (own.argmax() == answer)


def test_probes_without_targets_have_no_accuracy(donor):
    record = run(donor, ProbeSet("p", "0", tuple(Probe(probe.prompt) for probe in PROBES.probes))).record
    assert (record.accuracy, record.accuracy_ci, record.accuracy_n, record.target_prob) == (None, None, 0, None)


@pytest.mark.slow
@pytest.mark.parametrize("family", slow_except(FAMILIES, "llama", "mamba2", "gemma3n_text"))
def test_every_family_is_traced_within_bounds_and_does_not_move_where_nothing_is_masked(family, tmp_path):
    donor = load_tiny(family, tmp_path)
    still = run(donor, settings=dataclasses.replace(QUICK, mask_ratio=0.0)).readings
    moved = run(donor).readings
    assert (still.js == 0).all()
    assert (moved.js >= 0).all() and (moved.js <= 1).all() and moved.js[:, 1:].max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", slow_except(FAMILIES, "llama", "mamba2"))
def test_the_batch_size_changes_nothing(family, tmp_path):
    donor = load_tiny(family, tmp_path)
    one, many = (run(donor, settings=dataclasses.replace(QUICK, perturb="both", batch_size=size)) for size in (1, 64))
    for field in dataclasses.fields(Readings):
        a, b = getattr(one.readings, field.name), getattr(many.readings, field.name)
        assert (a is None) == (b is None), field.name
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_the_second_mask_token_is_read_in_the_same_trace_as_in_one_of_its_own(donor):
    first = run(donor, settings=dataclasses.replace(QUICK, mask_with=".", second_mask_with="e"))
    other = run(donor, settings=dataclasses.replace(QUICK, mask_with="e", second_mask_with="none"))
    np.testing.assert_array_equal(first.readings.js_second, other.readings.js)
    assert other.readings.js_second is None
    assert (first.readings.js_second != first.readings.js).any()
    assert (first.record.settings.mask_with, first.record.settings.second_mask_with) == (".", "e")


def test_the_second_mask_token_must_be_another_one(donor):
    with pytest.raises(InputError, match=r"second_mask_with: the second mask token is the first one, 'e'\."):
        run(donor, settings=dataclasses.replace(QUICK, mask_with="e", second_mask_with="e"))


def test_both_lenses_are_read_in_one_trace_and_the_figures_are_those_of_the_plain_one(donor):
    shifted = TunedLens(torch.zeros(4, 64, 64), torch.ones(4, 64), "sha256:lens")
    both = run(donor, settings=dataclasses.replace(QUICK, lens="both"), tuned_lens=shifted)
    plain, tuned = run(donor), run(donor, tuned_lens=shifted)
    np.testing.assert_allclose(both.readings.js, plain.readings.js, atol=1e-6)
    for name in ("js", "js_second", "kl"):
        mine = getattr(both.readings, f"tuned_{name}")
        np.testing.assert_allclose(mine, getattr(tuned.readings, name), atol=1e-5)
    assert both.record.settings.lens == "plain" and both.record.settings.licence_lenses == ("plain", "tuned")
    assert {row.lens for row in both.record.licence_settings} == {"plain", "tuned"}
    assert tuned.record.settings.licence_lenses == ("tuned",) and plain.readings.tuned_js is None


def test_small_chunks_of_logits_change_nothing(donor, monkeypatch):
    whole = run(donor, settings=dataclasses.replace(QUICK, perturb="both")).readings
    monkeypatch.setattr("hybridizer.trace.measure.LENS_BYTES", 1)
    chunked = run(donor, settings=dataclasses.replace(QUICK, perturb="both")).readings
    np.testing.assert_allclose(whole.js, chunked.js, atol=1e-6)
    np.testing.assert_allclose(whole.layer_js, chunked.layer_js, atol=1e-6)


def test_the_vulnerable_layer_is_the_one_whose_disturbance_moves_the_end_most(donor):
    trace = run(donor, settings=dataclasses.replace(QUICK, perturb="both", noise_ratio=0.5))
    means = trace.readings.layer_js.mean(axis=0)
    vulnerable = trace.record.vulnerable_layer
    assert vulnerable.layer == means[1:].argmax()
    assert vulnerable.js == pytest.approx(means[1:].max())
    assert vulnerable.relative_depth == (vulnerable.layer + 1) / 4
    assert [figures.layer_js for figures in trace.record.layers] == pytest.approx(means[1:])
    assert trace.record.embedding.layer_js == pytest.approx(means[0])


def test_layer_perturbation_is_that_of_a_hook_by_hand(donor):
    from hybridizer.trace.perturbation import unit_noise

    model, tokenizer, _ = donor
    trace = run(donor, settings=dataclasses.replace(QUICK, perturb="layer", noise_ratio=0.5), seed=3)
    index, layer = 2, 2
    ids = torch.tensor([tokenizer(PROBES.probes[index].prompt)["input_ids"]])
    noise = unit_noise((1, ids.shape[1], 64), -3, [3 * 1_000_003 + index])
    with torch.no_grad():
        clean = model(input_ids=ids).logits[0, -1].double().softmax(-1)
        hook = model.model.layers[layer].register_forward_hook(
            lambda _m, _a, h: h + 0.5 * noise * torch.linalg.vector_norm(h, dim=-1, keepdim=True)
        )
        moved = model(input_ids=ids).logits[0, -1].double().softmax(-1)
        hook.remove()
    assert trace.readings.layer_js[index, layer + 1] == pytest.approx(plain_js(clean, moved), abs=1e-5)


def test_with_the_layer_perturbation_alone_its_js_fills_the_record(donor):
    trace = run(donor, settings=dataclasses.replace(QUICK, perturb="layer"))
    assert trace.readings.js is None
    assert [f.js for f in trace.record.layers] == [f.layer_js for f in trace.record.layers]
    assert trace.record.settings.mask_ratio is None and trace.record.settings.mask_with is None
    assert trace.record.settings.noise_ratio == 0.1


def test_statistics_are_float32_from_half_precision_weights(tmp_path):
    donor = load_tiny("llama", tmp_path)
    spread(donor[0])
    full = run(donor).readings
    half = run((donor[0].bfloat16(), *donor[1:]))
    assert half.record.settings.dtype == "bfloat16"
    assert (half.readings.js[:, 1:] > 0).all()
    np.testing.assert_allclose(half.readings.js, full.js, atol=0.1)  # bfloat16 has 8 bits
    assert not np.isin(half.readings.target_prob, torch.tensor(half.readings.target_prob).bfloat16().double()).all()


def test_the_tuned_lens_is_used_and_named(donor):
    identity = TunedLens(torch.zeros(4, 64, 64), torch.zeros(4, 64), "sha256:lens")
    shifted = TunedLens(torch.zeros(4, 64, 64), torch.ones(4, 64), "sha256:lens")
    plain, same, other = (run(donor, tuned_lens=lens) for lens in (None, identity, shifted))
    assert (plain.record.settings.lens, plain.record.settings.tuned_lens) == ("plain", None)
    assert (same.record.settings.lens, same.record.settings.tuned_lens) == ("tuned", "sha256:lens")
    assert (same.readings.js == plain.readings.js).all()
    assert (other.readings.js[:, -1] == plain.readings.js[:, -1]).all()
    assert (other.readings.js[:, 2] != plain.readings.js[:, 2]).any()


def test_explained_is_one_at_the_end_and_its_definition_before(donor):
    trace = run(donor)
    assert trace.record.layers[-1].explained == pytest.approx(1, abs=1e-6)
    share = 1 - trace.readings.kl[:, 2].mean() / trace.readings.kl_uniform.mean()
    assert trace.record.layers[1].explained == pytest.approx(share)


@pytest.mark.parametrize("finished_batches", [0, 1, 3])
def test_an_interrupted_trace_goes_on_and_ends_with_the_same_bits(donor, tmp_path, monkeypatch, finished_batches):
    small = dataclasses.replace(QUICK, batch_size=1, perturb="both")
    whole = run(donor, settings=small)
    measured = []
    measure = Meter.measure

    def cut_off(self, indices, prompts):
        if len(measured) == finished_batches:
            raise KeyboardInterrupt
        measured.append(indices)
        return measure(self, indices, prompts)

    monkeypatch.setattr(Meter, "measure", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(donor, settings=small, journal=tmp_path / "j")
    monkeypatch.setattr(Meter, "measure", measure)
    reported = []
    resumed = run(donor, settings=small, journal=tmp_path / "j", advance=reported.append)
    assert reported == [finished_batches, *[1] * (len(PROBES.probes) - finished_batches)]
    assert resumed.record == whole.record


def test_a_finished_journal_runs_nothing_again(donor, tmp_path, monkeypatch):
    first = run(donor, journal=tmp_path / "j")
    monkeypatch.setattr(Meter, "measure", lambda *_: pytest.fail("ran again"))
    assert run(donor, journal=tmp_path / "j").record == first.record


def test_a_journal_of_other_settings_is_not_continued(donor, tmp_path):
    run(donor, journal=tmp_path / "j")
    with pytest.raises(InputError, match="not the journal of this trace"):
        run(donor, settings=dataclasses.replace(QUICK, mask_ratio=0.5), journal=tmp_path / "j")


def test_the_record_as_json_keeps_the_contract(donor):
    record = json.loads(json.dumps(run(donor, settings=dataclasses.replace(QUICK, perturb="both")).record.to_json()))
    assert next(iter(record)) == "schema" and record["schema"] == "hybridizer.trace/3"
    assert set(record["donor"]) == {"reference", "fingerprint", "family", "num_layers"}
    assert record["probes"] == {"name": "tiny.jsonl", "sha256": "0" * 64, "n": 7, "num_clusters": 7}
    asked = {"perturb", "mask_ratio", "mask_with", "lens", "epsilon", "tau", "p_min", "seed", "dtype"}
    assert asked <= set(record["settings"])
    assert record["settings"]["mask_with"] == "<unk>" and record["settings"]["dtype"] == "float32"
    assert [row["layer"] for row in record["layers"]] == [0, 1, 2, 3]
    for row in record["layers"]:
        assert {"target_prob", "ratio_median", "ratio_mean", "js", "delta_js", "task_particles"} <= set(row)
        for name in ("target_prob", "js", "delta_js"):
            low, high = row[f"{name}_ci"]
            assert low <= row[name] <= high
    scores = {"b", "s", "s_ci", "s_debiased", "s_debiased_ci", "deep_stability", "deep_stability_ci"}
    assert [(row["b"], set(row)) for row in record["boundary"]] == [(b, scores) for b in (1, 2, 3)]
    assert [(row["mask"], row["lens"]) for row in record["licence_settings"]] == [("<unk>", "plain"), (",", "plain")]
    assert record["task_particle"]["n"] + record["task_particle"]["num_without"] == 7
    assert sum(row["task_particles"] for row in record["layers"]) == record["task_particle"]["n"]
    assert record["vulnerable_layer"]["layer"] in {0, 1, 2, 3}
    assert 0 <= record["accuracy"] <= 1 and record["accuracy_n"] == 5


def test_a_device_map_changes_nothing(tmp_path):
    from support.tiny import make_tiny, tiny_tokenizer

    tiny_tokenizer(make_tiny("llama", tmp_path))
    here = load_causal_lm(tmp_path, torch.float32)
    mapped = load_causal_lm(tmp_path, torch.float32, device_map={"": "cpu"})
    plain, other = (run((*loaded, find_parts(loaded[0]))).readings for loaded in (here, mapped))
    np.testing.assert_array_equal(plain.js, other.js)


@pytest.mark.slow
def test_weights_that_accelerate_keeps_elsewhere_are_traced_too(tmp_path):
    from accelerate import cpu_offload

    model, tokenizer, parts = load_tiny("llama", tmp_path)
    here = run((model, tokenizer, parts), settings=dataclasses.replace(QUICK, perturb="both"))
    away = cpu_offload(model, execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in away.parameters()} == {"meta"}
    there = run((away, tokenizer, find_parts(away)), settings=dataclasses.replace(QUICK, perturb="both"))
    np.testing.assert_array_equal(there.readings.js, here.readings.js)
    np.testing.assert_array_equal(there.readings.layer_js, here.readings.layer_js)
    assert {parameter.device.type for parameter in away.parameters()} == {"meta"}


def test_one_prompt_is_traced_without_intervals(donor):
    record = run(donor, ProbeSet("one", "0", PROBES.probes[:1])).record
    assert record.layers[0].js_ci is None and record.boundary[0].s_ci is None


def test_a_model_of_one_layer_has_no_boundary(tmp_path):
    record = run(load_tiny("llama", tmp_path, num_hidden_layers=1)).record
    assert record.boundary == () and record.best_boundary is None and len(record.layers) == 1


def test_prompts_with_nothing_to_mask_are_refused(donor):
    with pytest.raises(InputError, match="prompt 1: 1 tokens, and 2 are needed"):
        run(donor, ProbeSet("short", "0", (Probe("a"),)))
    with pytest.raises(InputError, match=r"prompts \[1\] hold no token that could be masked"):
        run(donor, ProbeSet("special", "0", (Probe("<s>a"),)))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    model, tokenizer, parts = load_tiny("llama", tmp_path, vocab_size=80)
    with pytest.raises(InputError, match="the model has embeddings for 80: tokenizer and model do not match"):
        run((model, tokenizer, parts))


def test_prompts_longer_than_the_model_takes_are_refused(tmp_path):
    with pytest.raises(InputError, match="prompt 1: 600 tokens, and the model takes 512"):
        run(load_tiny("gpt2", tmp_path), ProbeSet("long", "0", (Probe("a" * 600),)))


def test_nan_that_only_some_prompts_meet_is_refused(tmp_path):
    model, tokenizer, parts = load_tiny("llama", tmp_path)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer("w")["input_ids"][-1]] = torch.nan
    with pytest.raises(DonorError, match="prompt 6 gives values that are not numbers in torch.float32"):
        run((model, tokenizer, parts))


def test_running_out_of_memory_says_what_to_turn(donor, monkeypatch):
    def measure(*_):
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    monkeypatch.setattr(Meter, "measure", measure)
    with pytest.raises(RunError, match=r"out of memory on \d prompts .* tried to allocate 3 GiB\n.*smaller batch_size"):
        run(donor)

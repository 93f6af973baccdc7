"""Held-out curves: they change no bit of a training, survive kills, stop what forgets, and find the best step."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file

from hybridizer.core.errors import InputError
from hybridizer.core.progress import SilentMonitor
from hybridizer.evaluate.bits import score_documents, sum_bits
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import find_parts
from hybridizer.train.curve import Curve, CurvePoint, Forgetting
from hybridizer.train.folder import read_curve, read_log
from hybridizer.train.freeze import plan_freeze
from support.curves import CONTEXT, like_training, random_bytes, request_of
from support.scored_models import model_and_parts, text_of
from support.sections import train_section
from support.train_models import plain_model, tiny_model
from support.train_runs import SETTINGS, bytes_of, run, run_model

# Nothing frozen and a rate that overfits: random bytes get better for two steps, and worse from then on.
FORGETS = replace(SETTINGS, lr=0.03, max_steps=6)
SHORT = replace(SETTINGS, max_steps=5)


def noting():
    notes, monitor = [], SilentMonitor()
    monitor.note = notes.append
    return notes, monitor


def rows_of(folder):
    """The rows of a curve by step and text, without their times."""
    return {(row["step"], row["set"]): {**row, "seconds": None} for row in read_curve(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_that_measures_trains_the_same_bytes_as_one_that_does_not(tmp_path, precision):
    settings = replace(SHORT, precision=precision)
    plain, expected = run(tmp_path / "a", settings)
    measured, found = run(tmp_path / "b", settings, curve=request_of(like_training(), random_bytes()))
    assert bytes_of(measured) == bytes_of(plain)
    losses = [[line["loss"] for line in read_log(tmp_path / name)] for name in "ab"]
    assert losses[0] == losses[1] and len(losses[0]) == found.steps == expected.steps == 5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_figures_are_those_of_the_model_at_the_measured_step(tmp_path, family):
    """mamba2: its mixers run on each document of a packed row separately, also while a curve is measured."""
    text = random_bytes()

    def train(folder, **options):
        model = tiny_model(family, vocab_size=257)
        parts = find_parts(model)
        plan = plan_freeze(model, parts, train_section(freeze="deep"), boundary=2)
        run_model(folder, model, parts, plan, replace(SETTINGS, max_steps=3), **options)
        return model, parts

    model, parts = train(tmp_path / "a", curve=request_of(text))
    plain, _ = train(tmp_path / "b")
    assert bytes_of(model) == bytes_of(plain)
    steps = [row["step"] for row in read_curve(tmp_path / "a")]
    assert steps == [0, 2, 3]
    expected = score_documents(model.eval(), parts, text, CONTEXT)
    # Three decimals are stored; a document has about 150 bits.
    np.testing.assert_allclose(rows_of(tmp_path / "a")[3, "news"]["bits"], expected, atol=2e-3)


@pytest.mark.slow
def test_dropout_is_off_while_a_curve_is_measured_and_on_again_afterwards(tmp_path):
    model, parts = plain_model(dropout=0.5)
    run(tmp_path, replace(SHORT, max_steps=2), model=(model, parts), curve=request_of(random_bytes()))
    assert all(module.training for module in model.modules())
    objective = CausalLMLoss(model.eval(), parts)
    expected = sum_bits(objective.token_losses, random_bytes(), CONTEXT)
    np.testing.assert_allclose(rows_of(tmp_path)[2, "news"]["bits"], expected, atol=2e-3)


@pytest.mark.slow
def test_rows_hold_what_arms_are_compared_at_and_step_0_the_sizes(tmp_path):
    text = random_bytes()
    run(tmp_path, SHORT, curve=request_of(text))
    rows = read_curve(tmp_path)
    lines = read_log(tmp_path)
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    assert [row["tokens"] for row in rows] == [0, *(lines[step - 1]["tokens"] for step in (2, 4, 5))]
    assert [row["flop"] for row in rows] == [3e6 * row["tokens"] for row in rows]
    sizes = [document.num_bytes for document in text.documents]
    assert [row.get("num_bytes") for row in rows] == [sizes, None, None, None]
    for row in rows:
        assert row["bits_per_byte"] == pytest.approx(sum(row["bits"]) / sum(sizes))
        assert row["change"] == pytest.approx(row["bits_per_byte"] - rows[0]["bits_per_byte"])
        assert row["change_ci"][0] <= row["change"] <= row["change_ci"][1]


@pytest.mark.slow
def test_measuring_takes_no_time_of_the_training(tmp_path):
    now = iter(range(10_000))
    request = request_of(random_bytes())
    slow = replace(request.texts[0], score=lambda losses, numbers: [0.0 * next(now) for _ in numbers])  # 8 seconds
    _, result = run(tmp_path, SHORT, curve=replace(request, texts=(slow,)), clock=lambda: next(now))
    measurements = len(read_curve(tmp_path))
    assert result.measuring_seconds == measurements * 9
    seconds = [row["seconds"] for row in read_curve(tmp_path)]
    assert seconds == sorted(seconds) and max(np.diff(seconds)) < 20


class Killed(BaseException):
    """Ends a run as a kill would: nothing is saved or closed."""


def kill_at(step):
    """A monitor whose run dies after `step` steps, before they are measured and saved."""
    monitor, taken = SilentMonitor(), []

    @contextmanager
    def task(label, total, unit):
        def advance(count, status=""):
            taken.append(count)
            if len(taken) > 1 and sum(taken) == step:
                raise Killed

        yield advance

    monitor.task = task
    return monitor


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "minutes"), [("last", 0.0), ("best", 0.0), ("best", 60.0)])
def test_a_run_that_is_killed_and_resumed_leaves_the_same_curve_and_weights(tmp_path, keep, minutes):
    settings = replace(FORGETS, checkpoint_minutes=minutes)
    request = request_of(random_bytes("in-domain", "texts"), random_bytes(), keep=keep)
    straight, expected = run(tmp_path / "a", settings, freeze="none", curve=request)
    for step in (1, 4, 5):
        with pytest.raises(Killed):
            run(tmp_path / "b", settings, freeze="none", curve=request, monitor=kill_at(step))
    resumed, found = run(tmp_path / "b", settings, freeze="none", curve=request)
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    assert len(read_curve(tmp_path / "b")) == len(rows_of(tmp_path / "b")), "no row twice"
    assert bytes_of(resumed) == bytes_of(straight)
    assert (found.kept_step, found.curve) == (expected.kept_step, expected.curve)
    assert found.kept_step == (2 if keep == "best" else found.steps)


@pytest.mark.slow
def test_a_row_that_a_kill_cut_short_is_measured_again(tmp_path):
    request = request_of(random_bytes(), like_training())
    run(tmp_path / "a", replace(SETTINGS, max_steps=4), curve=request)
    whole = (tmp_path / "a" / "curve.jsonl").read_text()
    (tmp_path / "a" / "curve.jsonl").write_text(whole[:-40])
    run(tmp_path / "a", replace(SETTINGS, max_steps=4), curve=request)
    run(tmp_path / "b", replace(SETTINGS, max_steps=4), curve=request)
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")


@pytest.mark.slow
def test_a_run_that_goes_further_has_the_curve_of_one_that_never_stopped(tmp_path):
    request = request_of(random_bytes("in-domain"), every=4, keep="best")
    straight, _ = run(tmp_path / "a", FORGETS, freeze="none", curve=request)
    run(tmp_path / "b", replace(FORGETS, max_steps=2), freeze="none", curve=request)
    assert (2, "news") in rows_of(tmp_path / "b"), "the last step is measured, whatever it is"
    resumed, result = run(tmp_path / "b", FORGETS, freeze="none", curve=request)
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    assert bytes_of(resumed) == bytes_of(straight) and result.kept_step == 0


@pytest.mark.slow
def test_curves_that_are_asked_for_later_begin_with_the_weights_of_step_0(tmp_path):
    request = request_of(random_bytes())
    run(tmp_path / "a", replace(SETTINGS, max_steps=4))
    run(tmp_path / "a", replace(SETTINGS, max_steps=6), curve=request)
    run(tmp_path / "b", replace(SETTINGS, max_steps=6), curve=request)
    found, whole = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert [step for step, _ in found] == [0, 4, 6] and all(whole[key] == row for key, row in found.items())


@pytest.mark.slow
def test_rows_of_other_documents_are_dropped_with_a_note(tmp_path):
    notes, monitor = noting()
    run(tmp_path, replace(SETTINGS, max_steps=4), curve=request_of(random_bytes(count=8)))
    run(tmp_path, replace(SETTINGS, max_steps=6), curve=request_of(random_bytes(count=9)), monitor=monitor)
    assert [step for step, _ in rows_of(tmp_path)] == [0, 4, 6]
    assert "earlier measurements of news were of other documents or windows, and are dropped" in notes


@pytest.mark.slow
def test_a_start_without_curves_drops_the_rows_of_steps_that_it_takes_again(tmp_path):
    settings = replace(SHORT, max_steps=6, checkpoint_minutes=60.0)
    with pytest.raises(Killed):
        run(tmp_path, settings, curve=request_of(random_bytes()), monitor=kill_at(5))
    assert len(read_curve(tmp_path)) == 3
    run(tmp_path, SHORT)
    assert [row["step"] for row in read_curve(tmp_path)] == [0]


@pytest.mark.slow
def test_the_best_weights_are_those_of_a_run_that_ends_at_the_best_step(tmp_path):
    notes, monitor = noting()
    request = request_of(random_bytes("in-domain", "texts"), keep="best")
    best, result = run(tmp_path / "a", FORGETS, freeze="none", curve=request, monitor=monitor)
    ended, _ = run(tmp_path / "b", replace(FORGETS, max_steps=2), freeze="none")
    assert result.kept_step == result.curve.best_step == 2 < result.steps
    assert bytes_of(best) == bytes_of(ended)
    kept, masters = (load_file(tmp_path / name / "masters.safetensors") for name in "ab")
    assert kept.keys() == masters.keys() and all(kept[name].equal(masters[name]) for name in kept)
    assert result.curve.verdict == "worse" and result.curve.change_ci[0] > 0
    assert "the result has the weights of step 2, the best in domain" in notes
    assert sorted(path.name for path in (tmp_path / "a").glob("best-*")) == ["best-00000002.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "files"), [(0.0, 3), (60.0, 1)])
def test_the_best_weights_are_never_more_files_than_the_disk_was_checked_for(tmp_path, monkeypatch, minutes, files):
    from hybridizer.train import best

    most, write = [], best.write_tensors
    folder = tmp_path / "run"

    def counting(path, tensors):
        most.append(len(list(folder.glob("best-*.safetensors"))) + 1)
        write(path, tensors)

    monkeypatch.setattr(best, "write_tensors", counting)
    settings = replace(SETTINGS, max_steps=7, checkpoint_minutes=minutes)
    run(folder, settings, curve=request_of(like_training(), every=1, keep="best"))
    assert len(most) == 8 and max(most) == files


@pytest.mark.slow
def test_a_kill_after_new_best_weights_were_written_leaves_those_that_the_checkpoint_needs(tmp_path, monkeypatch):
    from hybridizer.train import best

    request = request_of(random_bytes("in-domain", "texts"), every=1, keep="best")
    settings, write = replace(FORGETS, checkpoint_minutes=0.0), best.write_tensors
    straight, expected = run(tmp_path / "a", settings, freeze="none", curve=request)

    def die_after_step_2(path, tensors):
        write(path, tensors)
        if path == tmp_path / "b" / "best-00000002.safetensors":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(best, "write_tensors", die_after_step_2)
        with pytest.raises(Killed):
            run(tmp_path / "b", settings, freeze="none", curve=request)
    assert (tmp_path / "b" / "best-00000001.safetensors").is_file(), "the run resumes from the checkpoint of step 1"
    resumed, found = run(tmp_path / "b", settings, freeze="none", curve=request)
    assert bytes_of(resumed) == bytes_of(straight) and rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    assert found.kept_step == expected.kept_step == 2


@pytest.mark.slow
def test_best_weights_that_are_gone_are_named(tmp_path):
    request = request_of(random_bytes("in-domain"), keep="best")
    run(tmp_path, replace(FORGETS, max_steps=4), freeze="none", curve=request)
    (tmp_path / "best-00000002.safetensors").unlink()
    with pytest.raises(InputError, match=r"best-00000002.*the weights of step 2, the best so far, are missing"):
        run(tmp_path, FORGETS, freeze="none", curve=request)


@pytest.mark.slow
def test_a_run_that_keeps_the_last_weights_cannot_resume_as_one_that_keeps_the_best(tmp_path):
    texts = (like_training(), random_bytes())
    run(tmp_path, replace(SETTINGS, max_steps=2), curve=request_of(*texts))
    with pytest.raises(InputError, match=r"belongs to another run: curve is \{'keep': 'best', 'every': 2"):
        run(tmp_path, curve=request_of(*texts, keep="best"))
    run(tmp_path, replace(SETTINGS, max_steps=3), curve=request_of(*texts, every=3, retention=1.0))  # change no weight


@pytest.mark.slow
def test_what_is_forgotten_stops_the_run_and_a_raised_limit_resumes_it(tmp_path):
    notes, monitor = noting()
    stops = {"retention": 0.01, "on_forgetting": "stop"}
    settings = replace(FORGETS, checkpoint_minutes=60.0)
    straight, _ = run(tmp_path / "a", settings, freeze="none")
    _, result = run(tmp_path / "b", settings, freeze="none", curve=request_of(random_bytes(), **stops), monitor=monitor)
    assert (result.stopped_by, result.steps) == ("forgetting", 4)
    row = rows_of(tmp_path / "b")[4, "news"]
    assert result.forgetting == Forgetting("news", 4, row["change"], tuple(row["change_ci"]), 0.01)
    assert row["change_ci"][0] > 0.01 > rows_of(tmp_path / "b")[2, "news"]["change_ci"][0]
    (low, high), rise = row["change_ci"], row["change"]
    words = f"news rose by {rise:.3f} ({low:.3f}..{high:.3f}) bits per byte, above the limit 0.01, at step 4"
    assert f"stopped: {words}" in notes
    assert [path.name for path in (tmp_path / "b" / "checkpoints").iterdir()] == ["step-00000004"]
    again = run(tmp_path / "b", settings, freeze="none", curve=request_of(random_bytes(), **stops))[1]
    assert (again.stopped_by, again.steps) == ("forgetting", 4), "a restart with the same limit takes no step"
    higher = request_of(random_bytes(), **{**stops, "retention": 5.0})
    resumed, result = run(tmp_path / "b", settings, freeze="none", curve=higher)
    assert result.stopped_by == "steps" and bytes_of(resumed) == bytes_of(straight)


@pytest.mark.slow
def test_a_warning_of_what_is_forgotten_is_given_once_and_changes_nothing(tmp_path):
    notes, monitor = noting()
    request = request_of(random_bytes(), retention=0.01)
    model, result = run(tmp_path / "a", FORGETS, freeze="none", curve=request, monitor=monitor)
    warnings = [note for note in notes if note.startswith("warning: news rose by ")]
    assert len(warnings) == 1 and warnings[0].endswith("above the limit 0.01, at step 4")
    assert (result.stopped_by, result.forgetting) == ("steps", None)
    assert bytes_of(model) == bytes_of(run(tmp_path / "b", FORGETS, freeze="none")[0])


class OneProcess:
    """A process that is alone."""

    rank, num_ranks, is_main = 0, 1, True

    def sum(self, *values):
        return list(values)

    def barrier(self):
        pass


def curve_of(tmp_path, bits_by_step, role="general", limit=0.01):
    """A curve of one text whose documents, of 100 bytes each, have these bits at steps 0, 1, and so on."""
    request = request_of(random_bytes(role, count=len(bits_by_step[0])), every=1, retention=limit)
    text = replace(request.texts[0], num_bytes=(100,) * len(bits_by_step[0]))
    curve = Curve(replace(request, texts=(text,)), tmp_path, OneProcess())
    for step, bits in enumerate(bits_by_step):
        scored = replace(text, score=lambda losses, numbers, bits=bits: [bits[i] for i in numbers])
        curve._request = replace(request, texts=(scored,))
        curve.store(curve.measure(CurvePoint(step, 0, 0.0, 0.0), None))
    return curve


def test_the_limit_is_judged_by_the_interval_of_paired_documents_and_not_by_the_mean(tmp_path):
    start = [100.0 + 50 * i for i in range(8)]  # documents differ by far more than they change
    all_rise = [bits + 3 for bits in start]
    one_rises = [start[0] + 24, *start[1:]]  # the same mean, from one document
    curve = curve_of(tmp_path, [start, all_rise, one_rises])
    assert curve.forgetting(0) is None and curve.forgetting(2) is None
    assert curve.forgetting(1) == Forgetting("news", 1, pytest.approx(0.03), pytest.approx((0.03, 0.03)), 0.01)


def test_too_few_documents_never_break_the_limit(tmp_path):
    five = curve_of(tmp_path / "..", [[100.0] * 5, [200.0] * 5])
    assert five.forgetting(1) is None


def test_the_best_step_is_the_first_of_equals_over_all_documents(tmp_path):
    curve = curve_of(tmp_path, [[300.0] * 6, [200.0] * 6, [200.0] * 6, [250.0] * 6], role="in-domain")
    assert curve.best_step() == 1 and curve.best_step(up_to=0) == 0
    summary = curve.summary()
    assert (summary.best_step, summary.last_step, summary.verdict) == (1, 3, "worse")
    assert (summary.best, summary.last, summary.change) == pytest.approx((2.0, 2.5, 0.5))


def test_rows_of_steps_that_are_taken_again_are_dropped(tmp_path):
    curve = curve_of(tmp_path, [[300.0] * 6, [200.0] * 6, [100.0] * 6], role="in-domain")
    assert curve.begin(1) == () and curve.best_step() == 1
    assert [row["step"] for row in read_curve(tmp_path)] == [0, 1]


def test_general_texts_alone_have_no_best_step(tmp_path):
    curve = curve_of(tmp_path, [[300.0] * 6, [200.0] * 6])
    assert curve.best_step() is None and curve.summary() is None


def test_bits_of_token_losses_are_those_of_the_model():
    model, parts = model_and_parts("llama")
    text, objective = text_of(41, 16, 12), CausalLMLoss(*model_and_parts("llama"))
    np.testing.assert_array_equal(sum_bits(objective.token_losses, text, 16), score_documents(model, parts, text, 16))

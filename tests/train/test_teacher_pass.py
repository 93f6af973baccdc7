"""Trainings that know a teacher by its largest tokens on disk: as with the teacher, killed anywhere, with a record."""

import weakref
from dataclasses import replace

import pytest

from hybridizer.core.errors import InputError, OutputError
from hybridizer.core.progress import SilentMonitor
from hybridizer.recipe.objective import Distill
from hybridizer.train import loop, teacher_cache, teacher_pass
from hybridizer.train.folder import read_log
from hybridizer.train.job import RunContext
from hybridizer.train.runtime import Runtime
from hybridizer.train.teacher_pass import open_cache
from support.kept_runs import a_job, a_teacher, cached, train_cached
from support.monitors import Notes
from support.train_models import plain_model
from support.train_ranks import start_ranks
from support.train_runs import FIGURES, bytes_of, data_in

VOCABULARY = 257
RUNTIME = Runtime(cpu=True)


def trained(job, folder, monitor=None):
    result = loop.train(job, RunContext(folder, RUNTIME, monitor or SilentMonitor(), FIGURES))
    return result, read_log(folder)


def from_cache(tmp_path, top_k, name="kept", monitor=None, **changes):
    job = a_job(tmp_path, Distill(temperature=2.0, weight=0.6, top_k=top_k), **changes)
    job, result = train_cached(job, tmp_path / name, monitor=monitor)
    return job, result, read_log(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "packed"), [("float32", True), ("bfloat16", False)])
def test_with_the_whole_vocabulary_it_is_the_training_with_the_teacher_within_float16(tmp_path, precision, packed):
    data = data_in(tmp_path / "data", packed=packed)
    changes = {"data": data, "max_steps": 3, "precision": precision}
    job = replace(a_job(tmp_path, Distill(temperature=2.0, weight=0.6), **changes), teacher=a_teacher())
    _, beside = trained(job, tmp_path / "beside")
    _, result, kept = from_cache(tmp_path, VOCABULARY, **changes)
    for ours, theirs in zip(kept, beside, strict=True):
        for term in ("loss", "loss_divergence", "loss_next_token", "gradient_norm_total"):
            assert ours[term] == pytest.approx(theirs[term], rel=5e-3, abs=2e-5), term
    assert result.truncation.mass_outside == 0


@pytest.mark.slow
def test_what_is_kept_lowers_the_divergence_and_what_it_leaves_out_is_in_the_result_and_noted(tmp_path):
    monitor = Notes()
    job, result, lines = from_cache(tmp_path, 16, monitor=monitor)
    found = result.truncation
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.05
    assert 0.5 < found.mass_outside < 0.95 and found.tokens == sum(map(job.data.num_targets, range(job.last_step)))
    assert found.first_divergence > found.first_kept_divergence + 0.01
    assert found.last_divergence < found.first_divergence
    assert 0 <= found.last_kept_divergence < found.last_divergence
    assert f"{found.mass_outside:.2%} of the probability outside" in monitor.notes[0]
    assert f"{found.last_divergence:.4f} nats per token" in monitor.notes[-1]


@pytest.mark.slow
def test_the_sampled_divergence_of_the_whole_vocabulary_is_that_of_both_models(tmp_path):
    job = a_job(tmp_path, Distill(top_k=16))
    cache = cached(job, tmp_path / "cache")
    (batch, _), (student, _), (teacher, _) = job.data.batches(0, micro_batch_size=2), plain_model(), plain_model(seed=1)
    counted = (batch.targets != -100).flatten()
    logs = [
        model.eval()(input_ids=batch.input_ids, position_ids=batch.position_ids).logits.flatten(0, 1)[counted]
        for model in (teacher, student)
    ]
    log_p, log_q = (logits[cache.sample()["places"]].log_softmax(-1) for logits in logs)
    result, _ = trained(replace(job, kept=cache, settings=replace(job.settings, max_steps=1)), tmp_path / "run")
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    assert result.truncation.first_divergence == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_stopped_and_resumed_equals_run_through_bit_for_bit_and_keeps_the_first_measurement(tmp_path):
    job, result, lines = from_cache(tmp_path, 8, "a", max_steps=4)
    from_cache(tmp_path, 8, "b", max_steps=2)
    resumed, again, others = from_cache(tmp_path, 8, "b", max_steps=4)
    assert bytes_of(resumed.model) == bytes_of(job.model)
    assert [line["loss"] for line in lines] == [line["loss"] for line in others]
    assert again.truncation == result.truncation


class Killed(BaseException):
    """What a test raises where a process could die."""


def files_of(cache):
    return {path.name: path.read_bytes() for path in sorted(cache.folder.iterdir())}


@pytest.mark.slow
def test_a_pass_that_was_killed_makes_the_missing_files_alone_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "FILE_BYTES", 1)  # one step in each
    job = a_job(tmp_path, Distill(top_k=8), max_steps=5)
    straight = files_of(cached(job, tmp_path / "straight"))
    assert len(straight) == 6
    real, written, last = teacher_pass.write_tensors, [], 4

    def dying(path, tensors):
        written.append(path.name)
        if len(written) == last:
            raise Killed
        real(path, tensors)

    monkeypatch.setattr(teacher_pass, "write_tensors", dying)
    with pytest.raises(Killed):
        cached(job, tmp_path / "killed")
    written.clear()
    last = 0
    assert files_of(cached(job, tmp_path / "killed")) == straight
    assert len(written) == 3
    cached(job, tmp_path / "killed", load=None)  # nothing is missing: no teacher is loaded


def test_each_teacher_text_and_setting_has_a_cache_of_its_own(tmp_path):
    job = a_job(tmp_path, Distill(top_k=8))
    others = [
        a_job(tmp_path, Distill(top_k=9)),
        a_job(tmp_path, Distill(top_k=8, temperature=2.0)),
        a_job(tmp_path, Distill(top_k=8), precision="bfloat16"),
        a_job(tmp_path, Distill(top_k=8), data=data_in(tmp_path / "data", seed=1)),
    ]
    found = {open_cache(one, "sha256:1", RUNTIME.device, tmp_path).folder for one in (job, *others)}
    found.add(open_cache(job, "sha256:2", RUNTIME.device, tmp_path).folder)
    assert len(found) == 6
    same = a_job(tmp_path, Distill(top_k=8, direction="reverse", weight=0.5), lr=1e-4)
    assert open_cache(same, "sha256:1", RUNTIME.device, tmp_path).folder in found


@pytest.mark.slow
def test_a_run_is_not_resumed_with_another_teacher_or_another_number_of_tokens(tmp_path):
    from_cache(tmp_path, 8, max_steps=1)
    with pytest.raises(InputError, match="top_k"):
        from_cache(tmp_path, 9, max_steps=2)


def test_a_full_disk_is_refused_before_the_teacher_is_loaded(tmp_path, monkeypatch):
    job = a_job(tmp_path, Distill(top_k=8))
    monkeypatch.setattr(teacher_pass, "kept_bytes", lambda tokens, top_k: 10**21)
    with pytest.raises(OutputError, match="the disk has"):
        cached(job, tmp_path / "cache", load=None)


@pytest.mark.slow
def test_the_teacher_is_freed_before_the_student_trains(tmp_path):
    loaded = []

    def load():
        teacher = a_teacher()
        loaded.append(weakref.ref(teacher.model))
        return teacher

    job = a_job(tmp_path, Distill(top_k=8), max_steps=1)
    kept = cached(job, tmp_path / "cache", load)
    assert [one() for one in loaded] == [None]
    trained(replace(job, kept=kept), tmp_path / "run")


@pytest.mark.slow
def test_two_processes_share_the_pass_out_and_give_the_files_and_the_losses_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "FILE_BYTES", 1)
    processes = start_ranks(tmp_path / "two" / "run", "float32", module="support.kept_runs")
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    job, result = train_cached(a_job(tmp_path, Distill(top_k=8), dropout=0.0), tmp_path / "one" / "run")
    (folder,) = (tmp_path / "two" / "cache").iterdir()
    assert folder.name == job.kept.folder.name
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == files_of(job.kept)
    losses = [[line["loss"] for line in read_log(tmp_path / name / "run")] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert result.truncation.sample_tokens > 10

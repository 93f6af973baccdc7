"""A trial end to end on tiny checkpoints: what arms share, what is chosen, what stays on disk, and what is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from hybridizer.checkpoint.publish import lock
from hybridizer.core.errors import InputError, OutputError, RecipeError
from hybridizer.core.progress import SilentMonitor
from hybridizer.core.records import to_jsonable
from hybridizer.pipeline.plan import plan_recipe
from hybridizer.pipeline.trial import run_trial
from hybridizer.pipeline.trial_plan import plan_trial
from hybridizer.report.show import show_trial_plan
from support.lines import hybridize, hybridize_json, make_donor, working_in, write_documents, write_recipe

ROOT = Path(__file__).parents[2]
ARMS = {
    "deep": {"train.freeze": "deep"}, "full": {"train": {"freeze": "none"}}, "full+table": {"train.freeze": "none"},
    "lora": {"train.freeze": "none", "train.lora.rank": 2, "train.lr": 1e-3},
}  # fmt: skip
TRIAL = {"arms": ARMS, "seeds": [0, 1], "lr": [1e-3, 2e-3], "evaluate": {"recall": [4]}}
TRAIN = {
    "data": [{"path": "text.jsonl"}], "tokens": 1500, "seq_len": 64, "lr": 1e-3, "heldout_ratio": 0.3,
    "precision": "float32", "checkpoint_minutes": 0,
}  # fmt: skip


def make_bench(folder: Path, **trial: object) -> Path:
    """A tiny donor, a text to train on, another one, and the recipe of a trial."""
    make_donor(folder / "a", seed=1)
    write_documents(folder / "text.jsonl", 120)
    news = [f"news {i}: " + "dogs run far " * (i % 5 + 1) for i in range(20)]
    (folder / "news.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in news))
    return write_recipe(
        folder / "t.yaml",
        donors={"a": "a"},
        layout={"deep": "a", "shallow": "a", "boundary": 0.5},
        train=TRAIN,
        evaluate={"bits_per_byte": [{"name": "news", "path": "news.jsonl"}], "max_tokens": 500, "context": 64},
        trial=TRIAL | trial,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished trial of three arms: its working folder and the record that was printed."""
    folder = tmp_path_factory.mktemp("trial")
    with working_in(folder) as patch:
        patch.setattr("hybridizer.train.timing.measure_peak", lambda device, dtype: 1e9)  # half a second for each run
        make_bench(folder)
        yield folder, hybridize_json("trial", "t.yaml")


@pytest.fixture
def bench(bench, monkeypatch):
    """A working folder with a recipe that nothing was run of."""
    monkeypatch.setattr("hybridizer.train.timing.measure_peak", lambda device, dtype: 1e9)
    make_bench(bench)
    return bench


def losses(folder, arm, lr, seed):
    lines = (folder / f"runs/t/arms/{arm}/lr-{lr!r}/seed-{seed}/training/log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


pytestmark = pytest.mark.slow
pytest.importorskip("peft")


def test_every_arm_has_every_outcome_with_the_mean_of_its_seeds_and_every_pair_is_compared(finished):
    folder, record = finished
    assert record == json.loads((folder / "runs/t/trial.json").read_text())
    outcomes = [(o["what"], o["metric"], o["role"]) for o in record["outcomes"]]
    assert outcomes == [
        ("text.jsonl", "bits_per_byte", "in-domain"), ("news", "bits_per_byte", "retention"),
        ("recall-4", "accuracy", "recall"),
    ]  # fmt: skip
    for arm in record["arms"]:
        assert [(f["what"], f["metric"]) for f in arm["figures"]] == [(what, metric) for what, metric, _ in outcomes]
        for figure in arm["figures"]:
            assert figure["value"] == pytest.approx(sum(figure["seed_values"]) / 2)
        assert arm["figures"][0]["value"] < arm["figures"][0]["before"]  # it learned
    pairs = {(pair["a"], pair["b"]) for pair in record["pairs"]}
    assert pairs == set(combinations(ARMS, 2)) and len(record["pairs"]) == 6 * 3
    assert record["primary"] == {"what": "text.jsonl", "metric": "bits_per_byte"}


def test_the_learning_rate_of_each_arm_is_the_one_that_the_selection_half_prefers_and_all_are_shown(finished):
    _, record = finished
    for arm in record["arms"][:3]:
        best = min(arm["rates"], key=lambda rate: rate["bits_per_byte"])
        assert [rate["lr"] for rate in arm["rates"]] == [1e-3, 2e-3]
        assert [rate["lr"] for rate in arm["rates"] if rate["is_chosen"]] == [best["lr"]] == [arm["lr"]]


def test_table_norm_and_head_have_one_fate_except_in_the_arm_that_adds_the_table(finished):
    _, record = finished
    parts = {arm["name"]: arm["frozen_parts"] for arm in record["arms"]}
    assert parts == {
        "deep": ["embedding", "final norm", "head"], "full": ["embedding", "final norm", "head"],
        "full+table": ["final norm"], "lora": ["embedding", "final norm", "head"],
    }  # fmt: skip
    trained = {arm["name"]: arm["cost"]["trained_parameters"] for arm in record["arms"]}
    assert trained["deep"] < trained["full"] < trained["full+table"]


def test_arms_see_the_same_rows_with_the_same_seed_and_others_with_another(finished):
    folder, record = finished
    first = {
        (arm["name"], seed): losses(folder, arm["name"], arm["lr"], seed)[0]
        for arm in record["arms"]
        for seed in (0, 1)
    }
    for seed in (0, 1):
        assert len({first[arm, seed] for arm in ARMS}) == 1
    assert first["deep", 0] != first["deep", 1]
    assert len({(arm["cost"]["steps"], arm["cost"]["tokens"]) for arm in record["arms"]}) == 1


def test_records_stay_and_weights_go(finished):
    folder, _ = finished
    assert list((folder / "runs").rglob("*.safetensors")) == []
    assert not (folder / "runs/t/spliced").exists() and list((folder / "runs").rglob(".*.partial")) == []
    run = folder / "runs/t/arms/deep/lr-0.001/seed-0"
    assert {"plan.json", "manifest.json", "selection.json"} <= {path.name for path in run.iterdir()}
    runs = json.loads((folder / "runs/t/trial_times.json").read_text())["runs"]
    assert len(runs) == 3 * 3 + 2 and all(run["seconds"] > 0 and run["peak_bytes"] > 0 for run in runs)


def test_a_finished_trial_is_gathered_again_with_the_same_bytes_and_trains_nothing(finished, monkeypatch):
    folder, _ = finished
    before = (folder / "runs/t/trial.json").read_bytes()
    monkeypatch.setattr("hybridizer.pipeline.trial_arm.build", None)  # nothing is built
    monkeypatch.setenv("COLUMNS", "160")  # a verdict would be broken into lines
    hybridize("trial", "t.yaml")
    shown = hybridize("trial", "t.yaml", "--gather", "--plot", "t.svg")
    assert (folder / "runs/t/trial.json").read_bytes() == before
    assert (folder / "t.svg").is_file()
    assert "full+table is better" in shown.stdout or "no difference can be told" in shown.stdout
    assert "arm full+table: train.freeze: none; beside layers embedding, head trains" in shown.stdout


def test_the_primary_outcome_is_in_the_hash_and_a_trial_of_another_one_is_replaced_with_a_note(finished):
    folder, record = finished
    before = (folder / "runs/t/trial.json").read_bytes()
    other = hybridize("trial", "t.yaml", "--gather", "--set", "trial.primary=news", "--json")
    assert json.loads(other.stdout)["primary"]["what"] == "news" and json.loads(other.stdout)["hash"] != record["hash"]
    assert "another declaration, whose primary outcome was text.jsonl bits_per_byte" in other.stderr
    hybridize("trial", "t.yaml", "--gather")
    assert (folder / "runs/t/trial.json").read_bytes() == before


@pytest.mark.slow
def test_a_plan_of_a_trial_plans_the_recipe_itself_once(bench, monkeypatch):
    planned = []

    def recorded(source, overrides, monitor):
        planned.append(overrides)
        return plan_recipe(source, overrides, monitor)

    for module in ("plan", "trial_plan"):
        monkeypatch.setattr(f"hybridizer.pipeline.{module}.plan_recipe", recorded)
    hybridize("plan", "t.yaml", "--runs", "elsewhere")
    assert sum(not overrides for overrides in planned) == 1 and len(planned) == len(set(planned))


def test_the_plan_of_a_trial_shows_its_runs_and_what_it_could_tell(finished):
    trial = hybridize_json("plan", "t.yaml", "--runs", "elsewhere")["trial"]
    assert [(arm["name"], arm["runs"]) for arm in trial["arms"]] == [
        ("deep", 3),
        ("full", 3),
        ("full+table", 3),
        ("lora", 2),
    ]
    assert trial["detectable"] > 0 and trial["num_groups"] > 5
    shown = hybridize("plan", "t.yaml", "--runs", "elsewhere").stdout
    assert "smallest difference" in shown and "hybridize trial t.yaml" in shown


def test_the_time_of_a_trial_is_that_of_all_its_trainings(finished, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    timed = SimpleNamespace(run_seconds=600.0)
    monkeypatch.setattr("hybridizer.pipeline.trial_plan.estimate_time", lambda planned, device: timed)
    forecast = plan_trial(Path("t.yaml"), (), Path("elsewhere"), SilentMonitor(), "cpu", probe=True)
    assert [arm.seconds for arm in forecast.arms] == [1800, 1800, 1800, 1200]
    show_trial_plan(to_jsonable(forecast))
    shown = capsys.readouterr().out
    assert "1 h 50 min" in shown and "The time is that of the trainings; evaluation is added." in shown


def test_the_plan_assumes_a_spread_until_arms_are_finished(finished):
    before, after = (hybridize_json("plan", "t.yaml", "--runs", runs)["trial"] for runs in ("elsewhere", "runs"))
    assert before["spread"].endswith("assumed") and after["spread"].endswith("measured on the runs that are there")
    assert before["detectable"] != after["detectable"] > 0


def test_without_arms_there_are_five_of_which_the_last_trains_what_the_depth_allows(bench):
    make_donor(bench / "six", seed=3, num_hidden_layers=6)
    hybridize("plan", "t.yaml", "--set", "donors.a.source=six", "--runs", "x", "--set", "trial={seeds: [0, 1]}")
    arms = hybridize_json("plan", "t.yaml", "--set", "donors.a.source=six", "--set", "trial={seeds: [0, 1]}")["trial"][
        "arms"
    ]
    assert [arm["name"] for arm in arms] == ["deep", "shallow", "full", "lora", "last-4"]
    assert arms[2]["trained_parameters"] * 4 == arms[4]["trained_parameters"] * 6


def start(folder):
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
        "HYBRIDIZER_CACHE": str(folder / "cache"),
    }  # fmt: skip
    command = [sys.executable, "-m", "hybridizer", "trial", "t.yaml"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder
    )


def test_a_trial_that_is_killed_and_finished_arm_by_arm_has_the_bytes_of_one_that_was_not(finished, bench):
    seed, wanted, kills = random.randrange(2**32), int(os.environ.get("HYBRIDIZER_KILLS", "2")), 0
    dice = random.Random(seed)
    while kills < wanted:
        with start(bench) as process:
            for _ in range(dice.randrange(4, 30)):  # lines of progress
                process.stderr.readline()
            time.sleep(dice.random() * 0.3)  # anywhere inside a step, a checkpoint or a score
            process.kill()
        if process.returncode == -9:
            kills += 1
        else:  # it was over first
            shutil.rmtree(bench / "runs")
    for arm in ARMS:
        shown = hybridize("trial", "t.yaml", "--arm", arm).output
        assert "next: hybridize trial t.yaml --gather" in shown
    hybridize("trial", "t.yaml", "--gather")
    straight, killed = finished[0] / "runs/t/trial.json", bench / "runs/t/trial.json"
    assert killed.read_bytes() == straight.read_bytes(), f"seed {seed}"
    assert list((bench / "runs").rglob("*.safetensors")) == []


def run(bench, *overrides, **options):
    return run_trial(bench / "t.yaml", overrides, bench / "runs", SilentMonitor(), **options)


def test_an_arm_that_is_not_there_is_refused_with_a_hint(bench):
    with pytest.raises(InputError, match=r"this trial has no arm 'depe'\.\n  Did you mean 'deep'\?"):
        run(bench, arm="depe")


def test_gathering_names_every_run_that_is_missing(bench):
    with pytest.raises(
        InputError, match=r"7 runs are not finished: arm 'deep', lr 0\.001, seed 0; arm 'deep', lr 0\.002"
    ):
        run(bench, gather=True)


def test_one_arm_cannot_be_run_and_gathered_at_once(bench):
    hybridize("trial", "t.yaml", "--arm", "deep", "--gather", code=2)


def test_arms_that_are_the_same_training_are_refused(bench):
    with pytest.raises(RecipeError, match=r"arms 'full' and 'twin' are the same training"):
        run(bench, "trial.arms.twin={train.freeze: none}")


def test_arms_with_stages_share_tokens_and_schedule_and_cost_what_their_stages_cost(bench):
    train = {key: value for key, value in TRAIN.items() if key != "tokens"} | {"stages": [{"tokens": 1500}]}
    two = [{"tokens": 500, "freeze": "deep"}, {"tokens": 1000, "freeze": "none"}]
    halves = {"deep": {"train.freeze": "deep"}, "full": {"train.freeze": "none"}, "two": {"train.stages": two}}
    recipe = make_bench(bench, arms=halves, lr=[])
    write_recipe(recipe, **{**yaml.safe_load(recipe.read_text()), "train": train})
    deep, full, both = (arm["flop"] for arm in hybridize_json("plan", recipe)["trial"]["arms"])
    assert both == pytest.approx((deep + 2 * full) / 3)
    for key, value, message in (
        ("tokens", 600, "trains on 1,600 tokens in its stages, and all arms of a trial share the 1,500"),
        ("schedule", "wsd", "sets `schedule` in its stages, and all arms of a trial share `train.schedule`"),
    ):
        other = json.dumps([two[0] | {key: value}, two[1]])
        with pytest.raises(RecipeError, match=f"arm 'two' {message}"):
            run(bench, f'trial.arms.two={{"train.stages": {other}}}')


def test_a_trial_of_one_arm_and_a_recipe_without_a_trial_are_refused(bench):
    with pytest.raises(RecipeError, match="a trial of a single arm compares nothing"):
        run(bench, "trial.arms={deep: {train.freeze: deep}}")
    values = yaml.safe_load((bench / "t.yaml").read_text())
    del values["trial"]
    write_recipe(bench / "t.yaml", **values)
    with pytest.raises(RecipeError, match="this recipe has no `trial` section"):
        run(bench)


def test_an_arm_that_another_process_runs_is_refused(bench):
    folder = bench / "runs/t/arms/deep"
    folder.mkdir(parents=True)
    with lock(folder), pytest.raises(OutputError, match="another run is writing this folder now"):
        run(bench, arm="deep")


def test_a_half_without_documents_and_too_few_examples_are_refused_before_anything_trains(bench):
    with pytest.raises(InputError, match="none of its documents is in the half of the held-out ones that"):
        run(bench, "train.heldout_ratio=0.001")
    with pytest.raises(InputError, match="64 examples are requested"):
        run(bench, "trial.evaluate.items=[{name: exam-en, shots: 64}]")
    assert not (bench / "runs/t/arms").exists()


def test_a_run_of_an_earlier_recipe_is_trained_again(bench):
    one = ("trial.arms={deep: {train.freeze: deep}, full: {train.freeze: none}}", "trial.seeds=[0]", "trial.lr=[1e-3]")
    first = run(bench, *one).record
    second = run(bench, *one, "train.tokens=1000").record
    assert second.arms[0].cost.tokens < first.arms[0].cost.tokens and second.hash != first.hash


def test_models_are_kept_where_the_recipe_says_so(bench):
    run(bench, "trial.arms={deep: {train.freeze: deep}, full: {train.freeze: none}}", "trial.seeds=[0]",
        "trial.lr=[1e-3]", "trial.keep=all")  # fmt: skip
    hybridize("verify", "runs/t/arms/deep/lr-0.001/seed-0")


@pytest.mark.slow
def test_arms_with_fitted_mixers_run_beside_a_control_in_which_nothing_is_swapped(bench):
    arms = {"donor": {"layout.swap.count": 0}, "deep": {"layout.swap.place": "deep"}}
    make_bench(bench, arms=arms, seeds=[0], lr=[1e-3])
    recipe = yaml.safe_load((bench / "t.yaml").read_text())
    recipe["layout"] = {
        "swap": {"mixer": {"kind": "mamba2", "init": "attention", "fit": "ridge"}},
        "calibration": {"path": "text.jsonl", "tokens": 256, "window": 32},
    }
    recipe["train"]["freeze"] = "none"
    write_recipe(bench / "t.yaml", **recipe)
    donor, swapped = hybridize_json("trial", "t.yaml")["arms"]
    before = {arm["name"]: arm["figures"][0]["before"] for arm in (donor, swapped)}
    assert before["donor"] != before["deep"] and donor["cost"]["tokens"] == swapped["cost"]["tokens"]
    assert [figure["what"] for figure in swapped["figures"]] == ["text.jsonl", "news", "recall-4"]

"""Held-out curves through the command line: measured, shown, kept, and stopped by, on tiny checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hybridizer.train.folder import read_curve
from hybridizer.train.run import join_processes
from hybridizer.train.runtime import Runtime
from hybridizer.train.training_record import is_complete
from support.lines import hybridize, hybridize_json, make_donors, write_recipe
from support.sections import train_section

TRAIN = {
    "data": [{"path": "text.jsonl"}], "tokens": 2500, "seq_len": 64, "lr": 1e-2, "heldout_ratio": 0.2,
    "precision": "float32", "schedule": "constant", "warmup_ratio": 0,
}  # fmt: skip
DIAL = {"host": "a", "deep": "a", "shallow": "b", "boundary": 0.5}
# Step 2 is the best of the text, and the news are bad from there on.
OVERFITS = {"lr": 0.1, "freeze": [0]}
NEWS = {"bits_per_byte": [{"name": "news", "path": "news.jsonl"}]}


@pytest.fixture
def bench(bench):
    """Two tiny llamas, a text to train on, another one that is forgotten, an own cache, and the working folder."""
    make_donors(bench)
    for name, words in (("text", "the cat sat on the mat "), ("news", "ZYX WVU TSR QPO ")):
        texts = [f"{name} {i} says " + words * (i % 7 + 1) for i in range(100)]
        Path(f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return bench


def recipe_of(name="x", train=None, **evaluate):
    return write_recipe(
        Path(f"{name}.yaml"), donors={"a": "a", "b": "b"}, layout=DIAL, train=TRAIN | (train or {}),
        evaluate=NEWS | {"curve_tokens": 800} | evaluate,
    )  # fmt: skip


def weights(name="x"):
    return load_file(f"runs/{name}/model/model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.slow
def test_a_build_measures_on_the_way_and_shows_it(bench):
    plain = hybridize_json("plan", recipe_of("plain"))
    made = hybridize_json("plan", recipe_of("x", every=2))
    assert plain["amounts"]["curve"] is None
    curve = made["amounts"]["curve"]
    assert (curve["measurements"], curve["texts"], curve["tokens"]) == (4, 2, 800)  # steps 0, 2, 4 and 5
    stdout = hybridize("plan", "x.yaml").stdout
    assert "curves: 4 measurements of 2 texts, up to 800 tokens each: up to " in stdout
    built = hybridize("build", "x.yaml")
    assert "step 4: bits per byte of text.jsonl " in built.stderr and ", news " in built.stderr
    assert "in domain, " in built.stdout and "measuring the curves took " in built.stdout
    again = hybridize_json("build", "x.yaml")
    assert [(row["step"], row["set"]) for row in again["curve"]] == [
        (step, name) for step in (0, 2, 4, 6) for name in ("text.jsonl", "news")
    ]
    assert all("bits" not in row and row["change_ci"] for row in again["curve"])
    assert "news (general)" in Path("runs/x/training.svg").read_text()
    assert again["curve"][-1]["bits_per_byte"] == pytest.approx(
        again["curve"][1]["bits_per_byte"] + again["curve"][-1]["change"]
    )
    hybridize("build", "plain.yaml")
    assert same(weights("plain"), weights("x"))
    assert json.loads(Path("runs/plain/training/training.json").read_text())["curve"] is None


def test_only_what_changes_the_weights_changes_the_plan(bench):
    def hash_of(**evaluate):
        return hybridize_json("plan", recipe_of(**evaluate))["hash"]

    assert hash_of() == hash_of(every=2) == hash_of(every=3, retention=0.1, on_forgetting="stop", curve_tokens=99)
    best = [hash_of(keep="best", **settings) for settings in ({"every": 2}, {"every": 3}, {"every": 2, "context": 16})]
    assert len({hash_of(), *best}) == 4
    assert hash_of(every=2, keep="best", retention=0.1) == best[0]


@pytest.mark.slow
def test_a_broken_limit_ends_the_build_with_1_until_it_is_raised(bench):
    recipe = recipe_of(train=OVERFITS, every=1, retention=0.5, on_forgetting="stop")
    stopped = hybridize("build", recipe, code=1)
    record = json.loads(Path("runs/x/training/training.json").read_text())
    assert record["stopped_by"] == "forgetting" and record["steps"] < 6
    assert f"news rose by {record['forgetting']['rise']:.3f} (" in stopped.stdout
    assert "stopped by the retention limit" in stopped.stdout and "complete and verified" in stopped.stdout
    again = hybridize("build", recipe, code=1)
    assert "model: unchanged" in again.stderr
    higher = hybridize("build", recipe, "--set", "evaluate.retention=99")
    stopped_at = f"its training stopped at step {record['steps']} by the retention limit, which has changed"
    assert stopped_at in higher.stderr and "all tokens of the recipe" in higher.stdout
    hybridize("build", recipe_of("straight", OVERFITS), "--no-load")
    assert same(weights("straight"), weights("x"))


@pytest.mark.slow
def test_the_best_step_is_the_result_and_record_card_and_proofs_say_so(bench):
    hybridize("build", recipe_of("x", OVERFITS, every=1, keep="best"), "--no-load")
    record = json.loads(Path("runs/x/training/training.json").read_text())
    assert (record["kept_step"], record["curve"]["best_step"], record["steps"]) == (2, 2, 6)
    shown = hybridize("build", "x.yaml").stdout
    assert "in domain, step 2 was the best: " in shown and "training past step 2 did not help in domain" in shown
    assert "the result has the weights of step 2" in shown
    assert "The weights are those of step 2, the best in domain." in Path("runs/x/model/README.md").read_text()
    assert "frozen" in {proof["check"] for proof in hybridize_json("verify", "runs/x")["proofs"]}
    hybridize("build", recipe_of("ended", {**OVERFITS, "max_steps": 2}), "--no-load")
    assert same(weights("ended"), weights("x"))


def test_disk_for_the_best_weights_is_counted(bench):
    last, best = (hybridize_json("plan", recipe_of(every=2, keep=keep), "--runs", keep) for keep in ("last", "best"))
    trained = best["cost"]["asked"]["trained_parameters"]
    assert best["amounts"]["disk_bytes"] - last["amounts"]["disk_bytes"] == 12 * trained


@pytest.mark.parametrize(
    ("evaluate", "train", "message"),
    [
        ({"retention": 0.1}, {}, "`retention` is decided at the measurements of `every`, and there are none."),
        ({"keep": "best"}, {}, "`keep` is decided at the measurements of `every`, and there are none."),
        ({"every": 2, "on_forgetting": "stop"}, {}, "`on_forgetting` is stop without a limit on forgetting."),
        ({"every": 2, "retention": 0.1, "bits_per_byte": []}, {}, "`retention` limits what general texts lose"),
        ({"every": 2, "keep": "best"}, {"heldout_ratio": 0}, "`keep` is best, which held-out documents decide"),
        ({"every": 2, "bits_per_byte": []}, {"heldout_ratio": 0}, "there is nothing to measure: no text in"),
        ({"every": -1}, {}, "`every` is -1; the least is 0."),
        ({"every": 2, "retention": -0.1}, {}, "`evaluate.retention` must be a number >= 0"),
        ({"every": 2, "keep": "bset"}, {}, "'bset'"),
        ({"every": 2, "curve_tokens": 0}, {}, "`evaluate.curve_tokens` must be a whole number, at least 1"),
    ],
)
def test_settings_without_effect_and_bad_values_are_found_at_their_lines(bench, evaluate, train, message):
    stderr = hybridize("check", recipe_of(train=train, **evaluate), code=2).stderr
    assert message in stderr and "x.yaml:" in stderr, stderr


@pytest.mark.parametrize(
    ("evaluate", "ratio", "message"),
    [
        ({"every": 2, "keep": "best"}, 1e-9, "no document is held out at 1e-09"),
        ({"every": 2, "bits_per_byte": []}, 1e-9, "no document is held out at 1e-09"),
        ({"every": 2, "bits_per_byte": [{"name": "news", "path": "same.jsonl"}]}, 0.0, "'news': no document"),
    ],
)
def test_texts_without_a_document_are_found_before_the_splice(bench, evaluate, ratio, message):
    Path("same.jsonl").write_text(Path("text.jsonl").read_text())
    stderr = hybridize("build", recipe_of(train={"heldout_ratio": ratio}, **evaluate), code=2).stderr
    assert message in stderr and not Path("runs/x/spliced").exists(), stderr


@pytest.mark.slow
def test_too_few_documents_for_the_limit_are_a_warning(bench):
    Path("few.jsonl").write_text('{"text": "one two three"}\n{"text": "four five six"}\n')
    few = {"bits_per_byte": [{"name": "few", "path": "few.jsonl"}], "every": 2, "retention": 0.0}
    built = hybridize("build", recipe_of(on_forgetting="stop", **few), "--no-load")
    assert "warning: few has too few documents for `retention` to be judged by it" in built.stderr


@pytest.mark.parametrize(
    ("limits", "complete"),
    [
        ({"retention": 0.01, "on_forgetting": "stop"}, True),
        ({"retention": 0.012, "on_forgetting": "stop"}, False),
        ({"retention": 0.5, "on_forgetting": "stop"}, False),
        ({"retention": 0.01}, False),
        ({}, False),
    ],
)
def test_a_training_that_forgetting_stopped_is_complete_until_the_limit_allows_more(limits, complete):
    from hybridizer.recipe.models import Evaluate

    forgetting = {"text": "news", "step": 10, "rise": 0.021, "rise_ci": [0.012, 0.03], "limit": 0.01}
    record = {"steps": 10, "seconds": 9.0, "stopped_by": "forgetting", "forgetting": forgetting}
    assert is_complete(record, train_section(), Evaluate(every=5, **limits)) is complete


def test_curves_of_a_sharded_model_are_refused(bench, monkeypatch):
    from hybridizer.core.errors import RecipeError
    from hybridizer.recipe.load import load_recipe

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("hybridizer.train.run.open_runtime", lambda recipe, folder: Runtime(cpu=True))
    monkeypatch.setattr(Runtime, "is_fsdp", True)
    assert join_processes(load_recipe(recipe_of(), ()), bench) is not None
    with pytest.raises(RecipeError, match="held-out curves are not measured on a model that FSDP2 shards"):
        join_processes(load_recipe(recipe_of(every=2), ()), bench)


@pytest.mark.slow
def test_two_processes_measure_the_curve_of_one(bench):
    hybridize("build", recipe_of("one", every=2, keep="best"), "--no-load")
    recipe = recipe_of("two", every=2, keep="best")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launch, "-m", "hybridizer", "build", str(recipe), "--no-load"]
    done = subprocess.run(command, cwd=bench, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_curve(Path(f"runs/{name}/training")) for name in ("one", "two"))
    assert [(row["step"], row["set"]) for row in two] == [(row["step"], row["set"]) for row in one]
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["bits"] == pytest.approx(mine["bits"], rel=1e-3)  # sums of gradients in another order


@pytest.mark.slow
def test_a_curve_goes_on_from_stage_to_stage(bench):
    stages = [{"tokens": 640, "freeze": [0]}, {"tokens": 1280, "freeze": [1], "lr": 1e-3}]
    staged = {key: value for key, value in TRAIN.items() if key != "tokens"} | {"stages": stages}
    for name, evaluate in (("x", NEWS | {"every": 2, "curve_tokens": 800}), ("plain", NEWS)):
        write_recipe(
            Path(f"{name}.yaml"), donors={"a": "a", "b": "b"}, layout=DIAL, train=staged, evaluate=evaluate
        )  # fmt: skip
    built = hybridize_json("build", "x.yaml")
    rows = [row for row in read_curve(Path("runs/x/training")) if row["set"] == "news"]
    assert [(row["stage"], row["step"]) for row in rows] == [(1, 0), (1, 2), (2, 4), (2, 5)]
    shown = [(row["stage"], row["step"], row["change"]) for row in built["curve"] if row["set"] == "news"]
    assert shown == [(row["stage"], row["step"], row["change"]) for row in rows]
    start, last = (row["bits_per_byte"] for row in (rows[0], rows[-1]))
    assert rows[-1]["change"] == pytest.approx(last - start, abs=1e-3)
    assert (rows[-1]["tokens"], rows[-1]["seconds"]) > (rows[1]["tokens"], rows[1]["seconds"])
    summary = hybridize_json("inspect", "runs/x/model")["training"]["curve"]
    assert (summary["last_step"], summary["best_step"] in (0, 2, 4, 5)) == (5, True)
    hybridize("build", "plain.yaml")
    assert same(weights("x"), weights("plain"))

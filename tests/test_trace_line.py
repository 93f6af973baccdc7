"""trace and rank on the command line, and what recipes leave to them, on tiny checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest

from hybridizer import rank
from hybridizer.core.errors import InputError
from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.donors import trace_donors
from hybridizer.recipe.models import Trace
from hybridizer.trace.boundary import STRATEGIES
from hybridizer.trace.probes import read_probes
from hybridizer.trace.runs import TraceRequest
from support.lines import exchange_tokens, hybridize, hybridize_json, make_donor, make_donors, write_recipe
from support.marks import slow_except

PROBES = [{"prompt": f"the opposite of {word} is ", "target": "abcd"[i % 4]} for i, word in enumerate(
    ["hot", "cold", "up", "down", "left", "right", "in", "out", "day", "night"])]  # fmt: skip


@pytest.fixture(autouse=True)
def bench(bench):
    make_donors(bench)
    Path("p.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in PROBES))
    return bench


def trace(*arguments):
    hybridize("trace", "a", "--probes", "p.jsonl", "--json", "out.json", *arguments)
    return json.loads(Path("out.json").read_text())


def test_the_record_is_the_contract():
    record = trace()
    assert record["schema"] == "hybridizer.trace/3"
    assert {"reference": "a", "family": "llama", "num_layers": 4}.items() <= record["donor"].items()
    assert record["donor"]["fingerprint"].startswith("sha256:") and record["probes"]["n"] == 10
    settings = {"perturb", "mask_ratio", "mask_with", "lens", "epsilon", "tau", "p_min", "seed", "dtype"}
    assert settings <= record["settings"].keys()
    js = [record["embedding"]["js"], *(layer["js"] for layer in record["layers"])]
    delta = np.abs(np.diff(js))
    for number, layer in enumerate(record["layers"]):
        assert layer["layer"] == number
        assert {"ratio_median", "ratio_mean", "task_particles"} <= layer.keys()
        for name in ("target_prob", "js", "delta_js"):
            low, high = layer[f"{name}_ci"]
            assert 0 <= low <= high <= 1
        assert layer["delta_js"] == pytest.approx(delta[number], abs=1e-9)
    assert [row["b"] for row in record["boundary"]] == [1, 2, 3]
    for row in record["boundary"]:
        expected = delta[: row["b"]].mean() - delta[row["b"] :].mean()
        assert row["s"] == pytest.approx(expected, abs=1e-9) and len(row["s_ci"]) == 2
    assert {"layer", "relative_depth"} <= record["task_particle"].keys()


def test_allowing_something_unknown_is_refused_before_any_donor_is_opened():
    for command in ("trace", "rank"):
        stderr = hybridize(command, "nowhere", "--allow", "foo", code=2).stderr
        assert "'foo' is not one of 'remote_code', 'pickle'" in stderr


def test_masks_that_are_given_are_used_as_given(bench):
    Path("masks.json").write_text(json.dumps([[] for _ in PROBES]))
    nothing = trace("--mask-positions", "masks.json", "--mask-with", "<unk>", "--dtype", "float32")
    assert [layer["js"] for layer in nothing["layers"]] == [0, 0, 0, 0]
    Path("masks.json").write_text(json.dumps([[1, 2] for _ in PROBES]))
    some = trace("--mask-positions", "masks.json", "--mask-with", "3")
    assert some["settings"]["mask_with"] == "<unk>" and all(layer["js"] > 0 for layer in some["layers"])


@pytest.mark.slow
def test_layer_perturbation_finds_a_vulnerable_layer_and_both_can_be_had_at_once():
    assert trace("--perturb", "layer")["vulnerable_layer"]["layer"] in (0, 1, 2, 3)
    both = trace("--perturb", "both")
    assert both["vulnerable_layer"] and both["settings"]["mask_ratio"] == 0.3


def test_a_trace_is_kept_by_donor_probes_and_settings(bench):
    first = trace()
    again = hybridize("trace", "a", "--probes", "p.jsonl", "--json", "again.json")
    assert "unchanged, from the cache" in again.stderr
    assert json.loads(Path("again.json").read_text()) == first
    assert "from the cache" not in hybridize("trace", "a", "--probes", "p.jsonl", "--mask-ratio", "0.5").stderr


def test_a_trace_of_another_schema_is_not_reused(monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr("hybridizer.trace.runs.SCHEMA", "hybridizer.trace/1")
        trace()
    assert "from the cache" not in hybridize("trace", "a", "--probes", "p.jsonl").stderr
    assert "from the cache" in hybridize("trace", "a", "--probes", "p.jsonl").stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["record.json", "readings.npz"])
@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04", None])
def test_a_damaged_entry_of_the_cache_is_traced_again(bench, name, content):
    first = trace()
    (path,) = (bench / "cache" / "traces").glob(f"*/{name}")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    again = hybridize("trace", "a", "--probes", "p.jsonl", "--json", "again.json")
    assert json.loads(Path("again.json").read_text()) == first
    assert "from the cache" not in again.stderr
    assert "unchanged, from the cache" in hybridize("trace", "a", "--probes", "p.jsonl").stderr


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "compression", "missing", "other"])
def test_readings_that_do_not_hold_what_the_record_says_are_traced_again(bench, damage):
    first = trace()
    (path,) = (bench / "cache" / "traces").glob("*/readings.npz")
    damage_npz(path, damage, "kl")
    again = hybridize("trace", "a", "--probes", "p.jsonl", "--json", "again.json")
    assert "damaged in the cache, traced again" in again.stderr
    assert json.loads(Path("again.json").read_text()) == first


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "empty", "compression", "missing", "other"])
def test_damaged_sides_in_the_cache_are_measured_again(bench, damage):
    known = ["rank", "a", "b", "--probes", "p.jsonl", "--boundary", "0.5"]
    first = hybridize_json(*known)
    (path,) = (bench / "cache" / "sides").iterdir()
    damage_npz(path, damage, "deep1_hit")
    again = hybridize(*known, "--json", "again.json")
    assert "damaged in the cache, measured again" in again.stderr
    assert json.loads(Path("again.json").read_text()) == first
    assert "damaged" not in hybridize(*known).stderr


def damage_npz(path, damage, column):
    """Cut a file of arrays, give it a compression that does not exist, or drop or shorten one of its columns."""
    content = path.read_bytes()
    if damage in ("cut", "empty"):
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    elif damage == "compression":
        at = content.rindex(b"PK\x01\x02") + 10
        path.write_bytes(content[:at] + b"\x63" + content[at + 1 :])
    else:
        with np.load(path) as stored:
            columns = dict(stored)
        found = columns.pop(column)
        np.savez(path, **columns, **({column: found[:-1]} if damage == "other" else {}))


def test_a_damaged_journal_in_the_cache_starts_over(bench):
    first = trace()
    (path,) = (bench / "cache" / "traces").glob("*/record.json")
    path.unlink()
    path.with_name("journal.jsonl").write_bytes(b"another trace\n")
    again = hybridize("trace", "a", "--probes", "p.jsonl", "--json", "again.json")
    assert "started over" in again.stderr
    assert json.loads(Path("again.json").read_text()) == first


@pytest.mark.slow
def test_pictures_are_drawn_of_one_donor_and_of_several():
    trace("--plot", "one.svg")
    hybridize("trace", "a", "b", "--probes", "p.jsonl", "--plot", "two.png")
    assert Path("one.svg").read_text().startswith("<?xml") and Path("two.png").read_bytes().startswith(b"\x89PNG")


def test_baselines_stand_beside_the_trace_each_with_its_source():
    baselines = trace("--baselines")["baselines"]
    assert [scores["name"] for scores in baselines] == ["snr", "block-influence", "angular-distance"]
    assert all("arXiv" in scores["source"] and len(scores["values"]) == 4 for scores in baselines)
    shown = hybridize("trace", "a", "--probes", "p.jsonl", "--baselines").stdout
    assert "block-influence" in shown and "ShortGPT" in shown


@pytest.mark.slow
def test_donors_are_ranked_into_the_contract():
    hybridize("rank", "a", "b", "--probes", "p.jsonl", "--boundary", "0.5", "--json", "rank.json")
    ranking = json.loads(Path("rank.json").read_text())
    assert ranking["schema"] == "hybridizer.ranking/4"
    assert {row["donor"] for row in ranking["ranking"]} == {"a", "b"}
    assert ranking["ranking"][0]["score"] >= ranking["ranking"][1]["score"]
    for row in ranking["ranking"]:
        assert {"score_ci", "stability_ci", "competence_ci", "tied_with"} <= row.keys()
        assert (row["first_layer"], row["last_layer"]) == (2, 3)


def auto_recipe(allow=("incompetent",), **layout):
    """Random donors answer no better than chance, so that they must be allowed to be chosen."""
    content = {"host": "a", "deep": "auto", "shallow": "b", "boundary": "auto", **layout}
    donors = {name: {"source": name, "allow": list(allow)} for name in "ab"}
    return write_recipe(Path("x.yaml"), donors=donors, layout=content, trace={"probes": "p.jsonl"})


@pytest.mark.slow
def test_what_a_recipe_leaves_open_is_settled_with_a_reason_and_recorded():
    plan = hybridize_json("plan", auto_recipe())
    deep, left_out, boundary = plan["evidence"]["reasons"]
    first = plan["evidence"]["ranking"]["ranking"][0]["donor"]
    assert deep.startswith(f"Deep is '{first}', first of 2 donors") and boundary.startswith("Boundary at layer ")
    assert "is not taken as deep: its accuracy of 0.0%" in left_out
    assert any(f"The deep side is '{first}', which is not competent" in warning for warning in plan["warnings"])
    assert any("supports no boundary" in warning for warning in plan["warnings"])
    chosen = int(boundary.split()[3])
    assert [row["sources"][0][0] for row in plan["layers"]] == ["b"] * chosen + [first] * (4 - chosen)
    assert {"a.json", "a.svg", "b.json", "b.svg"} == {path.name for path in Path("runs/x/traces").iterdir()}
    assert json.loads(Path("runs/x/ranking.json").read_text())["schema"] == "hybridizer.ranking/4"
    assert hybridize_json("plan", "runs/x/recipe.resolved.yaml")["hash"] == plan["hash"]
    hybridize("build", "x.yaml")


@pytest.mark.slow
def test_a_plan_stops_where_no_donor_does_better_than_chance_and_goes_on_where_one_is_allowed():
    told = hybridize("plan", auto_recipe(allow=()), code=2).stderr
    assert "x.yaml:" in told and "no donor's deep side does better than chance (30.0%) beyond doubt: 'a' 0.0%" in told
    assert "allow: [incompetent]" in told
    hybridize("plan", auto_recipe())


@pytest.mark.slow
def test_both_sides_are_chosen_by_what_they_are_worth_on_the_host():
    plan = hybridize_json("plan", auto_recipe(deep="auto", shallow="auto", boundary=0.5))
    ranking = json.loads(Path("runs/x/ranking.json").read_text())
    deep, shallow = ranking["ranking"][0]["donor"], ranking["shallow"]["ranking"][0]["donor"]
    assert [row["sources"][0][0] for row in plan["layers"]] == [shallow, shallow, deep, deep]
    assert (ranking["side"], ranking["shallow"]["side"], ranking["host"]) == ("deep", "shallow", "a")
    assert {row["first_layer"] for row in ranking["shallow"]["ranking"]} == {0}
    again = hybridize("plan", "x.yaml").stdout  # sides are measured once
    assert "Shallow is '" in again and "Deep is '" in again
    told = " ".join(again.split())
    for other in ("each deep side with the shallow side of a", "each shallow side with the deep side of a"):
        assert f"by transplant: score = bytes per bit, of {other}" in told, "the whole ranking, as `rank` shows it"
    assert again.count("p.jsonl: 10 usable targets are too few to be halved") == 2
    assert "passes" not in hybridize("plan", "x.yaml").stderr
    shown = hybridize("check", auto_recipe(deep="auto", shallow="auto", boundary=0.5)).stdout
    assert shown.count("checked as if it were the host, 'a'") == 2


@pytest.mark.slow
def test_donors_are_ranked_by_the_measure_and_on_the_host_that_are_asked_for():
    known = ["rank", "a", "b", "--probes", "p.jsonl", "--boundary", "0.5"]
    plain, by_b = (hybridize_json(*known, *more) for more in (["--by", "stability"], ["--host", "b"]))
    assert plain["by"] == "stability" and plain["ranking"][0]["bits_per_byte"] is None
    assert plain["ranking"][0]["score"] == plain["ranking"][0]["stability"]
    assert (by_b["by"], by_b["host"]) == ("transplant", "b") and by_b["probes"]["n"] == plain["n"]
    assert by_b["settings"]["mask_ratio"] == 0.3
    shallow = hybridize_json(*known, "--side", "shallow")
    assert {(row["first_layer"], row["last_layer"]) for row in shallow["ranking"]} == {(0, 1)}
    assert "there is no measure 'stab'" in hybridize(*known, "--by", "stab", code=2).stderr
    assert "'c' is not one of the donors" in hybridize(*known, "--host", "c", code=2).stderr


@pytest.mark.slow
def test_a_ranked_donor_with_other_tokens_than_the_host_gets_a_warning():
    exchange_tokens(make_donor(Path("c"), seed=3), "a", "b")
    make_donor(Path("wide"), hidden_size=32)
    exchange_tokens(Path("wide"), "a", "b")
    for more in ([], ["--by", "stability"]):
        found = hybridize_json("rank", "a", "b", "c", "wide", "--probes", "p.jsonl", "--boundary", "0.5", *more)
        warnings = [text for text in found["warnings"] if "allow: [vocabulary]" in text]
        assert all("the host 'a'. Its side is fed the host's tokens" in text for text in warnings)
        named = [donor for donor in ("b", "c", "wide") if any(f"for '{donor}'" in text for text in warnings)]
        assert named == (["c", "wide"] if more else ["c"]), "wide is measured whole, which is reported with the reason"


@pytest.mark.slow
def test_a_boundary_that_the_trace_does_not_support_is_kept_with_a_warning():
    texts = [hybridize_json("plan", auto_recipe(deep="a", boundary=b))["warnings"] for b in (1, 2, 3)]
    for b, warnings in enumerate(texts, start=1):
        assert any(f"Freezing from layer {b} on is " in warning for warning in warnings)  # two donors of random weights


def test_check_leaves_open_what_only_a_trace_can_settle():
    shown = hybridize("check", auto_recipe()).stdout
    assert "no problem found; 4 layers" in shown and "checked as if it were the host, 'a'" in shown
    assert "as if it were" not in hybridize("check", auto_recipe(deep="a")).stdout
    assert not Path("cache/traces").exists()


def plan_depths(boundary, **sections):
    """How many layers `check` and `plan` say of a recipe whose deep donor has 6 layers and whose shallow one has 4."""
    layout = {"host": "six", "deep": "six", "shallow": "b", "boundary": boundary}
    recipe = write_recipe(Path("x.yaml"), donors={"six": "six", "b": "b"}, layout=layout, **sections)
    plan = hybridize_json("plan", recipe)
    assert hybridize_json("plan", "runs/x/recipe.resolved.yaml")["hash"] == plan["hash"]
    return hybridize_json("check", recipe)["layers"], len(plan["layers"])


@pytest.mark.slow
@pytest.mark.parametrize("boundary", [0.5, "midpoint", 0.2, 0.1, 3])
def test_a_trace_does_not_change_the_depth_of_a_model_whose_donors_have_different_depths(boundary):
    make_donor(Path("six"), seed=3, num_hidden_layers=6)
    without, traced = plan_depths(boundary), plan_depths(boundary, trace={"probes": "p.jsonl"})
    depth = {0.5: 5, "midpoint": 5, 0.2: 6, 0.1: 6, 3: 6}[boundary]  # a share counts in each donor by itself
    assert without == traced == (depth, depth)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", slow_except(sorted(STRATEGIES.keys() - {"midpoint", "task-particle"}), "auto"))
def test_check_knows_the_depth_that_a_strategy_will_give(strategy):
    make_donor(Path("six"), seed=3, num_hidden_layers=6)
    checked, planned = plan_depths(strategy, trace={"probes": "p.jsonl"})
    assert checked == planned


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--perturb", "contxt"], "Did you mean 'context'?"),
        (["--mask-ratio", "2"], "--mask-ratio must be a number from 0 to 1; got the number 2.0."),
        (["--mask-ratio", "nan"], "--mask-ratio must be a number from 0 to 1; got the number nan."),
        (["--mask-ratio", "half"], "'--mask-ratio': 'half' is not a valid float"),
        (["--noise-ratio", "0"], "--noise-ratio must be a number > 0; got the number 0.0."),
        (["--epsilon", "inf"], "--epsilon must be a number > 0; got the number inf."),
        (["--batch-size", "0"], "--batch-size is 0; the least is 1."),
        (["--seed", "-1"], "'--seed': -1 is not in the range 0<=x<=4294967295"),
        (["--tau", "-0.1", "--p-min", "2"], "--p-min must be a number from 0 to 1; got the number 2.0."),
        (["--tau", "-0.1", "--p-min", "2"], "--tau must be a number from 0 to 1; got the number -0.1."),
        (["--lens", "blurred"], "--lens cannot be 'blurred'.\n  Known here: both, plain, tuned."),
        (["--dtype", "int3"], "--dtype cannot be 'int3'."),
        (["--plot", "x.gif"], "Name it .svg or .png"),
        (["--mask-with", "no such token at all"], "no such token"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(arguments, says):
    assert says in hybridize("trace", "a", "--probes", "p.jsonl", *arguments, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trace", "a", "a"], "'a' is named 2 times"),
        (["trace", "a", "--seed", str(2**32)], "4294967296 is not in the range 0<=x<=4294967295"),
        (["trace", "a", "--allow", "pickel"], "'pickel' is not one of 'remote_code', 'pickle'"),
        (["trace", "a", "--json", "no/such/out.json"], "the folder 'no/such' does not exist"),
        (["trace", "a", "--json", "a"], "'a' is named 2 times"),  # without .json it is a donor
        (["trace", "a", "--plot", "no/out.svg"], "the folder 'no' does not exist"),
        (["trace", "a", "--plot", "x.gif"], "Name it .svg or .png"),
        (["trace", *"abcdefg", "--plot", "x.svg"], "7 donors cannot be told apart"),
        (["trace", "a", "other", "--mask-with", "abc"], "'abc' is not one token of this tokenizer"),
        (["trace", "a", "./a"], "'./a' is 'a' under another name"),
        (["rank", "a", "a"], "'a' is named 2 times"),
        (["rank", "a", "a/"], "'a/' is 'a' under another name"),
        (["rank", "a", "b", "--seed", str(2**32)], "4294967296 is not in the range 0<=x<=4294967295"),
        (["rank", "a", "b", "--allow", "pickel"], "'pickel' is not one of 'remote_code', 'pickle'"),
        (["rank", "a", "b", "--json", "no/such/out.json"], "the folder 'no/such' does not exist"),
        (["rank", "a", "b", "--boundary", "99"], "layer 99 leaves one side of a empty"),
        (["rank", "a", "one"], "it has a single layer"),
        (["rank", "a", "b", "--perturb", "layer"], "ranking needs the context perturbation"),
        (["rank", "a", "b", "--probes", "same.jsonl"], "every probe has the same target"),
        (["rank", "a", "b", "--probes", "none.jsonl"], "no probe has a target that every donor could give"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_traced(bench, monkeypatch, arguments, says):
    if "other" in arguments:
        make_donor(Path("other"), seed=3)
    if "one" in arguments:
        make_donor(Path("one"), num_hidden_layers=1)
    for name, target in {"same": "a", "none": "two words"}.items():
        lines = [json.dumps({**probe, "target": target}) + "\n" for probe in PROBES]
        Path(f"{name}.jsonl").write_text("".join(lines))
    traced = []
    monkeypatch.setattr("hybridizer.trace.runs._run", lambda donor, *_rest: traced.append(donor.name))
    options = [] if "--probes" in arguments else ["--probes", "p.jsonl"]
    assert says in hybridize(*arguments, *options, code=2).stderr
    assert traced == []


@pytest.mark.parametrize(
    ("donors", "options", "says"),
    [
        ([], {}, "no donor is given"),
        (["a", "b"], {"side": "depp"}, "there is no side 'depp'.\n  Did you mean 'deep'?"),
        (["a", "b"], {"boundary": "knea"}, "Did you mean 'knee'?"),
        (["a", "b"], {"boundary": 1.5}, "1.5 is not a share of the depth between 0 and 1"),
    ],
)
def test_what_only_the_python_interface_can_ask_for_is_refused_before_anything_is_traced(
    monkeypatch, donors, options, says
):
    monkeypatch.setattr("hybridizer.trace.runs._run", None)
    with pytest.raises(InputError) as caught:
        rank(donors, probes="p.jsonl", **options)
    assert says in str(caught.value)


def test_every_problem_with_the_arguments_is_reported_at_once():
    request = TraceRequest(read_probes(Path("p.jsonl")), Trace(), seed=2**32)
    with pytest.raises(InputError) as caught:
        trace_donors(["a", "a"], request, ("x",), SilentMonitor(), json_out=Path("no/out.json"), plot=Path("x.gif"))
    assert len(caught.value.problems) == 5


def test_a_model_of_one_layer_is_traced_without_a_boundary():
    make_donor(Path("one"), num_hidden_layers=1)
    arguments = ("one", "--probes", "p.jsonl", "--json", "out.json", "--plot", "out.svg")
    shown = hybridize("trace", *arguments).stdout
    record = json.loads(Path("out.json").read_text())
    assert len(record["layers"]) == 1 and record["boundary"] == [] and "0" in shown
    assert Path("out.svg").exists()

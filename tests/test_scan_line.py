"""`hybridize scan` on tiny checkpoints: the record, recipes that are accepted, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.donors import open_named
from hybridizer.pipeline.scan_layers import check_fit, name_donors
from hybridizer.scan.candidates import Space, list_candidates
from hybridizer.scan.request import ScanRequest
from hybridizer.scan.run import set_up
from hybridizer.scan.score import Scorer
from hybridizer.trace.probes import read_probes
from support.gguf_files import write_gguf
from support.lines import exchange_tokens, hybridize, hybridize_json, make_donor, make_donors

PAIRS = [("hot", "a"), ("cold", "b"), ("up", "c"), ("down", "d")]
SMALL = ("--documents", "12", "--document-tokens", "24", "--prompts", "12", "--probes", "p.jsonl", "--span", "2")


@pytest.fixture(autouse=True)
def bench(bench):
    make_donors(bench)
    probes = [
        {"prompt": f"{i} the opposite of {word} is ", "target": target} for i in range(3) for word, target in PAIRS
    ]
    Path("p.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in probes))
    return bench


def scan(*arguments, donors=("a",), **options):
    hybridize("scan", *donors, *SMALL, "--json", "scan.json", *arguments, **options)
    return json.loads(Path("scan.json").read_text())


@pytest.mark.slow
def test_the_record_is_the_contract():
    record = scan("--best", "3")
    assert record["schema"] == "hybridizer.scan/1"
    assert record["donors"][0].items() >= {"name": "a", "reference": "a", "num_layers": 4}.items()
    assert record["num_possible"] == record["num_tried"] == record["num_scored"] == len(record["candidates"]) == 14
    changes = [row["change"] for row in record["candidates"]]
    assert changes == sorted(changes) and {row["kind"] for row in record["candidates"]} == {"cut", "repeat"}
    assert [winner["row"] for winner in record["winners"]] == record["candidates"][:3]
    for winner in record["winners"]:
        low, high = winner["bits_change"]["change_ci"]
        assert low <= winner["bits_change"]["change"] <= high
        assert winner["bits_change"]["change"] == pytest.approx(
            winner["bits_per_byte"] - record["test"]["bits_per_byte"], abs=1e-12
        )
    assert (record["search"]["num_documents"], record["test"]["num_documents"]) == (6, 6)
    assert (record["search"]["num_prompts"], record["test"]["num_prompts"]) == (0, 12)
    assert record["null"].keys() >= {"num_tried", "num_found", "num_expected", "false_discovery_rate"}


def test_scores_in_memory_equal_those_of_written_splices_bit_for_bit():
    record = scan("--out", "out", "--changes", "seam", "--changes", "band", donors=("a", "b"))
    from hybridizer.evaluate.bits import score_documents
    from hybridizer.models.load import load_causal_lm
    from hybridizer.models.parts import find_parts

    donors = open_named(name_donors(["a", "b"]), (), SilentMonitor())
    request = ScanRequest(documents=12, document_tokens=24, prompts=12)
    part = set_up(donors, request, read_probes(Path("p.jsonl")), None).items.test
    assert record["winners"]
    for recipe, winner in zip(sorted(Path("out").iterdir()), record["winners"], strict=True):
        hybridize("build", recipe)
        model, _ = load_causal_lm(Path("runs") / recipe.stem / "model")
        bits = score_documents(model, find_parts(model), part.items.texts[0], part.items.context)
        assert bits.sum() / part.items.num_bytes.sum() == winner["bits_per_byte"]


@pytest.mark.slow
def test_the_best_are_written_as_recipes_that_check_accepts_from_anywhere(tmp_path, monkeypatch):
    record = scan("--out", "out", "--best", "4", donors=("a", "b"))
    recipes = sorted(Path("out").iterdir())
    assert len(recipes) == len(record["winners"]) == 4
    monkeypatch.chdir(Path(tmp_path.anchor))
    for recipe, winner in zip(recipes, record["winners"], strict=True):
        path = tmp_path / recipe
        checked = hybridize_json("check", path)
        assert checked["layers"] == winner["row"]["num_layers"] and not checked["waiting"]
        content = yaml.safe_load(path.read_text())
        assert content["layout"]["slices"] == winner["row"]["slices"]
        assert content["donors"]["a"]["fingerprint"] == record["donors"][0]["fingerprint"]
        assert f"among {record['num_tried']} models" in path.read_text()


@pytest.mark.slow
def test_a_gguf_file_is_named_in_recipes_as_the_user_named_it_and_not_by_its_conversion(bench):
    pytest.importorskip("gguf")
    Path("models").mkdir()
    write_gguf(Path("models/small.Q8.gguf"))
    hybridize("scan", "models/small.Q8.gguf", "--documents", "8", "--prompts", "0", "--span", "1", "--out", "out")
    for recipe in Path("out").iterdir():
        content = yaml.safe_load(recipe.read_text())
        assert content["layout"]["host"] == "small-Q8" and list(content["donors"]) == ["small-Q8"]
        assert content["donors"]["small-Q8"]["source"] == str(bench / "models/small.Q8.gguf")
        assert not hybridize_json("check", recipe)["waiting"]


@pytest.mark.slow
def test_two_donors_are_joined_and_swapped():
    record = scan("--candidates", "9999", donors=("a", "b"))
    assert {row["kind"] for row in record["candidates"]} == {"cut", "repeat", "seam", "swap"}
    assert record["num_tried"] == record["num_possible"]


@pytest.mark.slow
def test_a_budget_draws_by_the_seed():
    first, again, other = (scan("--candidates", "5", "--seed", seed) for seed in ("0", "0", "3"))
    assert first["num_tried"] == 5 and first["num_possible"] == 14
    names = [sorted(row["name"] for row in record["candidates"]) for record in (first, again, other)]
    assert names[0] == names[1] != names[2]
    assert "5 models tried of 14 (drawn with seed 0)" in hybridize("scan", "a", *SMALL, "--candidates", "5").stdout


@pytest.mark.slow
def test_many_candidates_are_screened_on_items_of_their_own():
    options = ("--documents", "54", "--best", "2")
    record = scan(*options)
    assert record["screen"]["num_documents"] == 6 and record["search"]["num_documents"] == 24
    assert (record["num_tried"], record["num_scored"]) == (14, 6) and record["null"]["num_tried"] == 6
    passed = [row for row in record["candidates"] if row["change"] is not None]
    others = [(-row["screened_items"], row["screened"]) for row in record["candidates"] if row["change"] is None]
    assert record["candidates"][:6] == passed
    assert [row["screened_items"] for row in record["candidates"]] == [6] * 8 + [3] * 3 + [1] * 3
    assert others == sorted(others)
    assert "14 models tried, 6 of them passed the screen" in hybridize("scan", "a", *SMALL, *options).stdout
    without = scan(*options, "--full")
    assert without["screen"] is None and without["num_scored"] == 14
    full = {row["name"]: row["change"] for row in without["candidates"]}
    assert all(full[row["name"]] == row["change"] for row in passed)


@pytest.mark.slow
def test_a_screened_change_is_that_of_the_documents_of_all_rungs_so_far():
    record = scan("--documents", "54", "--best", "2")
    request = ScanRequest(documents=54, document_tokens=24, prompts=0)
    bench = set_up(open_named({"a": "a"}, (), SilentMonitor()), request, None, None)
    items = bench.items.screen.items
    scorer = Scorer(bench.models, "a", items)

    def bits_per_byte(layers, count):
        return scorer.score(layers).bits[:count].sum() / items.num_bytes[:count].sum()

    layers = {one.name: one.layers for one in list_candidates(Space({"a": 4}, 2), ("cut", "repeat"))}
    for row in record["candidates"]:
        count = row["screened_items"]
        change = bits_per_byte(layers[row["name"]], count) - bits_per_byte(scorer.host_path, count)
        assert row["screened"] == pytest.approx(change, abs=1e-6)  # batches differ between the two


@pytest.mark.slow
def test_more_models_pass_a_screen_where_more_are_to_be_tested():
    record = scan("--documents", "54", "--best", "7", "--span", "3")
    assert record["num_tried"] == 18 and record["num_scored"] == len(record["winners"]) == 7


def test_layers_that_matter_least_are_named():
    record = scan("--drop", "2")
    assert record["winners"] and all(winner["row"]["num_layers"] == 2 for winner in record["winners"])
    assert record["num_possible"] is None and record["num_tried"] == 4 + 3
    assert record["sentence"].startswith("the layers that matter least are ")
    gone = set(range(4)) - {
        layer for layer in range(4) if str(layer) in record["winners"][0]["row"]["slices"][0]["layers"]
    }
    assert all(str(layer) in record["sentence"].split(":")[0] for layer in gone)


@pytest.mark.slow
def test_a_donor_is_chosen_for_each_layer():
    record = scan("--per-layer", donors=("a", "b"))
    best = record["candidates"][0]
    assert best["num_layers"] == 4 and best["change"] < 0
    assert all(best["change"] <= row["change"] for row in record["candidates"])
    assert "a 0..3" not in [row["name"] for row in record["candidates"]]


@pytest.mark.slow
def test_a_search_by_accuracy_divides_the_prompts():
    record = scan("--by", "accuracy", "--documents", "4")
    assert (record["search"]["num_documents"], record["test"]["num_documents"]) == (0, 4)
    assert record["search"]["num_prompts"] + record["test"]["num_prompts"] == 12
    changes = [row["change"] for row in record["candidates"]]
    assert changes == sorted(changes, reverse=True)


@pytest.mark.slow
def test_own_text_is_read_and_named():
    texts = [f"document {i} says " + "the cat sat on the mat " * (i % 7 + 1) for i in range(40)]
    Path("own.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    record = scan("--text", "own.jsonl", "--field", "body", "--prompts", "0")
    assert record["text"] == "own.jsonl" and record["probes"] is None
    assert record["test"]["num_documents"] == 6 and record["winners"][0]["accuracy_change"] is None


@pytest.mark.slow
def test_a_finished_scan_costs_no_run_and_an_interrupted_one_resumes(bench, monkeypatch):
    first = scan()
    with monkeypatch.context() as patched:
        patched.setattr("hybridizer.scan.run.load_causal_lm", None)
        assert scan() == first
    journals = sorted((bench / "cache" / "scans").iterdir())
    for journal in journals:
        journal.write_bytes(journal.read_bytes()[:-100])
    assert scan() == first
    journals[0].write_bytes(b'{"key": "other"}\n{}\n')
    assert "started over" in hybridize("scan", "a", *SMALL, "--json", "scan.json").stderr
    assert json.loads(Path("scan.json").read_text()) == first


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"{}\n", b"\xff\xfe\n", None])
def test_a_damaged_scan_in_the_cache_starts_over(bench, damage):
    first = scan("--changes", "cut")
    for path in (bench / "cache" / "scans").iterdir():
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(damage if damage is not None else lines[0] + lines[1].replace(b'"hit": [', b'"hit": [0.0, '))
    assert scan("--changes", "cut") == first


@pytest.mark.slow
def test_tables_show_what_was_tried_the_verdicts_and_chance():
    shown = hybridize("scan", "a", *SMALL, "--best", "2").stdout
    assert "a, 4 layers" in shown and "14 models tried; searched by bits per byte" in shown
    assert "search: 6 documents of Python reference" in shown and "12 prompts of p.jsonl in" in shown
    assert "95% intervals that hold for all 2 together" in shown and "would by chance" in shown
    assert (
        "no change was better than the model as it is" in shown or "better than the model as it is, on items" in shown
    )


@pytest.mark.slow
def test_pictures_are_drawn_with_title_and_description():
    hybridize("scan", "a", "b", *SMALL, "--plot", "scan.svg")
    text = Path("scan.svg").read_text()
    assert "<title>Scan of a</title>" in text and "<desc>Changes of bits per byte by " in text
    assert "prefers-color-scheme: dark" in text
    hybridize("scan", "a", *SMALL, "--drop", "1", "--plot", "drop.png")
    assert Path("drop.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a", "a"], "'a' is named 2 times"),
        (["a", "./a"], "'./a' is 'a' under another name"),
        (["a", "--seed", str(2**32)], "4294967296 is not in the range 0<=x<=4294967295"),
        (["nowhere"], "'nowhere' does not exist"),
        (["a", "one"], "donor 'one': it has a single layer"),
        (["a", "wide"], "`hidden_size` is 32, and 64"),
        (["a", "other"], "a donor of family 'qwen3'"),
        (["a", "--candidates", "0"], "0 is not in the range x>=1"),
        (["a", "--probes", "antonims-en"], "antonims-en"),
        (["a", "--changes", "cuts"], "'cuts' is not one of"),
        (["a", "--changes", "seam"], "a seam needs a second donor"),
        (["a", "--drop", "4"], "4 layers cannot be left out of 4"),
        (["a", "--drop", "2", "--candidates", "3"], "ended before 2 layers were left out.\n  Give 7"),
        (["a", "--per-layer"], "there is one donor to choose from"),
        (["a", "b", "--per-layer", "--drop", "1"], "these are different searches"),
        (["a", "--documents", "1"], "1 cannot be divided"),
        (["a", "--by", "accuracy", "--prompts", "0"], "0 cannot be divided"),
        (["a", "--text", "no.txt"], "no file in"),
        (["a", "--json", "no/x.json"], "the folder 'no' does not exist"),
        (["a", "--plot", "no/x.svg"], "the folder 'no' does not exist"),
        (["a", "--plot", "x.gif"], "Name it .svg or .png"),
        (["a", "--out", "no/where"], "the folder no does not exist"),
        (["a", "--out", "p.jsonl"], "Directory 'p.jsonl' is a file"),
        (["a", "--allow", "pickel"], "'pickel' is not one of"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(monkeypatch, arguments, says):
    if "one" in arguments:
        make_donor(Path("one"), num_hidden_layers=1)
    if "wide" in arguments:
        make_donor(Path("wide"), hidden_size=32)
    if "other" in arguments:
        make_donor(Path("other"), "qwen3")
    if "--candidates" not in arguments or "0" in arguments:
        monkeypatch.setattr("hybridizer.scan.run.load_causal_lm", None)
    options = [word for i in range(0, len(SMALL), 2) if SMALL[i] not in arguments for word in SMALL[i : i + 2]]
    assert says in hybridize("scan", *arguments, *options, code=2).stderr


def test_every_problem_of_a_request_is_reported_at_once():
    request = ScanRequest(changes=("cutt", "swap"), by="bit", candidates=0, best=0, documents=-1, drop=0)
    assert len(list(request.problems(1))) == 8


def test_donors_are_named_as_recipes_take_them():
    references = ["x/org-a", "y/org-a", "org/name.v2@main", "pkg:p/M.Q4_1.gguf", "./", "模型"]
    assert list(name_donors(references).values()) == ["org-a", "org-a-2", "name-v2", "M-Q4_1", "donor", "donor-2"]
    hashes = [f"cache/gguf/{'0ac5' * 16}", f"hub/snapshots/{'12ef' * 10}", f"models/{'0ac5' * 3}"]
    assert list(name_donors(hashes).values()) == ["donor", "donor-2", "0ac5" * 3]


@pytest.mark.slow
def test_donors_of_different_tokenizers_need_permission():
    exchange_tokens(make_donor(Path("c"), seed=3), "a", "b")
    assert "vocabulary" in hybridize("scan", "a", "c", *SMALL, code=2).stderr
    assert scan("--allow", "vocabulary", "--changes", "swap", donors=("a", "c"))["num_tried"] == 4
    check_fit(open_named({"a": "a", "b": "b"}, (), SilentMonitor()))


@pytest.mark.slow
def test_donors_of_two_dtypes_are_scored_and_written_in_float32():
    hybridize("build", write_bfloat16())
    record = scan("--changes", "swap", "--out", "out", donors=("a", "runs/half/model"))
    assert record["settings"]["dtype"] == "float32"
    for recipe in Path("out").iterdir():
        assert yaml.safe_load(recipe.read_text())["output"] == {"dtype": "float32"}
        hybridize("check", recipe)
    assert np.isfinite(record["winners"][0]["bits_per_byte"])


def write_bfloat16():
    content = {"donors": {"b": "b"}, "layout": {"slices": [{"donor": "b"}]}, "output": {"dtype": "bfloat16"}}
    Path("half.yaml").write_text(yaml.safe_dump(content))
    return "half.yaml"


def write_auto(**layout):
    donors = {"a": "a", "b": "b"} if "host" in layout else {"a": "a"}
    content = {"donors": donors, "layout": layout or "auto", "trace": {"probes": "p.jsonl"}}
    Path("auto.yaml").write_text(yaml.safe_dump(content))
    return "auto.yaml"


@pytest.mark.slow
def test_a_recipe_whose_layers_are_left_to_a_scan_is_checked_planned_and_stored(monkeypatch):
    recipe = write_auto(host="a", candidates=20)
    shown = hybridize("check", recipe).stdout
    assert "4 layers" in shown and "the layers are left to a scan; checked as if they were the host's, 'a'" in shown
    plan = hybridize_json("plan", recipe)
    assert plan["evidence"]["reasons"][0].startswith("Layers by a scan of ")
    assert hybridize_json("plan", "runs/auto/recipe.resolved.yaml")["hash"] == plan["hash"]
    assert hybridize_json("plan", recipe)["hash"] == plan["hash"]


@pytest.mark.slow
@pytest.mark.parametrize("verdict", ["better", "no difference shown"])
def test_a_scan_changes_the_host_only_where_the_test_shows_that_it_is_better(monkeypatch, verdict):
    monkeypatch.setattr("hybridizer.scan.select._verdict", lambda *_: verdict)
    plan = hybridize_json("plan", write_auto())
    layers = [row["sources"][0].rpartition(" ")[2] for row in plan["layers"]]
    assert (layers == ["0", "1", "2", "3"]) == (verdict != "better")
    assert ("no change was better than the model as it is" in plan["evidence"]["reasons"][0]) == (verdict != "better")


def test_a_scan_in_a_recipe_refuses_donors_of_other_shapes():
    make_donor(Path("b"), hidden_size=32)
    assert "`hidden_size` is 32, and 64" in hybridize("plan", write_auto(host="a", candidates=9), code=2).stderr

"""Texts that a donor writes: counted, batched by length, the same every time, and resumed after an interruption."""

import json
from collections import Counter
from itertools import islice

import pytest

from hybridizer.core.errors import InputError
from hybridizer.core.progress import SilentMonitor
from hybridizer.data import sampling
from hybridizer.data.sampling import Writer, read_prompts, write_texts
from hybridizer.models import generation
from hybridizer.recipe.generate import Generate
from hybridizer.recipe.sections import fill_in
from support.lines import hybridize, hybridize_json, make_donor, write_recipe

PROMPTS = ("the cat", "a dog", "one two three")


def settings_of(**changes):
    given = {"from": "a", "prompts": PROMPTS, "tokens": 300, "max_new_tokens": 12, **changes}
    return fill_in(Generate(**given), identity="sha256:1")


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    return make_donor(tmp_path_factory.mktemp("donor") / "a")


def write(donor, folder, prompts=PROMPTS, **changes):
    write_texts(Writer("a", donor), prompts, settings_of(**changes), folder, SilentMonitor())
    return [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]


def test_texts_begin_with_their_prompts_and_have_the_tokens_that_were_asked_for(donor, tmp_path):
    texts = write(donor, tmp_path / "out")
    record = json.loads((tmp_path / "out/generated.json").read_text())
    assert all(text.startswith(PROMPTS) for text in texts)
    assert {prompt for prompt in PROMPTS if any(text.startswith(prompt) for text in texts)} == set(PROMPTS)
    assert 300 <= record["tokens"] < 300 + sampling.ROWS * 12 and record["settings"]["temperature"] == 1.0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["generated.json", "texts.jsonl"]


def test_the_same_settings_give_the_same_texts_and_another_seed_others(donor, tmp_path):
    first, again = (write(donor, tmp_path / name) for name in ("first", "again"))
    assert first == again
    one, other = (write(donor, tmp_path / f"seed {seed}", prompts=("the cat",), seed=seed) for seed in (0, 1))
    assert one != other  # a single prompt, whose order no seed changes


def test_a_low_temperature_repeats_itself(donor, tmp_path):
    cold = write(donor, tmp_path / "cold", prompts=("the cat",), temperature=1e-3)
    warm = write(donor, tmp_path / "warm", prompts=("the cat",), temperature=5.0)
    assert len(set(cold)) == 1 < len(set(warm))


def test_an_interrupted_run_resumes_after_its_last_batch_with_the_same_texts(donor, tmp_path, monkeypatch):
    calls, real = [], generation.sample_rows

    def count(*arguments):
        calls.append(arguments)
        return real(*arguments)

    def stop_at_the_third(*arguments):
        if len(calls) == 2:
            monkeypatch.setattr(generation, "sample_rows", count)
            calls.append(arguments)
            raise KeyboardInterrupt
        return count(*arguments)

    monkeypatch.setattr(generation, "sample_rows", count)
    whole = write(donor, tmp_path / "whole")
    num_batches = len(calls)
    calls.clear()

    monkeypatch.setattr(generation, "sample_rows", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write(donor, tmp_path / "stopped")
    assert not (tmp_path / "stopped/texts.jsonl").exists()
    assert write(donor, tmp_path / "stopped") == whole
    assert len(calls) == num_batches + 1  # the third was begun twice


def test_a_text_ends_with_the_end_token_which_is_counted_and_left_out(donor, tmp_path, monkeypatch):
    monkeypatch.setattr("hybridizer.models.generation.sample_rows", lambda *given: [[65, 2] for _ in given[1]])
    texts = write(donor, tmp_path / "out", prompts=("the cat",), tokens=2)
    (tokens,) = {json.loads((tmp_path / "out/generated.json").read_text())["tokens"]}
    assert tokens == 2 * len(texts) and {text.removeprefix("the cat") for text in texts} != {""}
    assert not any("</s>" in text for text in texts)


@pytest.mark.parametrize(("lengths", "sizes"), [([3], {16}), ([3, 3, 5], {12, 6}), ([2] * 40, {16, 8})])
def test_a_round_has_every_prompt_equally_often_in_batches_of_one_length(lengths, sizes):
    copies = -(-sampling.ROWS // len(lengths))
    found, batches = Counter(), []
    for batch in islice(sampling._batches(lengths, 0), 100):
        assert len({lengths[index] for index in batch}) == 1 and len(batch) <= sampling.ROWS
        batches.append(len(batch))
        found.update(batch)
        if sum(batches) == copies * len(lengths):
            break
    assert set(found.values()) == {copies} and set(batches) == sizes


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("p.txt", "one\n\ntwo\n", ("one", "two")),
        ("p.jsonl", '{"prompt": "a\\nb"}\n{"prompt": "c", "x": 1}\n', ("a\nb", "c")),
    ],
)
def test_prompts_are_the_lines_of_a_file(tmp_path, name, content, prompts):
    (tmp_path / name).write_text(content)
    assert read_prompts(name, tmp_path) == prompts


@pytest.mark.parametrize(
    ("content", "says"), [("\n", "holds no prompt"), ('{"text": "x"}\n', "p.jsonl:1: no text in the field 'prompt'")]
)
def test_files_without_prompts_are_refused(tmp_path, content, says):
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(InputError, match=says):
        read_prompts("p.jsonl", tmp_path)


def test_a_prompt_that_leaves_no_room_is_refused(donor, tmp_path):
    with pytest.raises(InputError, match="the model takes 512 with what follows"):
        write(donor, tmp_path / "out", prompts=("x" * 505,))


# From a recipe.


@pytest.fixture
def bench(bench):
    """A host, a teacher that gives no layer, a text, and a recipe that trains on both."""
    make_donor(bench / "a", seed=1)
    make_donor(bench / "teacher", "qwen3", seed=2)
    (bench / "prompts.txt").write_text("the cat\na dog\n")
    (bench / "t.jsonl").write_text("".join(json.dumps({"text": f"the cat {i} sat on"}) + "\n" for i in range(60)))
    return bench


def recipe_of(bench, more=None, **generate):
    made = {"from": "teacher", "prompts": "prompts.txt", "tokens": 1500, "max_new_tokens": 20, **generate}
    data = [{"path": "t.jsonl"}, {"generate": made, "weight": 2, **(more or {})}]
    train = {"data": data, "tokens": 600, "seq_len": 32, "lr": 1e-3, "heldout_ratio": 0.2}
    layout = {"host": "a", "deep": "a", "shallow": "a"}
    evaluate = {"max_tokens": 200, "context": 32, "new_tokens": 4}
    donors = {"a": "a", "teacher": "teacher"}
    return write_recipe(bench / "x.yaml", donors=donors, layout=layout, train=train, evaluate=evaluate)


@pytest.mark.slow
def test_a_build_trains_on_what_the_teacher_wrote_once(bench):
    recipe = recipe_of(bench)
    assert "generate: 'teacher' wrote" in hybridize("build", recipe).output
    (written,) = (bench / "cache/generated").glob("*/texts.jsonl")
    before = written.stat().st_mtime_ns
    sources = hybridize_json("inspect", "runs/x/model")["training"]["sources"]
    assert [source["name"] for source in sources][1] == "generated by teacher" and sources[1]["tokens_taken"] > 0
    scores = json.loads((bench / "runs/x/scores.json").read_text())
    assert "generated by teacher" in str(scores)
    again = hybridize("build", recipe, "--set", "name=again")
    assert "wrote" not in [line for line in again.output.splitlines() if line.startswith("generate")]
    assert written.stat().st_mtime_ns == before
    written.unlink()  # the cache may be emptied: the same texts are written again
    hybridize("build", "runs/again/plan.json")
    assert (bench / "runs/x").is_dir()


def test_the_plan_pins_donor_prompts_and_settings(bench):
    def content(**changes):
        plan = hybridize_json("plan", recipe_of(bench, **changes))
        return plan["hash"], plan["train"]["data"][1]["settings"]["content"]

    first = content()
    assert first == content() and not (bench / "cache/generated").exists()
    assert len({first, content(seed=1), content(temperature=0.5), content(tokens=2000)}) == 4
    (bench / "prompts.txt").write_text("the cow\n")
    assert content() != first
    make_donor(bench / "teacher", "qwen3", seed=3)
    (bench / "prompts.txt").write_text("the cat\na dog\n")
    assert content()[1] != first[1]


def test_a_teacher_that_gives_no_layer_is_no_idle_donor(bench):
    assert "gives no layer" not in hybridize("plan", recipe_of(bench)).output
    assert hybridize_json("plan", recipe_of(bench))["amounts"]["sources"][1]["epochs"] == pytest.approx(400 / 1200)


@pytest.mark.parametrize(
    ("more", "generate", "says"),
    [
        ({"path": "t.jsonl"}, {}, "entry 1 of `data` has both `path` and `generate`"),
        ({"field": "x"}, {}, "`field` has no effect on text that a donor writes"),
        ({}, {"from": "techer"}, "names 'techer', which is not a donor here"),
        ({}, {"prompts": []}, "must be a file or a list of prompts"),
        ({}, {"prompts": "none.txt"}, "`none.txt`: cannot be read"),
        ({}, {"identity": "x"}, "has no key `identity`"),
    ],
)
def test_what_cannot_be_generated_is_refused_at_its_line(bench, more, generate, says):
    output = hybridize("check", recipe_of(bench, more, **generate), code=2).output
    assert says in " ".join(output.split()) and "x.yaml:" in output

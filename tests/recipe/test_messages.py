"""The exact messages for the mistakes people make: where, what was asked and found, and what to do."""

from __future__ import annotations

import pytest

RECIPE = """\
donors:
  instruct: donors/instruct
  domain: donors/domain
layout:
  host: instruct
  deep: instruct
  shallow: domain
  boundary: 0.5
output:
  dtype: keep
"""
SLICES = """\
donors:
  a: donors/a
  b: donors/b
layout:
  host: a
  slices:
    - {donor: a, layers: 0..14}
    - blend:
        method: slerp
        base: a
        parameters: {t: 0.5}
        sources:
          - {donor: a, layers: 15..16}
          - {donor: b, layers: 15..16}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("boundary", "bondary", "recipe.yaml:8: `layout` has no key `bondary`.\n  Did you mean 'boundary'?"),
        (
            "output:\n  dtype: keep",
            "frozen:\n  lr: 1",
            "recipe.yaml:9: the recipe has no key `frozen`.\n"
            "  Known here: donors, evaluate, layout, name, output, seed, trace, train, trial.",
        ),
        ("host: instruct", "host: instuct", "recipe.yaml:5: `host` names 'instuct', which is not a donor here.\n"
         "  Did you mean 'instruct'?"),
        ("  host: instruct\n", "", "recipe.yaml:4: `layout` has no `host`, and there are 2 donors.\n"
         "  Add `host`, the donor that gives embeddings, final norm, head and tokenizer: instruct, domain."),
        ("  shallow: domain\n", "", "recipe.yaml:4: `layout` has `deep` and no `shallow`.\n"
         "  Add `shallow` with a donor's name; it may be the same donor."),
        ("  deep: instruct\n  shallow: domain\n", "",
         "recipe.yaml:4: `layout` does not assign donors to layers.\n"
         "  Add `deep` and `shallow`, each with a donor's name, or list the layers in full under `slices`."),
        ("0.5", "'0.5'", "recipe.yaml:8: `boundary` takes a number, found the text '0.5'.\n"
         "  Write it without the quotes."),
        ("0.5", "1.0", "recipe.yaml:8: a boundary of 1.0 is not a share between 0 and 1.\n"
         "  Write a share of the depth such as 0.5, or the first deep layer such as 15. A layer has no decimal point."),
        ("0.5", "50%", "recipe.yaml:8: `boundary` takes a share of the depth or a layer, found '50%'.\n"
         "  Write a share of the depth such as 0.5, or the first deep layer such as 15."),
        ("0.5", "0", "recipe.yaml:8: a boundary at layer 0 leaves the shallow donor no layer.\n"
         "  Write a share of the depth such as 0.5, or the first deep layer such as 15."),
        ("0.5", ".5.", "recipe.yaml:8: `boundary` takes a share of the depth or a layer, found '.5.'.\n"
         "  Write a share of the depth such as 0.5, or the first deep layer such as 15."),
        ("boundary: 0.5", "boundary:", "recipe.yaml:8: `boundary` has no value.\n  Give it one, or delete the line."),
        ("dtype: keep", "dtype: fp16", "recipe.yaml:10: `dtype` cannot be 'fp16'.\n"
         "  Known here: bfloat16, float16, float32, keep."),
        ("dtype: keep", "dtype: bfloat", "recipe.yaml:10: `dtype` cannot be 'bfloat'.\n  Did you mean 'bfloat16'?"),
        ("dtype: keep", "max_shard_bytes: 5G", "recipe.yaml:10: `output.max_shard_bytes` must be a size in bytes; "
         "got '5G'.\n"
         "  Write a number of bytes, or one with its unit: 500MB, 5GB, 2GiB."),
        ("output:", "seed: true\noutput:", "recipe.yaml:9: `seed` takes a whole number, found true.\n"
         "  Write digits only, without quotes."),
        ("output:", "seed: -1\noutput:", "recipe.yaml:9: `seed` is -1; the least is 0.\n  Write a larger number."),
        ("output:", "name: 3.1\noutput:", "recipe.yaml:9: `name` takes text, found the number 3.1.\n"
         "  Put it in quotes to make it text: '3.1'."),
        ("output:", "name: true\noutput:", "recipe.yaml:9: `name` takes text, found true.\n"
         "  Put it in quotes to make it text: 'true'."),
        ("0.5", "10000", "recipe.yaml:8: a boundary at layer 10000; the limit is layer 9999.\n"
         "  Write a share of the depth such as 0.5, or the first deep layer such as 15."),
        ("donors/domain", "{allow: [pickle]}", "recipe.yaml:3: `domain` has no `source`.\n"
         "  Add `source`: a folder, a GGUF file, a hub id with @revision, or pkg:package/file."),
        ("donors/domain", "{source: x, allow: pickle}", "recipe.yaml:3: `allow` takes a list, found 'pickle'.\n"
         "  Write it as [a, b], or as indented lines that begin with `- `."),
        ("domain: donors", "no: donors",
         "recipe.yaml:3: the key `no` is text to some YAML readers and false to others.\n"
         "  Quote the key: 'no'."),
        ("  domain: donors/domain", "  instruct: donors/domain",
         "recipe.yaml:3: `instruct` is given twice, first at recipe.yaml:2.\n  Keep one of the two."),
        ("  deep", "\tdeep", "recipe.yaml:6: a tab in the indentation; YAML takes only spaces there.\n"
         "  Replace the tab by spaces."),
        ("  deep", "   deep", "recipe.yaml:6: a colon where no key can stand.\n"
         "  Line the key up with its neighbours, or quote text that holds a colon and a space."),
        ("output:\n", "output: float16\n  #", "recipe.yaml:9: `output` takes a section of keys, found 'float16'.\n"
         "  Write `key: value` lines, indented below it. Its keys: dtype, max_shard_bytes."),
    ],
)  # fmt: skip
def test_mistakes_with_the_dial(refuse, old: str, new: str, message: str) -> None:
    assert old in RECIPE
    problems = refuse(RECIPE.replace(old, new, 1))
    assert message in [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0..14", "14..0", "recipe.yaml:7: layers 14..0 run backwards.\n"
         "  Write 0..14, or list the layers one by one for another order: [2, 1, 0]."),
        ("0..14", "[]", "recipe.yaml:7: an empty list of layers.\n"
         "  Name at least one layer, or leave `layers` out to take all."),
        ("0..14", "0-14", "recipe.yaml:7: '0-14' is not a range of layers.\n  Write it as 0..14."),
        ("0..14", "0..14, 20", "recipe.yaml:7: the key `20` is the number 20 to YAML; keys are text.\n"
         "  Quote the key: '20'. If it belongs to a list of layers, put the list in brackets: [0..14, 20]."),
        ("- {donor: a, layers: 0..14}", "- {layers: 0..14}", "recipe.yaml:7: entry 0 of `slices` names no donor.\n"
         "  Add `donor` with a donor's name, a `blend`, or `fresh` with a kind of mixer."),
        ("{donor: b, layers: 15..16}", "{donor: b, layers: 15..17}",
         "recipe.yaml:14: the number of layers differs: 3 in entry 1 of `sources`, 2 in entry 0.\n"
         "  Give every source of the blend equally many."),
        ("base: a", "base: c", "recipe.yaml:10: `base` names 'c', which is not a donor here.\n  Known here: a, b."),
        ("{donor: a, layers: 15..16}", "{donor: b, layers: 0..1}",
         "recipe.yaml:10: `base` is 'a', the donor of none of the blend's sources.\n"
         "  Name the donor of exactly one source."),
        ("{donor: b, layers: 15..16}", "{donor: a, layers: 15..16}",
         "recipe.yaml:10: `base` is 'a', the donor of 2 of the blend's sources.\n"
         "  Name the donor of exactly one source."),
        ("{donor: b, layers: 15..16}", "{donor: c, layers: 15..16}",
         "recipe.yaml:14: `donor` names 'c', which is not a donor here.\n  Known here: a, b."),
        ("    - {donor: a, layers: 0..14}", "    - {donor: a, layers: 0..5999}\n    - {donor: b, layers: 0..5999}",
         "recipe.yaml:6: the slices list 12004 layers in all; 10000 is the limit.\n  List fewer layers."),
        ("          - {donor: b, layers: 15..16}\n", "", "recipe.yaml:12: `sources` lists 1, and needs at least 2.\n"
         "  It takes two donors or more, each with its layers."),
        ("t: 0.5", "t: half", "recipe.yaml:11: `layout.slices.1.blend.parameters.t` must be "
         "a number, true or false; got 'half'.\n"
         "  Write a number without quotes."),
        ("    - blend:", "    - layers: 3\n      blend:",
         "recipe.yaml:8: entry 1 of `slices` has `layers` beside `blend`, where they have no effect.\n"
         "  Give each of the blend's sources its own `layers`."),
        ("    - blend:", "    - donor: a\n      blend:",
         "recipe.yaml:9: entry 1 of `slices` has both `donor` and `blend`.\n"
         "  Make two entries of it, or move the donor into the blend's `sources`."),
        ("  host: a\n", "  host: a\n  deep: a\n  boundary: 3\n",
         "recipe.yaml:8: `slices` gives the layout in full, and other keys give it too: `deep` at recipe.yaml:6, "
         "`boundary` at recipe.yaml:7.\n  Keep one way: delete `slices`, or delete `deep` and `boundary`."),
        (SLICES.partition("  slices:")[2], " []\n", "recipe.yaml:6: `slices` lists nothing, and needs at least 1.\n"
         "  It takes the output layers from shallow to deep, in full."),
    ],
)  # fmt: skip
def test_mistakes_in_slices(refuse, old: str, new: str, message: str) -> None:
    assert old in SLICES
    problems = refuse(SLICES.replace(old, new, 1))
    assert message in [str(problem) for problem in problems]


def test_only_the_source_that_differs_is_named(refuse) -> None:
    text = SLICES + "          - {donor: b, layers: 3}\n"
    assert [str(problem).splitlines()[0] for problem in refuse(text)] == [
        "recipe.yaml:15: the number of layers differs: 1 in entry 2 of `sources`, 2 in entry 0."
    ]


def test_a_file_name_that_can_name_no_run(refuse) -> None:
    (problem,) = refuse(RECIPE, name="a:b.yaml")
    assert str(problem) == (
        "a:b.yaml:1: there is no `name`, and the file's name cannot be used: "
        "the name 'a:b' cannot be a folder's name.\n"
        "  Add `name`: letters, digits, - and _."
    )


TRAIN = f"{RECIPE}train:\n  data: [{{path: a.txt}}]\n  tokens: 2M\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2M", "2 millions", "recipe.yaml:13: `train.tokens` must be a whole number, at least 1; got '2 millions'.\n"
         "  Write a whole number, or one with k, M or B: 500k, 2M, 1.5B."),
        ("2M", "2M\n  freeze: deeep", "recipe.yaml:14: `train.freeze` must be deep, shallow, none, originals "
         "or a list of layers; got 'deeep'.\n"
         "  Did you mean 'deep'?"),
        ("2M", "2M\n  packed: 1", "recipe.yaml:14: `packed` is true or false, found the number 1.\n"
         "  Write true or false, without quotes."),
        ("2M", "2M\n  lr: 0", "recipe.yaml:14: `train.lr` must be a number > 0; got the number 0.\n"
         "  Write a number in this range."),
        ("2M", "2M\n  lr: 3", "recipe.yaml:14: `train.lr` must be at most 0.1: AdamW changes every weight by about "
         "`lr` in a step, and the weights of language models are around 0.02; got the number 3.0.\n"
         "  Write a rate such as 3e-5; continued pre-training takes 1e-6 to 1e-3."),
        ("2M", "2M\n  lr: fast", "recipe.yaml:14: `train.lr` must be a number > 0; got 'fast'.\n"
         "  Write digits, as in 3, 0.1 or 3e-5, without quotes."),
        ("2M", "2M\n  max_minutes: 0", "recipe.yaml:14: `train.max_minutes` must be a number > 0; "
         "got the number 0.\n"
         "  Write a number in this range."),
        ("2M", "2M\n  warmup_ratio: 1.5", "recipe.yaml:14: `train.warmup_ratio` must be a number from 0 to 1; "
         "got the number 1.5.\n  Write a number in this range."),
        ("2M", "2M\n  warmup_ratio: -1", "recipe.yaml:14: `train.warmup_ratio` must be a number from 0 to 1; "
         "got the number -1.\n  Write a number in this range."),
        ("path: a.txt", "path: a.txt, weight: true", "recipe.yaml:12: `train.data.0.weight` must be a number > 0; "
         "got true.\n  Write digits, as in 3, 0.1 or 3e-5, without quotes."),
        ("2M", "2M\n  weight_decay: -1", "recipe.yaml:14: `train.weight_decay` must be a number >= 0; "
         "got the number -1.\n  Write a number in this range."),
        ("2M", "2M\n  seq_len: 1", "recipe.yaml:14: `seq_len` is 1; the least is 2.\n  Write a larger number."),
        ("2M", "2M\n  betas: 0.9", "recipe.yaml:14: `train.betas` must be two numbers, each from 0 up to but "
         "not including 1; got the number 0.9.\n"
         "  Write them as [0.9, 0.95]."),
        ("2M", "2M\n  heldout_ratio: 1", "recipe.yaml:14: `train.heldout_ratio` must be a number from 0 up to "
         "but not including 1; got the number 1.\n  Write a number in this range."),
        ("path: a.txt", "weight: 1", "recipe.yaml:12: entry 0 of `data` has neither `path` nor `hub`.\n"
         "  Give one of the two: where the text comes from."),
        ("path: a.txt", "path: a.txt, split: test",
         "recipe.yaml:12: `split` is for hub datasets, and has no effect on the files of `path`.\n"
         "  Delete the line."),
        ("2M", "2M\n  objective: {distill: {}, align: {}}",
         "recipe.yaml:14: `objective` has both `distill` and `align`.\n"
         "  Give one of the two, or write `objective: next-token`."),
        ("2M", "2M\n  objective: distil", "recipe.yaml:14: `objective` takes a section of keys, found 'distil'.\n"
         "  Write `key: value` lines, indented below it. Its keys: distill, align."),
        ("2M", "2M\n  objective: {distill: {weight: 1.5}}", "recipe.yaml:14: `train.objective.distill.weight` must be "
         "a number above 0 and up to 1; got the number 1.5.\n  Write a number in this range."),
        ("2M", "2M\n  objective: {align: {at: boundry}}", "recipe.yaml:14: `train.objective.align.at` must be "
         "boundary, last or a list of layers; got 'boundry'.\n  Did you mean 'boundary'?"),
        ("  tokens: 2M\n", "", "recipe.yaml:11: `train` has no `tokens`.\n"
         "  Add `tokens`: how many tokens to train on, such as 2M."),
        ("  deep: instruct\n  shallow: domain\n  boundary: 0.5\n", "  slices: [{donor: domain}]\n",
         "recipe.yaml:9: `freeze` is left out, which means deep, and a layout by `slices` has no boundary to choose "
         "those layers by.\n  List the layers: freeze: 15..29."),
        ("2M", "2M\nevaluate:\n  bits_per_byte: [{name: a, path: x}, {name: a, path: y}]",
         "recipe.yaml:15: a second text is called 'a'.\n  Give every text a name of its own."),
        ("train:\n  data: [{path: a.txt}]\n  tokens: 2M", "evaluate:\n  context: 8",
         "recipe.yaml:11: `evaluate` measures what training did, and there is no `train`.\n"
         "  Add `train`, or delete `evaluate`."),
    ],
)  # fmt: skip
def test_mistakes_about_training(refuse, old: str, new: str, message: str) -> None:
    assert old in TRAIN
    problems = refuse(TRAIN.replace(old, new, 1))
    assert message in [str(problem) for problem in problems]

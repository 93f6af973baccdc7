"""What the tests of trainings from the command line share: a working folder, recipes, and a build as a process."""

import os
import subprocess
import sys

from safetensors.torch import load_file

from support.lines import hybridize_json, make_donor, make_donors, write_documents, write_recipe

TRAIN = {
    "data": [{"path": "text.jsonl"}], "tokens": 4000, "seq_len": 64, "lr": 1e-3, "heldout_ratio": 0.2,
    "precision": "float32",  # and not what `auto` finds in the processor at hand; `auto` has a test of its own
}  # fmt: skip
DIAL = {"host": "a", "deep": "a", "shallow": "b", "boundary": 0.5}
SHALLOW = ("model.embed_tokens.", "model.layers.0.", "model.layers.1.")


def make_bench(bench):
    """Two tiny llamas of four layers and a text of 300 documents in the folder `bench`."""
    make_donors(bench)
    write_documents(bench / "text.jsonl", 300)
    return bench


def recipe_of(bench, name="x", layout=DIAL, donors=("a", "b"), train=None, **sections):
    """A recipe that trains the first half of a model of `donors`, with other settings where they are given."""
    donors = {donor: donor for donor in donors}
    return write_recipe(bench / f"{name}.yaml", donors=donors, layout=layout, train=TRAIN | (train or {}), **sections)


def trained_names(bench):
    """The tensors of trained.safetensors, which is all that a finished training leaves of its weights."""
    assert [path.name for path in (bench / "runs/x/training").glob("*.safetensors")] == ["trained.safetensors"]
    return set(load_file(bench / "runs/x/training/trained.safetensors"))


def proofs_of(*arguments):
    """What a command proved, by check."""
    return {proof["check"]: proof["found"] for proof in hybridize_json(*arguments)["proofs"]}


def one_donor(bench, model_type, evaluate=None, **train):
    """A recipe that trains a tiny model of one family alone."""
    make_donor(bench / "m", model_type, seed=3)
    layout = {"host": "m", "deep": "m", "shallow": "m"}
    return recipe_of(bench, layout=layout, donors=("m",), train=train, evaluate=evaluate or {})


def start(bench, *arguments, **options):
    """A build in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "hybridizer", "build", *map(str, arguments)], cwd=bench, **options,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

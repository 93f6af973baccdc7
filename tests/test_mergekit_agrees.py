"""Tensor for tensor what mergekit writes, on cases that mergekit gets right."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from support.lines import hybridize, make_donors, write_recipe


@pytest.fixture(autouse=True)
def bench(bench):
    make_donors(bench)


def merge(config):
    """What mergekit writes for `config`, run as its documentation shows."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    Path("peer").mkdir()
    run_merge(MergeConfiguration.model_validate(config), "peer", MergeOptions(lazy_unpickle=True, quiet=True))
    return load_file("peer/model.safetensors")


def source(donor, first, end, **parameters):
    entry = {"model": str(Path(donor).absolute()), "layer_range": [first, end]}
    return {**entry, "parameters": parameters} if parameters else entry


def ours_source(donor, first, end, **parameters):
    entry = {"donor": donor, "layers": f"{first}..{end - 1}"}
    return {**entry, "parameters": parameters} if parameters else entry


def cases():
    """Each case as mergekit's configuration and as our slices. A function: paths are those of the test's folder."""
    return {
    "stack": (
        {"merge_method": "passthrough", "slices": [{"sources": [source("a", 0, 3)]}, {"sources": [source("b", 1, 4)]}]},
        [ours_source("a", 0, 3), ours_source("b", 1, 4)],
    ),
    "slerp": (
        {
            "merge_method": "slerp",
            "base_model": str(Path("a").absolute()),
            "parameters": {"t": 0.3},
            "slices": [{"sources": [source("a", 0, 4), source("b", 0, 4)]}],
        },
        [{"blend": {"method": "slerp", "base": "a", "parameters": {"t": 0.3}, "sources": [
            ours_source("a", 0, 4), ours_source("b", 0, 4)]}}],
    ),
    "linear": (
        {
            "merge_method": "linear",
            "slices": [{"sources": [source("a", 0, 4, weight=0.7), source("b", 0, 4, weight=0.3)]}],
        },
        [{"blend": {"method": "linear", "sources": [
            ours_source("a", 0, 4, weight=0.7), ours_source("b", 0, 4, weight=0.3)]}}],
    ),
    "ties": (
        {
            "merge_method": "ties",
            "base_model": str(Path("a").absolute()),
            "slices": [{"sources": [source("a", 0, 4), source("b", 0, 4, weight=1.0, density=0.5)]}],
        },
        [{"blend": {"method": "ties", "base": "a", "sources": [
            ours_source("a", 0, 4), ours_source("b", 0, 4, weight=1.0, density=0.5)]}}],
    ),
    }  # fmt: skip


@pytest.mark.parametrize("case", ["stack", "slerp", "linear", "ties"])
@pytest.mark.filterwarnings("ignore")  # of mergekit's own making
def test_every_layer_tensor_is_the_one_that_mergekit_writes(case):
    config, slices = cases()[case]
    theirs = merge(yaml.safe_load(yaml.safe_dump(config)))
    recipe = write_recipe(Path("x.yaml"), donors={"a": "a", "b": "b"}, layout={"host": "a", "slices": slices})
    hybridize("build", recipe, "--no-load")
    ours = load_file("runs/x/model/model.safetensors")
    assert ours.keys() == theirs.keys()
    # Outside the layers mergekit blends too, where here the host decides.
    layers = [name for name in ours if name.startswith("model.layers.")]
    assert len(layers) == 9 * 4 or case == "stack"
    for name in layers:
        assert torch.equal(ours[name], theirs[name]), name

"""Splices inside hybrid families that exist: copies of layers are planned, and new mixers refused or taken clearly."""

import pytest

from hybridizer.core.errors import HybridizerError, PlanError
from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.plan import check
from support.lines import write_recipe
from support.tiny import make_tiny

FAMILIES = ("nemotron_h", "jamba", "bamba", "granitemoehybrid", "qwen3_next", "lfm2", "falcon_h1")


@pytest.fixture
def plan(bench):
    """Plans a splice of two tiny donors of one hybrid family, a below and b above, with `more` slices on top."""

    def make(family, *more, below=({"donor": "a", "layers": "0..1"}, {"donor": "b", "layers": "2..3"})):
        for name in "ab":
            make_tiny(family, bench / name)
        donors = {name: {"source": str(bench / name), "allow": ["no_tokenizer"]} for name in "ab"}
        layout = {"host": "a", "slices": [*below, *more]}
        return check(write_recipe(bench / "x.yaml", donors=donors, layout=layout), (), SilentMonitor(), deep=False).plan

    return make


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_two_donors_are_planned_and_a_swap_is_refused_with_the_reason(plan, family):
    made = plan(family)
    assert len(made.layers) == 4 and {row.method for row in made.layers} == {"copy"}
    swap = {"donor": "a", "layers": 0, "mixer": {"kind": "mamba2"}}
    with pytest.raises(HybridizerError) as caught:
        plan(family, swap)
    assert "no attention of its own that a mamba2 could take the place of" in str(caught.value) or "mamba2" in str(
        caught.value
    )


def test_new_layers_are_taken_where_the_family_has_them_and_refused_elsewhere(plan):
    assert plan("granitemoehybrid", {"fresh": "mamba2"}).layers[4].method == "fresh mamba2"
    with pytest.raises(PlanError, match="holds layers of 'nemotron_h'.* beside mamba2"):
        plan("nemotron_h", {"fresh": "mamba2"})

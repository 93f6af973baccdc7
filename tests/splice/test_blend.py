import math

import pytest
import torch
from mergekit import merge_methods
from mergekit.merge_methods import BasePolicy, ParameterScope

from hybridizer.plan.blends import METHODS, REQUIRED, check_blend
from hybridizer.splice.blend import blend

REGISTERED = {method.spec.name: method.spec for method in merge_methods.registered_methods()}


def test_the_table_names_every_method_of_mergekit_except_the_one_a_plain_slice_is():
    assert set(METHODS) == set(REGISTERED) - {"passthrough"}


@pytest.mark.parametrize("name", METHODS)
def test_the_table_says_of_a_method_what_mergekit_registers(name):
    ours, theirs = METHODS[name], REGISTERED[name]
    assert BasePolicy(ours.base) is theirs.contract.base
    for scope_is_shared, table in ((True, ours.shared), (False, ours.per_source)):
        found = {
            p.name: (REQUIRED if "object" in repr(p.default) else p.default)
            for p in theirs.parameters
            if (p.scope is ParameterScope.SHARED) == scope_is_shared
        }
        assert dict(table) == found


def _example(name):
    spec = METHODS[name]
    count = max(2, spec.num_sources[0])
    base = 0 if spec.base == "required" else None
    shared = {key: 0.3 for key, default in spec.shared.items() if default is REQUIRED}
    per_source = [
        {} if i == base else {key: 0.5 + i for key, default in spec.per_source.items() if default is REQUIRED}
        for i in range(count)
    ]
    tensors = [torch.randn(6, 4, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    return tensors, shared, per_source, base


@pytest.mark.parametrize("name", METHODS)
def test_a_blend_is_what_mergekit_computes_and_repeats_bit_for_bit(name):
    tensors, shared, per_source, base = _example(name)
    assert check_blend(name, shared, per_source, base) == []
    first = blend(name, tensors, shared, per_source, base, "w", seed=3)
    torch.rand(5)  # somebody else draws in between
    assert torch.equal(first, blend(name, tensors, shared, per_source, base, "w", seed=3))
    assert first.shape == tensors[0].shape


def test_linear_is_the_weighted_mean():
    a, b = torch.ones(3), torch.full((3,), 5.0)
    mixed = blend("linear", [a, b], {}, [{"weight": 3.0}, {"weight": 1.0}], None, "w", seed=0)
    assert torch.equal(mixed, torch.full((3,), 2.0))


def test_a_random_method_depends_on_seed_and_tensor_name_and_leaves_the_global_generator_alone():
    tensors, shared, per_source, base = _example("dare_linear")
    per_source = [{}, {"weight": 1.0, "density": 0.5}]
    state = torch.get_rng_state()
    draws = [blend("dare_linear", tensors, shared, per_source, base, n, s) for n, s in (("a", 0), ("b", 0), ("a", 1))]
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("method", "shared", "per_source", "base", "says"),
    [
        ("slrep", {"t": 0.5}, [{}, {}], 0, "Did you mean 'slerp'?"),
        ("slerp", {}, [{}, {}], 0, "'slerp' needs the parameter 't'."),
        ("slerp", {"t": "half"}, [{}, {}], 0, "takes a number as 't', found 'half'"),
        ("slerp", {"t": 2}, [{}, {}], 0, "'slerp' takes a number from 0 to 1 as 't', found 2."),
        ("nearswap", {"t": -1.0}, [{}, {}], 0, "'nearswap' takes a number from 0 on as 't', found -1.0."),
        (
            "ties",
            {},
            [{}, {"weight": 1, "density": 1.5}],
            0,
            "takes a number from 0 to 1 as 'density', found 1.5",
        ),
        ("linear", {}, [{"weight": math.nan}, {"weight": 1}], None, "takes a finite number as 'weight', found nan."),
        ("karcher", {"max_iter": 0}, [{}, {}], None, "takes a number from 1 on as 'max_iter', found 0."),
        ("slerp", {"t": 0.5}, [{}, {}], None, "'slerp' needs a base, none given."),
        ("slerp", {"t": 0.5}, [{}, {}, {}], 0, "blends 2 sources, 3 given"),
        ("linear", {}, [{"weight": 1.0}, {"wieght": 1.0}], None, "source 1 of 'linear' has no parameter 'wieght'."),
        ("linear", {}, [{"weight": 1.0}], 0, "'linear' does not use a base."),
        ("ties", {"normalize": 1}, [{}, {"weight": 1.0}], 0, "takes true or false as 'normalize', found 1."),
        ("ties", {}, [{"weight": 1.0}, {"weight": 1.0}], 0, "source 0 is the base of 'ties'"),
    ],
)
def test_a_blend_that_mergekit_would_misread_is_named(method, shared, per_source, base, says):
    assert any(says in f"{what} {fix}" for what, fix in check_blend(method, shared, per_source, base))


def test_values_at_the_ends_of_a_range_and_beyond_it_where_a_method_takes_them_are_fine():
    assert [check_blend("slerp", {"t": t}, [{}, {}], 0) for t in (0, 1)] == [[], []]
    assert check_blend("nearswap", {"t": 5}, [{}, {}], 0) == []
    assert check_blend("task_arithmetic", {"lambda": 2.0}, [{}, {"weight": -1.0}], 0) == []

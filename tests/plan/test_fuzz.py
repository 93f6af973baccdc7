"""A damaged manifest, plan or resolved recipe of a run: verified or refused, and `inspect` shows it or refuses it."""

import pytest

from hybridizer.core.progress import SilentMonitor
from hybridizer.pipeline.run import read_model_manifest
from hybridizer.pipeline.verify import verify_folder
from hybridizer.report.plan_tables import origins_table
from hybridizer.report.terminal import render
from support.fuzz import damage_bytes, damage_json, try_all
from support.lines import hybridize, make_donor, write_recipe

CASES = 100


@pytest.fixture
def bench(bench):
    for seed, name in enumerate("ab"):
        make_donor(bench / name, seed=seed)
    return bench


@pytest.mark.slow
def test_a_damaged_record_of_a_run_is_verified_or_refused(bench):
    slices = [{"donor": "a", "layers": [0, 1]}, {"donor": "b", "layers": [2, 3]}]
    recipe = write_recipe(bench / "x.yaml", donors={"a": "a", "b": "b"}, layout={"host": "a", "slices": slices})
    hybridize("build", recipe, "--no-load")
    run = bench / "runs/x"
    model = next(path.parent for path in run.glob("*/manifest.json"))
    files = (model / "manifest.json", run / "plan.json", run / "recipe.resolved.yaml")
    whole = {path: path.read_bytes() for path in files}

    def attempt(generator):
        path = generator.choices(files, weights=[6, 3, 1])[0]
        for other, data in whole.items():
            other.write_bytes(data)
        damage = damage_bytes if path.suffix == ".yaml" or generator.random() < 0.2 else damage_json
        path.write_bytes(damage(whole[path], generator))
        render(origins_table(read_model_manifest(model)), 80)
        verify_folder(run, SilentMonitor(), load=False)

    ended = try_all("manifest", attempt, CASES)
    assert ended["success"] > 0 and ended["VerificationError"] > ended.total() / 4, ended

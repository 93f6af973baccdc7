"""The order of the stages. A stage whose inputs have not changed is skipped and says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybridizer.checkpoint.publish import begin_output
from hybridizer.draft import Planned, plan_recipe
from hybridizer.durable import write_file
from hybridizer.errors import DonorError, OutputError, Problem
from hybridizer.monitor import Monitor
from hybridizer.planning.donor import Donor
from hybridizer.planning.manifest import FILE_NAME, Manifest, read_manifest
from hybridizer.planning.plan import Plan
from hybridizer.recipe.load import load_recipe
from hybridizer.recipe.recipe import Recipe
from hybridizer.recipe.to_yaml import to_yaml
from hybridizer.records import write_json
from hybridizer.reference import parse_reference
from hybridizer.stages.donors import Access, check_unchanged, open_donor, scan_donors
from hybridizer.stages.export import export
from hybridizer.stages.splice import splice
from hybridizer.stages.trace import TraceRequest, score_baselines, trace
from hybridizer.stages.verify import Proof, verify
from hybridizer.tracer.traced import Traced


@dataclass(frozen=True)
class Built:
    """A finished run: its folder, plan, manifest, and what was proved of the model."""

    folder: Path
    plan: Plan
    manifest: Manifest
    proofs: tuple[Proof, ...]


def build(
    path: Path, overrides: tuple[str, ...], runs: Path, monitor: Monitor, *, replace: bool, deep: bool, load: bool
) -> Built:
    """The whole line, from a recipe to a verified model in `runs`/<name>/model.

    A model that is there already and was built from the same plan is kept, and verified. One from another plan raises
    OutputError unless `replace`; it stays in place until the new one is complete.
    """
    planned = plan_recipe(path, overrides, monitor)
    recipe, plan, donors = planned.settled.recipe, planned.plan, planned.donors
    folder = runs / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    if deep:
        scan_donors(donors, monitor)
    built = _is_built(folder / "model", plan, replace)
    if built:
        monitor.note(f"splice: unchanged, {folder / 'model'} was built from this plan")
    else:
        write_records(folder, planned)
        with begin_output(folder / "model", replace=replace) as partial:
            written = splice(plan, donors, partial, monitor)
            check_unchanged(donors)
            export(plan, donors, written, partial)
        monitor.note(f"splice: wrote {len(plan.tensors)} tensors to {folder / 'model'}")
    manifest, proofs = verify(folder / "model", monitor, find_donor=donors.get, load=load, rehash=built)
    write_json(folder / FILE_NAME, manifest.to_json())
    return Built(folder, plan, manifest, proofs)


def _is_built(model: Path, plan: Plan, replace: bool) -> bool:
    if not (model / FILE_NAME).is_file():
        return False
    built = read_manifest(model)
    if built.plan_hash == plan.hash:
        return True
    if replace:
        return False
    what = f"a model of another plan is here ({built.plan_hash[:19]}..., this one is {plan.hash[:19]}...)."
    raise OutputError(
        Problem(str(model), what, "Give the recipe another name, or pass --replace to lose the old model.")
    )


def write_records(folder: Path, planned: Planned) -> None:
    """Write what was decided into the run folder: the resolved recipe, donors, traces with pictures, ranking, plan."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "recipe.resolved.yaml", to_yaml(_resolve(planned.settled.recipe, planned.plan)))
    write_json(folder / "donors.json", {"schema": "hybridizer.donors/1", "donors": planned.plan.donors})
    for traced in planned.settled.traces:
        (folder / "traces").mkdir(exist_ok=True)
        write_json(folder / "traces" / f"{traced.donor}.json", traced.record)
        _draw_trace(folder / "traces" / f"{traced.donor}.svg", traced, planned.settled.recipe)
    if planned.plan.evidence.ranking is not None:
        write_json(folder / "ranking.json", planned.plan.evidence.ranking)
    write_json(folder / "plan.json", planned.plan.to_json())


def _draw_trace(path: Path, traced: Traced, recipe: Recipe) -> None:
    from hybridizer.tracer.plot import draw_trace, write_figure

    chosen = recipe.layout.boundary if traced.donor == recipe.layout.deep else None
    write_figure(draw_trace(traced.record, chosen if isinstance(chosen, int) else None), path)


def _resolve(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """The recipe with every default filled in, every choice made and every donor pinned, readable from anywhere."""
    resolved = recipe.resolved()
    resolved.pop("trace", None)  # what it was asked for is settled
    for entry in recipe.donors:
        pin, values = plan.donors[entry.name], resolved["donors"][entry.name]
        reference = parse_reference(entry.source, recipe.folder)
        if reference.path is not None and reference.package is None:
            values["source"] = f"folder:{reference.path}"
        elif reference.repository is not None:
            values["source"] = f"hub:{reference.repository}@{pin.revision}"
        values["fingerprint"] = pin.fingerprint
    return resolved


def trace_donors(
    texts: Sequence[str], request: TraceRequest, allow: tuple[str, ...], monitor: Monitor, *, baselines: bool = False
) -> list[Traced]:
    """Trace donors that a command line names, each called by its reference, with baselines if asked."""
    donors = []
    for text in texts:
        reference = parse_reference(text, Path.cwd(), where=text)
        donor = open_donor(text, reference, Access(fetch=True, fingerprint=True, allow=allow), text, monitor)
        assert isinstance(donor, Donor), "a donor that may be fetched is there afterwards"
        donors.append(donor)
    traces = [trace(donor, request, monitor) for donor in donors]
    if not baselines:
        return traces
    scores = [score_baselines(donor, request, monitor) for donor in donors]
    return [replace(traced, baselines=found) for traced, found in zip(traces, scores, strict=True)]


def find_model(folder: Path) -> Path:
    """The model folder that `folder` is, or that the run in `folder` holds."""
    return folder / "model" if (folder / "model" / FILE_NAME).is_file() else folder


def read_model_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder or a run. Raises VerificationError when there is none."""
    return read_manifest(find_model(folder))


def verify_folder(folder: Path, monitor: Monitor, *, load: bool) -> tuple[Manifest, tuple[Proof, ...]]:
    """Verify a model folder, or the model of a run; an identity splice against its donor, where that is at hand."""
    model = find_model(folder)
    return verify(model, monitor, find_donor=_finder(model, monitor), load=load)


def _finder(model: Path, monitor: Monitor) -> Callable[[str], Donor | None]:
    def find(name: str) -> Donor | None:
        resolved = model.parent / "recipe.resolved.yaml"
        if not resolved.is_file():
            return None
        recipe = load_recipe(resolved)
        try:
            reference = parse_reference(recipe.donor(name).source, recipe.folder)
            access = Access(fetch=False, fingerprint=True, allow=recipe.donor(name).allow)
            donor = open_donor(name, reference, access, f"donor '{name}'", monitor)
            return donor if isinstance(donor, Donor) else None
        except DonorError:
            return None

    return find

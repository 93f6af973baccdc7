"""The folder of a run: its paths, what is written into it, and what is found in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hybridizer.checkpoint.publish import lock
from hybridizer.core.files import write_file
from hybridizer.core.records import write_json
from hybridizer.donors.reference import parse_reference
from hybridizer.pipeline.faults import reporting_os_errors
from hybridizer.pipeline.plan import Planned
from hybridizer.pipeline.teacher import whole_paths
from hybridizer.plan.cost import Cost
from hybridizer.plan.manifest import FILE_NAME, Manifest, read_manifest
from hybridizer.plan.plan import Plan
from hybridizer.plan.stored import FILE_NAME as PLAN_NAME
from hybridizer.plan.stored import write_stored_plan
from hybridizer.recipe.dump import to_yaml
from hybridizer.recipe.layers import first_deep_layer
from hybridizer.recipe.models import Recipe, Trace

if TYPE_CHECKING:  # traces load numpy, which a build without them does not need
    from hybridizer.trace.record import TraceRun

# What hybridizer.core.files writes before it renames: of a record, never of a model folder.
_TEMPORARY: Final = re.compile(r"\..+\.(json|yaml|svg|png)\.[a-z0-9_]{8}\.partial")


@dataclass(frozen=True)
class RunFolder:
    """The paths of the run in `path`. The disk is not touched; paths may not exist yet.

    `model` is the finished model, `spliced` the one that training starts from, `training` its checkpoints, log and
    result, `traces` one record and one picture per traced donor. The others are records, by their subject.
    """

    path: Path

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def spliced(self) -> Path:
        return self.path / "spliced"

    @property
    def training(self) -> Path:
        return self.path / "training"

    @property
    def traces(self) -> Path:
        return self.path / "traces"

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.resolved.yaml"

    @property
    def donors(self) -> Path:
        return self.path / "donors.json"

    @property
    def loss_curve(self) -> Path:
        return self.path / "training.svg"

    @property
    def ranking(self) -> Path:
        return self.path / "ranking.json"

    @property
    def plan(self) -> Path:
        return self.path / PLAN_NAME

    @property
    def cost(self) -> Path:
        return self.path / "cost.json"

    @property
    def manifest(self) -> Path:
        return self.path / FILE_NAME

    @property
    def scores(self) -> Path:
        return self.path / "scores.json"

    @property
    def profile(self) -> Path:
        return self.path / "profile.json"

    @classmethod
    def of_model(cls, model: Path) -> RunFolder:
        """The run that the model folder `model` is part of, if it is part of one."""
        return cls(model.parent)


@contextmanager
def hold(run: RunFolder) -> Iterator[None]:
    """Make the folder of a run, keep other commands out of it, and remove temporary files that a killed one left.

    Raises OutputError when another command is writing into the folder.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    with lock(run.path):
        for folder in (run.path, run.traces):
            for path in folder.glob(".*.partial"):
                if _TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                    path.unlink()
        yield


def write_records(run: RunFolder, planned: Planned, cost: Cost | None = None) -> None:
    """Write what was decided into the run folder: recipe, donors, traces with pictures, ranking, plan and cost.

    Raises OutputError when another command is writing into the folder, or the system refuses.
    """
    with reporting_os_errors(run.path), hold(run):
        write_held_records(run, planned, cost)


def write_held_records(run: RunFolder, planned: Planned, cost: Cost | None = None) -> None:
    """Write the records as `write_records` does, into a folder that the caller holds."""
    recipe, plan = planned.resolved.recipe, planned.plan
    write_file(run.recipe, to_yaml(_resolve(recipe, plan)))
    write_json(run.donors, {"schema": "hybridizer.donors/1", "donors": plan.donors})
    for traced in planned.resolved.traces:
        run.traces.mkdir(exist_ok=True)
        write_json(run.traces / f"{traced.donor}.json", traced.record.to_json())
        _draw_trace(run.traces / f"{traced.donor}.svg", traced, recipe)
    if plan.evidence.ranking is not None:
        write_json(run.ranking, plan.evidence.ranking)
    # Donors that were traced for the plan are compared with a trace after training, with the same settings.
    retraced = replace(recipe, trace=recipe.trace or Trace()) if planned.resolved.traces else recipe
    write_stored_plan(run.plan, plan, _resolve(retraced, plan))
    if cost is not None:
        write_json(run.cost, cost.to_json())


def _draw_trace(path: Path, traced: TraceRun, recipe: Recipe) -> None:
    from hybridizer.report.plots import draw_trace, write_figure
    from hybridizer.trace.boundary import choose_boundary

    boundary = recipe.layout.boundary if traced.donor == recipe.layout.deep else None
    assert not isinstance(boundary, str), "strategies are resolved before anything is written"
    layer = None if boundary is None else first_deep_layer(boundary, traced.record.donor.num_layers)
    licence = None if layer is None else choose_boundary(layer, traced.record).licence
    write_figure(draw_trace(traced.record.to_json(), layer, None if licence is None else licence.verdict), path)


def _resolve(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """The recipe with every default filled in, every choice made and every donor pinned; holds from any folder."""
    resolved = recipe.resolved()
    if recipe.train is None:
        resolved.pop("trace", None)  # its choices are resolved; a model that trains is traced again
    for entry in recipe.donors:
        pin, values = plan.donors[entry.name], resolved["donors"][entry.name]
        reference = parse_reference(entry.source, recipe.folder)
        if reference.path is not None and reference.package is None:
            values["source"] = f"folder:{reference.path}"
        elif reference.repository is not None:
            values["source"] = f"hub:{reference.repository}@{pin.revision}"
        values["fingerprint"] = pin.fingerprint
    probes = resolved.get("trace", {}).get("probes")
    if probes is not None and (recipe.folder / probes).is_file():
        resolved["trace"]["probes"] = str((recipe.folder / probes).absolute())
    gate = resolved.get("evaluate", {}).get("gate")
    if gate is not None:
        resolved["evaluate"]["gate"] = str((recipe.folder / gate).absolute())
    for items in resolved.get("trial", {}).get("evaluate", {}).get("items", []):
        for key in ("path", "examples"):
            if key in items:
                items[key] = str((recipe.folder / items[key]).absolute())
    whole_paths(resolved, recipe)
    texts = [
        *resolved.get("train", {}).get("data", []),
        resolved["layout"].get("calibration", {}),
        *resolved.get("evaluate", {}).get("bits_per_byte", []),
    ]
    for text in texts:
        if "path" in text:
            text["path"] = str((recipe.folder / text["path"]).absolute())
        if isinstance(prompts := text.get("generate", {}).get("prompts"), str):
            text["generate"]["prompts"] = str((recipe.folder / prompts).absolute())
    return resolved


def find_model(folder: Path) -> Path:
    """The model folder that `folder` is, or that the run in `folder` holds."""
    model = RunFolder(folder).model
    return model if (model / FILE_NAME).is_file() else folder


def read_model_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder or a run. Raises VerificationError when there is none."""
    return read_manifest(find_model(folder))

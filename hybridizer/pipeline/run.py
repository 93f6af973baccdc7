"""The folder of a run: what is written into it, and found in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridizer.core.files import write_file
from hybridizer.core.records import write_json
from hybridizer.donors.reference import parse_reference
from hybridizer.pipeline.plan import Planned
from hybridizer.plan.cost import Cost
from hybridizer.plan.manifest import FILE_NAME, Manifest, read_manifest
from hybridizer.plan.plan import Plan
from hybridizer.recipe.dump import to_yaml
from hybridizer.recipe.models import Recipe
from hybridizer.trace.cache import TraceRun

if TYPE_CHECKING:
    pass


def write_records(folder: Path, planned: Planned, cost: Cost | None = None) -> None:
    """Write what was decided into the run folder: recipe, donors, traces with pictures, ranking, plan and cost."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "recipe.resolved.yaml", to_yaml(_resolve(planned.resolved.recipe, planned.plan)))
    write_json(folder / "donors.json", {"schema": "hybridizer.donors/1", "donors": planned.plan.donors})
    for traced in planned.resolved.traces:
        (folder / "traces").mkdir(exist_ok=True)
        write_json(folder / "traces" / f"{traced.donor}.json", traced.record)
        _draw_trace(folder / "traces" / f"{traced.donor}.svg", traced, planned.resolved.recipe)
    if planned.plan.evidence.ranking is not None:
        write_json(folder / "ranking.json", planned.plan.evidence.ranking)
    write_json(folder / "plan.json", planned.plan.to_json())
    if cost is not None:
        write_json(folder / "cost.json", cost.to_json())


def _draw_trace(path: Path, traced: TraceRun, recipe: Recipe) -> None:
    from hybridizer.report.plots import draw_trace, write_figure

    chosen = recipe.layout.boundary if traced.donor == recipe.layout.deep else None
    write_figure(draw_trace(traced.record, chosen if isinstance(chosen, int) else None), path)


def _resolve(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """The recipe with every default filled in, every choice made and every donor pinned, readable from anywhere."""
    resolved = recipe.resolved()
    if recipe.train is None:
        resolved.pop("trace", None)  # what it was asked for is resolved; a trained model is traced again
    for entry in recipe.donors:
        pin, values = plan.donors[entry.name], resolved["donors"][entry.name]
        reference = parse_reference(entry.source, recipe.folder)
        if reference.path is not None and reference.package is None:
            values["source"] = f"folder:{reference.path}"
        elif reference.repository is not None:
            values["source"] = f"hub:{reference.repository}@{pin.revision}"
        values["fingerprint"] = pin.fingerprint
    texts = [*resolved.get("train", {}).get("data", []), *resolved.get("evaluate", {}).get("bits_per_byte", [])]
    for text in texts:
        if "path" in text:
            text["path"] = str((recipe.folder / text["path"]).absolute())
    return resolved


def find_model(folder: Path) -> Path:
    """The model folder that `folder` is, or that the run in `folder` holds."""
    return folder / "model" if (folder / "model" / FILE_NAME).is_file() else folder


def read_model_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder or a run. Raises VerificationError when there is none."""
    return read_manifest(find_model(folder))

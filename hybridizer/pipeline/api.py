"""The Python API: the commands of `hybridize` as functions with typed results.

    from hybridizer import check, plan, build, trace, rank, scan, evaluate, eval_models, trial, verify

A recipe is the path of a YAML file, or a mapping with the same content; relative paths in a mapping count from the
working folder. `overrides` are what `--set` is on the command line: dotted keys and their values. Every error that a
user can correct is a HybridizerError with one Problem (where, what, fix) for each mistake. docs/python.md has examples
of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hybridizer.core.errors import DidYouMean, InputError, Problem
from hybridizer.pipeline.arguments import (
    DonorsLike,
    RecipeLike,
    choose_monitor,
    read_donors,
    read_overrides,
    read_recipe,
    read_settings,
    read_trace,
)
from hybridizer.pipeline.results import (
    BuildResult,
    CheckResult,
    EvalModelsResult,
    EvaluateResult,
    PlanResult,
    RankResult,
    ScanResult,
    TraceResult,
    TrialResult,
    VerifyResult,
)


def check(
    recipe: RecipeLike,
    overrides: Mapping[str, Any] | None = None,
    *,
    deep_check: bool = False,
    progress: bool = False,
) -> CheckResult:
    """Check everything about a recipe that can be known without weights. Nothing is fetched, no torch is imported.

    With `deep_check` donors are fetched and every weight is scanned for NaN and infinity. Raises HybridizerError with
    all problems of the recipe at once, each with its line.

    >>> from hybridizer import check
    >>> check("recipe.yaml").num_layers
    4
    >>> check("recipe.yaml", {"layout.boundary": 9})
    Traceback (most recent call last):
    hybridizer.core.errors.RecipeError: --set layout.boundary=9: ...
    """
    from hybridizer.pipeline.plan import check as check_recipe

    checked = check_recipe(read_recipe(recipe), read_overrides(overrides), choose_monitor(progress), deep=deep_check)
    if checked.plan is None:
        return CheckResult(None, None, checked.warnings, checked.waiting)
    return CheckResult(len(checked.plan.layers), checked.plan.num_parameters, checked.warnings, checked.waiting)


def plan(
    recipe: RecipeLike,
    overrides: Mapping[str, Any] | None = None,
    *,
    runs: str | Path | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    time: bool = False,
    progress: bool = False,
) -> PlanResult:
    """Plan a recipe: where every layer and tensor comes from, what trains, and what that costs.

    `device` is the kind of device that the cost is estimated for. Donors are fetched, and traced where the recipe asks
    for it. With `runs`, the records are also written to `runs`/<name>, as `hybridize plan` does. With `time`, a few
    steps are run on random weights. Raises HybridizerError.

    >>> from hybridizer import plan
    >>> planned = plan("recipe.yaml", {"layout.boundary": 3})
    >>> [row.sources[0].partition("@")[0] for row in planned.layers]
    ['domain', 'domain', 'domain', 'instruct']
    """
    from hybridizer.pipeline.amounts import compute_amounts
    from hybridizer.pipeline.plan import estimate_time, estimate_training_cost, plan_recipe
    from hybridizer.pipeline.run import RunFolder, write_records

    planned = plan_recipe(read_recipe(recipe), read_overrides(overrides), choose_monitor(progress))
    cost = estimate_training_cost(planned, device)
    if runs is not None:
        write_records(RunFolder(Path(runs) / planned.plan.name), planned, cost)
    expected = estimate_time(planned, device) if time else None
    return PlanResult(planned.plan, compute_amounts(planned, cost), cost, expected)


def build(
    recipe: RecipeLike,
    overrides: Mapping[str, Any] | None = None,
    *,
    runs: str | Path | None = None,
    replace: bool = False,
    accept_changes: bool = False,
    deep_check: bool = False,
    load: bool = True,
    progress: bool = False,
) -> BuildResult | None:
    """Run a whole recipe: plan, splice, train, export, verify, evaluate. The model is in `runs`/<name>/model.

    In place of a recipe it takes the path of a stored plan.json, which it builds unchanged: into the run that the file
    lies in, if `runs` is left out. For recipes `runs` is "runs" then.
    What is done already and has not changed is skipped. `replace` lets a model of another plan be replaced;
    `accept_changes` lets a training resume although learning rate, schedule or clipping changed; without `load` the
    checks that need the model in memory are left out, the evaluation among them. Where a launcher started several
    processes, all call this, and all except the main one get None. Raises HybridizerError.

    >>> from hybridizer import build
    >>> built = build("recipe.yaml")
    >>> built.model.as_posix()
    'runs/recipe/model'
    >>> [proof.check for proof in built.proofs][:3]
    ['files', 'tensors', 'config']
    """
    from hybridizer.pipeline.build import build as build_recipe

    built = build_recipe(
        read_recipe(recipe),
        read_overrides(overrides),
        None if runs is None else Path(runs),
        choose_monitor(progress),
        replace=replace,
        deep=deep_check,
        load=load,
        accept_changes=accept_changes,
    )
    if built is None:
        return None
    found, model = built.outcome, built.folder / "model"
    scores, profile, gate = (found.scores, found.profile, found.gate) if found else (None, None, ())
    return BuildResult(
        built.folder, model, built.plan, built.manifest, built.proofs, scores, profile, gate, built.curve
    )


def trace(
    donors: DonorsLike,
    *,
    seed: int = 0,
    allow: Sequence[str] = (),
    baselines: bool = False,
    progress: bool = False,
    **settings: Any,
) -> tuple[TraceResult, ...]:
    """Trace donors layer by layer: where a task is executed, and how stable each layer is.

    A donor is what a recipe may name: a folder, a GGUF file, a hub id, `pkg:package/path`. `settings` are the keys of a
    recipe's `trace` section, with its defaults. Finished traces are kept in the cache. Raises HybridizerError.

    >>> from hybridizer import trace
    >>> (traced,) = trace("donors/instruct", probes="probes.jsonl", mask_ratio=0.5)
    >>> traced.donor, traced.num_layers
    ('donors/instruct', 4)
    """
    from hybridizer.pipeline.donors import trace_donors

    request = read_trace(settings, seed)
    runs = trace_donors(read_donors(donors), request, tuple(allow), choose_monitor(progress), baselines=baselines)
    return tuple(TraceResult(run.donor, run.record.to_json(), run.readings, run.baselines) for run in runs)


def rank(
    donors: DonorsLike,
    boundary: float | int | str = "auto",
    *,
    by: str | None = None,
    host: str | None = None,
    side: str = "deep",
    seed: int = 0,
    allow: Sequence[str] = (),
    progress: bool = False,
    **settings: Any,
) -> RankResult:
    """Rank donors by their deep layers, or their shallow ones, measured on the other side of `host` (the first donor).

    `boundary` is where each donor's deep side begins: a strategy, a share of the depth, or a layer; `by` is the
    measure: transplant, transplant-competence, stability-competence or stability. The rest is as for `trace`. Raises
    HybridizerError.

    >>> from hybridizer import rank
    >>> ranking = rank(["donors/instruct", "donors/domain"], boundary=0.5, probes="probes.jsonl")
    >>> sorted(ranking.donors)
    ['donors/domain', 'donors/instruct']
    """
    from hybridizer.pipeline.donors import rank_donors

    request, monitor = read_trace(settings, seed), choose_monitor(progress)
    _, ranking = rank_donors(
        read_donors(donors), request, tuple(allow), monitor, boundary=boundary, by=by, host=host, side=side
    )
    return RankResult(tuple(entry.donor for entry in ranking.ranking), ranking.to_json())


def scan(
    donors: DonorsLike,
    *,
    text: str | Path | None = None,
    field: str = "text",
    probes: str | Path = "antonyms-en",
    out: str | Path | None = None,
    allow: Sequence[str] = (),
    progress: bool = False,
    **settings: Any,
) -> ScanResult:
    """Try changes of the layers of the first donor in memory: cuts and repeats, with more donors seams and swaps.

    `text` is a file or a glob whose documents are scored, with their text in `field`; the Python reference if left out.
    `settings` are the fields of hybridizer.scan.request.ScanRequest. With `out`, an existing folder, the best are
    written there as recipes. Scores are kept in the cache. Raises HybridizerError.

    >>> from hybridizer import scan
    >>> found = scan("donors/instruct", changes=("cut",), documents=8, prompts=0)
    >>> found.record["num_tried"], [row["kind"] for row in found.record["candidates"]][:2]
    (9, ['cut', 'cut'])
    """
    from hybridizer.pipeline.scan_layers import scan_donors
    from hybridizer.recipe.models import DataEntry
    from hybridizer.scan.request import ScanRequest
    from hybridizer.scan.select import BETTER

    known = ScanRequest.__dataclass_fields__
    if unknown := [key for key in settings if key not in known]:
        raise TypeError(f"unknown scan setting '{unknown[0]}'. {DidYouMean(unknown[0], known)}")
    record = scan_donors(
        read_donors(donors),
        ScanRequest(**settings),
        choose_monitor(progress),
        probes=str(probes),
        text=None if text is None else DataEntry(path=str(text), field=field),
        allow=tuple(allow),
        out=None if out is None else Path(out),
    )
    better = tuple(winner.row.name for winner in record.winners if winner.verdict == BETTER)
    return ScanResult(better, record.to_json())


def evaluate(
    recipe: RecipeLike,
    overrides: Mapping[str, Any] | None = None,
    *,
    runs: str | Path = "runs",
    progress: bool = False,
) -> EvaluateResult:
    """Evaluate the model that `build` made of a recipe against the one it was trained from.

    `build` does this itself; call it again after the recipe's `evaluate` section changed. Writes scores.json and
    profile.json into the run's folder. Raises InputError where the recipe trains nothing or is not built yet, and
    HybridizerError otherwise.

    >>> from hybridizer import build, evaluate
    >>> _ = build("train.yaml")
    >>> scores = evaluate("train.yaml", {"evaluate.max_tokens": 200}).scores
    >>> [entry["name"] for entry in scores["sets"]]
    ['text.jsonl']
    """
    from hybridizer.pipeline.evaluate import evaluate_run
    from hybridizer.pipeline.faults import reporting_os_errors
    from hybridizer.pipeline.plan import plan_recipe
    from hybridizer.pipeline.run import RunFolder, hold
    from hybridizer.plan.manifest import FILE_NAME, read_manifest

    planned = plan_recipe(read_recipe(recipe), read_overrides(overrides), choose_monitor(progress))
    run = RunFolder(Path(runs) / planned.plan.name)
    if planned.plan.train is None:
        what = "the recipe has no `train` section, and an evaluation compares before and after training."
        raise InputError(Problem(planned.plan.name, what, "Add the section, or verify the model instead."))
    built = (run.model / FILE_NAME).is_file() and read_manifest(run.model).plan_hash == planned.plan.hash
    if not built:
        raise InputError(Problem(str(run.path), "this folder holds no model of this plan.", "Build the recipe first."))
    with reporting_os_errors(run.path), hold(run):
        found = evaluate_run(planned, run, choose_monitor(progress))
    return EvaluateResult(found.scores, found.profile)


def eval_models(
    models: DonorsLike,
    *,
    set_file: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    allow: Sequence[str] = (),
    progress: bool = False,
    **settings: Any,
) -> EvalModelsResult:
    """Evaluate any models on the same texts and tasks, and compare every two of them.

    `settings` are the keys of an evaluation file, see docs/evaluation.md: `bits_per_byte`, `items`, `recall`, `chats`,
    `tasks` and the others; `set_file` is such a file, whose keys they replace. The results of every item go into the
    folder `out`. What was measured before is taken from the cache. Raises HybridizerError; a broken limit is no error
    but an `exit_code`.

    >>> from hybridizer import eval_models
    >>> text = {"name": "text", "path": "text.jsonl"}
    >>> found = eval_models(["donors/instruct", "donors/domain"], bits_per_byte=[text], max_bytes=2000)
    >>> [(pair["what"], pair["metric"]) for pair in found.record["pairs"]]
    [('text', 'bits_per_byte')]
    """
    from hybridizer.evaluate.gate import exit_code
    from hybridizer.evaluate.request import make_request, read_request
    from hybridizer.pipeline.eval_models import eval_models as evaluate_all

    values = {**(read_request(Path(set_file)) if set_file is not None else {}), **read_settings(settings)}
    names = read_donors(models)
    request = make_request(values, "eval_models")
    folder = None if out is None else Path(out)
    found = evaluate_all(names, request, choose_monitor(progress), allow=tuple(allow), seed=seed, out=folder)
    return EvalModelsResult(names, found.to_json(), exit_code(found.gate))


def trial(
    recipe: RecipeLike,
    overrides: Mapping[str, Any] | None = None,
    *,
    runs: str | Path = "runs",
    arm: str | None = None,
    gather: bool = False,
    progress: bool = False,
) -> TrialResult:
    """Run the arms of a recipe's `trial` section and compare them; docs/trial.md says how.

    With `arm` only that one is run, for example on another machine; with `gather` nothing is trained, and what was run
    before is collected. What is finished is not done again. Raises HybridizerError.

    >>> from hybridizer import trial
    >>> arms = {"deep": {"train.freeze": "deep"}, "full": {"train.freeze": "none"}}
    >>> found = trial("train.yaml", {"trial.arms": arms, "trial.seeds": [0, 1], "train.heldout_ratio": 0.4})
    >>> [(pair["a"], pair["b"], pair["what"]) for pair in found.record["pairs"]]
    [('deep', 'full', 'text.jsonl')]
    """
    from hybridizer.pipeline.trial import run_trial

    settings = read_overrides(overrides)
    done = run_trial(read_recipe(recipe), settings, Path(runs), choose_monitor(progress), arm=arm, gather=gather)
    record, times = (None if found is None else found.to_json() for found in (done.record, done.times))
    return TrialResult(done.folder, record, times)


def verify(model: str | Path, *, load: bool = True, progress: bool = False) -> VerifyResult:
    """Verify that a model folder, or the model of a run, agrees with its manifest, loads, and computes.

    Without `load` the checks that need the model in memory are left out, and no torch is imported. Raises
    VerificationError with what failed.

    >>> from hybridizer import build, verify
    >>> _ = build("recipe.yaml")
    >>> verify("runs/recipe", load=False).manifest.host
    'instruct'
    """
    from hybridizer.pipeline.verify import verify_folder

    manifest, proofs = verify_folder(Path(model), choose_monitor(progress), load=load)
    return VerifyResult(manifest, proofs)

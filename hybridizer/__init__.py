"""Build hybrid language models from pretrained checkpoints: trace, rank, splice, freeze, train, prove.

The commands of `hybridize` are functions here: `from hybridizer import check, plan, build, trace, rank, scan,
evaluate, eval_models, trial, verify`, with typed results (hybridizer/pipeline/api.py). Importing this package imports
nothing heavy.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hybridizer.core.errors import HybridizerError, Problem
    from hybridizer.pipeline.api import (
        build,
        check,
        eval_models,
        evaluate,
        plan,
        rank,
        scan,
        trace,
        trial,
        verify,
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

__all__ = [
    "BuildResult",
    "CheckResult",
    "EvalModelsResult",
    "EvaluateResult",
    "HybridizerError",
    "PlanResult",
    "Problem",
    "RankResult",
    "ScanResult",
    "TraceResult",
    "TrialResult",
    "VerifyResult",
    "__version__",
    "build",
    "check",
    "eval_models",
    "evaluate",
    "plan",
    "rank",
    "scan",
    "trace",
    "trial",
    "verify",
]


def _verb(name: str, *, has_subpackage: bool = False) -> property:
    """The function `name` of hybridizer.pipeline.api, imported on first use.

    hybridizer.plan, hybridizer.trace, hybridizer.scan and hybridizer.evaluate are subpackages too, and the import
    system binds a subpackage under its name. A property wins over that: the name is the function, in whatever order
    things are imported. The function shares the subpackage's namespace, so that `hybridizer.plan.make` and `import
    hybridizer.plan.make as m` still find the submodule.
    """

    def get(package: ModuleType) -> Any:
        function = getattr(import_module("hybridizer.pipeline.api"), name)
        if has_subpackage:
            function.__dict__ = import_module(f"hybridizer.{name}").__dict__
        return function

    def bind_subpackage(package: ModuleType, value: ModuleType) -> None:
        # The import system binds what sys.modules holds already; there is nothing left to do.
        if value is not sys.modules.get(f"hybridizer.{name}"):
            raise AttributeError(f"hybridizer.{name} cannot be replaced")

    return property(get, bind_subpackage if has_subpackage else None)


class _Package(ModuleType):
    """The class of this module: a property is stronger than what the import system binds, a function is not."""

    build = _verb("build")
    check = _verb("check")
    eval_models = _verb("eval_models")
    evaluate = _verb("evaluate", has_subpackage=True)
    plan = _verb("plan", has_subpackage=True)
    rank = _verb("rank")
    scan = _verb("scan", has_subpackage=True)
    trace = _verb("trace", has_subpackage=True)
    trial = _verb("trial")
    verify = _verb("verify")

    def __getattr__(self, name: str) -> Any:
        if name in ("HybridizerError", "Problem"):
            return getattr(import_module("hybridizer.core.errors"), name)
        if name in __all__:
            return getattr(import_module("hybridizer.pipeline.api"), name)
        raise AttributeError(f"module 'hybridizer' has no attribute '{name}'")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package

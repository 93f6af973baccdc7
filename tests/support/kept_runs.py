"""Small trainings that know a teacher by its largest tokens, in this process or as one of several."""

import sys
from dataclasses import replace
from pathlib import Path

from hybridizer.core.progress import SilentMonitor
from hybridizer.recipe.objective import Distill, Objective
from hybridizer.train import teacher_cache
from hybridizer.train.freeze import plan_freeze
from hybridizer.train.job import RunContext, TrainJob
from hybridizer.train.loop import train
from hybridizer.train.runtime import Runtime
from hybridizer.train.teacher import Teacher
from hybridizer.train.teacher_pass import fill, open_cache
from support.sections import train_section
from support.train_models import plain_model
from support.train_runs import FIGURES, SETTINGS, data_in


def a_job(folder, distill, data=None, dropout=0.1, **changes):
    """A training of a plain model with its deep side frozen, towards a teacher that is not there."""
    model, parts = plain_model(dropout=dropout)
    settings = replace(SETTINGS, objective=Objective(distill=distill), **{"micro_batch_size": 2, **changes})
    plan = plan_freeze(model, parts, train_section(freeze="deep"), boundary=2)
    return TrainJob(model, parts, plan, data or data_in(folder / "data"), settings, "sha256:plan")


def a_teacher(seed=1):
    """Another plain model."""
    return Teacher(*plain_model(seed=seed), f"sha256:{seed}")


def cached(job, folder, load=a_teacher, runtime=None):
    """What is kept for `job` of a teacher, which is loaded where files are missing in `folder`."""
    runtime = runtime or Runtime(cpu=True)
    cache = open_cache(job, "sha256:1", runtime.device, folder)
    fill(cache, job, load, runtime, SilentMonitor())
    return cache


def train_cached(job, folder, runtime=None, monitor=None):
    """Train `job` with what is kept beside `folder`; the job and the result."""
    runtime = runtime or Runtime(cpu=True)
    job = replace(job, kept=cached(job, folder.parent / "cache", runtime=runtime))
    return job, train(job, RunContext(folder, runtime, monitor or SilentMonitor(), FIGURES))


if __name__ == "__main__":
    folder, precision = Path(sys.argv[1]), sys.argv[2]
    teacher_cache.FILE_BYTES = 1  # a step in each
    runtime = Runtime(cpu=True)
    with runtime.main_first():
        data = data_in(folder.parent / "data")
    train_cached(a_job(folder, Distill(top_k=8), data, 0.0, precision=precision), folder, runtime)

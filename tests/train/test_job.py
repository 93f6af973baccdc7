from dataclasses import fields, replace
from types import SimpleNamespace

import pytest

from hybridizer.plan.flops import TokenFlops
from hybridizer.recipe.models import DataEntry, Lora, Stage
from hybridizer.recipe.objective import Distill, Objective
from hybridizer.train.job import DeviceFigures, TrainJob
from hybridizer.train.teacher import Teacher
from support.sections import train_section

# Another value for every setting that is not a number or a switch.
OTHERS = {
    "lr_scale": (("deep", 0.1),), "stages": (Stage(tokens=1),),
    "data": (DataEntry(path="other.jsonl"),), "freeze": "none", "embedding": "train", "final_norm": "train",
    "head": "train", "lora": Lora(), "optimizer": "adamw8bit", "betas": (0.8, 0.9), "schedule": "wsd",
    "precision": "bfloat16", "compile": True, "divergence": "off", "max_steps": 1, "max_minutes": 1.0,
    "trackers": ("wandb",), "objective": Objective(distill=Distill()), "frozen_dtype": "int8",
}  # fmt: skip


def facts_of(settings, **changes):
    plan = SimpleNamespace(trained={"a": "layer 0"}, frozen={"b": "layer 1"})
    data = SimpleNamespace(facts={"tokens": 3000}, num_steps=9)
    teacher = Teacher(None, None, "sha256:teacher")
    return TrainJob(None, None, plan, data, settings, "sha256:plan", teacher=teacher, **changes).facts(num_ranks=1)


def test_every_setting_is_a_fact_of_the_run_except_those_recorded_beside_it_and_those_that_may_change():
    section = train_section()
    other = {f.name: OTHERS.get(f.name) or changed(getattr(section, f.name)) for f in fields(section)}
    without = {
        name for name, value in other.items() if facts_of(replace(section, **{name: value})) == facts_of(section)
    }
    beside = {"data", "tokens", "freeze", "embedding", "final_norm", "head", "lora"}
    beside |= {"seq_len", "packed", "global_batch_size", "heldout_ratio", "stages"}
    assert without == beside | {"max_steps", "max_minutes", "checkpoint_minutes", "trackers", "divergence"}
    assert facts_of(section, seed=1) != facts_of(section) != facts_of(section, loss_chunk_bytes=1)


def changed(value):
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value / 2


def test_checkpoints_of_earlier_versions_agree_with_the_same_settings():
    assert facts_of(train_section(lr=1e-3))["train"] == {
        "optimizer": {
            "name": "adamw", "lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "max_grad_norm": 1.0,
        },
        "schedule": {"kind": "cosine", "warmup_ratio": 0.1, "min_lr_ratio": 0.1, "decay_ratio": 0.2},
        "precision": "auto", "micro_batch_size": 0, "gradient_checkpointing": False, "compile": False,
        "loss_chunk_bytes": 67108864, "seed": 0,
    }  # fmt: skip


def test_compiled_by_choice_and_by_the_device_are_one_fact():
    def fact(value, device):
        settings = train_section(compile=value)
        plan = SimpleNamespace(trained={}, frozen={})
        data = SimpleNamespace(facts={}, num_steps=9)
        return TrainJob(None, None, plan, data, settings, "").facts(1, device)["train"]["compile"]

    assert (fact("auto", "cpu"), fact(False, "cuda"), fact(True, "cpu")) == (False, False, True)


@pytest.mark.parametrize(("max_steps", "last"), [(None, 9), (4, 4), (20, 9)])
def test_the_last_step_is_that_of_the_data_or_an_earlier_one(max_steps, last):
    job = TrainJob(None, None, None, SimpleNamespace(num_steps=9), train_section(max_steps=max_steps), "")
    assert job.last_step == last


def test_throughput_is_a_share_of_the_measured_peak_and_of_the_data_sheet_over_all_devices():
    figures = DeviceFigures(TokenFlops(1, 1, 1), peak_flops=400e12, datasheet_flops=1000e12)
    assert figures.shares(400e12, num_devices=2) == {"share_of_peak": 0.5, "share_of_datasheet_peak": 0.2}


def test_unknown_peaks_have_no_share():
    assert DeviceFigures(TokenFlops(1, 1, 1)).shares(400e12, num_devices=2) == {"share_of_peak": 0.0}

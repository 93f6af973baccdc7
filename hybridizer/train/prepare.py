"""A model prepared for training and restored afterwards: every temporary change to it, in the only order that works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from hybridizer.core.errors import InputError, Problem
from hybridizer.models.document_attention import document_attention
from hybridizer.models.matmul import UpcastMatmul, matmul_dtype
from hybridizer.models.memory import trimmed_heap
from hybridizer.models.objective import CausalLMLoss, LossBySource, Student, TrainableParts
from hybridizer.models.parts import MODEL_FAULTS
from hybridizer.models.wrapping import compiled, recomputing
from hybridizer.train.freeze import FreezePlan
from hybridizer.train.frozen import kept_low
from hybridizer.train.fused import fused
from hybridizer.train.isolation import FEW_TOKENS, Documents, documents_leak, isolate_documents
from hybridizer.train.job import TrainJob
from hybridizer.train.packed_attention import choose_packed_attention, packed_attention
from hybridizer.train.precision import choose_dtype, working_precision
from hybridizer.train.teacher import largest_loss, taught_loss


@dataclass(frozen=True)
class Prepared:
    """What a prepared model computes with: the loss as a module, and the dtype of its layers, and of a teacher's.

    `documents` are those of the current batch where rows are packed; modules run over each of them separately.
    """

    objective: LossBySource
    dtype: torch.dtype
    documents: Documents | None


@contextmanager
def prepare(job: TrainJob, device: torch.device) -> Iterator[Prepared]:
    """Inside the block, the model of `job`, which is on `device`, computes as its settings say.

    Afterwards its modules are what they were, and so are the bytes of every frozen tensor that is not sharded. Trained
    tensors keep the dtype that computed: their values are the caller's. Raises InputError for a precision that the
    model does not run in, for a head that the loss cannot use, and for packed rows whose documents cannot be isolated.
    """
    settings = job.settings
    dtype, compiles = choose_dtype(settings.precision, device), job.compiles(device.type)
    with ExitStack() as stack:
        enter = stack.enter_context
        # First, and undone last: what follows runs modules on samples, in the dtype that they will compute in.
        models = _models(job, device)
        for each in models:
            enter(_precision(each, dtype))
        # Before anything else runs the model: what is tested below is then what trains.
        for each in models:
            enter(_fusing(each.model, compiles))
        # Before the model is tested for leaks. It acts below the modules, and runs what torch's own function ran.
        enter(_documents(compiles, dtype, device))
        # After fusing, which compares results as rounded by the dtype. It acts below the modules.
        enter(_upcasting(compiles, dtype, device))
        # Changes nothing. It inspects the head in the dtype that computes, and isolation tests the model through it.
        objective, *teachers = _losses(job)
        documents: list[Documents | None] = []
        for each, loss in zip(models, (objective, *teachers), strict=True):
            # Before compilation: its trials would each take up one of the few compiled graphs. On weights as they are:
            # it fills those of zeros with numbers.
            found = enter(_isolation(job, each.parts, loss))
            # After isolation, which tests single modules: those take no other mask than one of all pairs.
            enter(_attention(job, each, loss, found, device))
            # After isolation, and before compilation, which reads the classes of modules.
            if each.model is job.model:
                enter(_low_bits(job, found, device))
            # Before checkpointing, which would hide the layers' code from the compiler.
            enter(_compilation(each.parts, compiles))
            documents.append(found)
        # So that the backward pass runs everything above once more.
        enter(_checkpointing(job))
        # Around the layers as they run in the forward pass: changes nothing that is computed.
        enter(_trimming(job, compiles, device))
        assert isinstance(objective, LossBySource), "the first is the one that trains"
        yield Prepared(objective, dtype, documents[0])


class _Model(NamedTuple):
    model: nn.Module
    parts: TrainableParts
    freeze_plan: FreezePlan


def _models(job: TrainJob, device: torch.device) -> list[_Model]:
    """The model that trains, and its teacher, if it has one."""
    found = [_Model(job.model, job.parts, job.freeze_plan)]
    if job.teacher is not None:
        found.append(_Model(job.teacher.model.to(device).eval(), job.teacher.parts, job.teacher.freeze_plan))
    return found


def _losses(job: TrainJob) -> tuple[CausalLMLoss, ...]:
    """What is minimised, and the teacher as a module, if there is one."""
    student = Student(job.model, job.parts, len(job.data.drawn), job.loss_chunk_bytes)
    objective = job.settings.objective
    if objective is None:
        return (LossBySource(student),)
    if job.kept is not None:
        return (largest_loss(objective, student),)
    assert job.teacher is not None, "an objective has a teacher"
    return taught_loss(objective, job.teacher, student)


@contextmanager
def _precision(each: _Model, dtype: torch.dtype) -> Iterator[None]:
    working = working_precision(each.model, each.freeze_plan, dtype, _vocabulary(each.parts))
    try:
        yield
    finally:
        working.restore_()


def _fusing(model: nn.Module, compiles: bool) -> AbstractContextManager[Any]:
    return nullcontext() if compiles else fused(model)  # it would break compiled graphs at every module


def _documents(compiles: bool, dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    emulated = matmul_dtype(dtype, device) != dtype
    if device.type != "cpu" or compiles or emulated:  # it would break compiled graphs at every attention
        return nullcontext()
    return document_attention(dtype)


def _upcasting(compiles: bool, dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    if compiles or matmul_dtype(dtype, device) == dtype:  # it would break them at every operation
        return nullcontext()
    return UpcastMatmul()


def _isolation(
    job: TrainJob, parts: TrainableParts, objective: CausalLMLoss
) -> AbstractContextManager[Documents | None]:
    packing = job.data.settings
    return _isolated(objective, parts, packing.seq_len) if packing.packed else nullcontext()


def _attention(
    job: TrainJob, each: _Model, objective: CausalLMLoss, documents: Documents | None, device: torch.device
) -> AbstractContextManager[Any]:
    if documents is None or documents.num_modules:  # modules that run over documents separately take masks apart
        return nullcontext()
    row_tokens = job.data.settings.seq_len
    attention, tokens = choose_packed_attention(each.model, device, row_tokens), max(row_tokens, FEW_TOKENS)
    return packed_attention(objective, attention, _vocabulary(each.parts), tokens)


def _low_bits(job: TrainJob, documents: Documents | None, device: torch.device) -> AbstractContextManager[Any]:
    kind = job.settings.frozen_dtype
    if kind == "keep":
        return nullcontext()
    if documents is not None:
        documents.announce(torch.arange(FEW_TOKENS)[None], device)
    return kept_low(job.model, job.parts, job.freeze_plan, kind, _vocabulary(job.parts))


def _compilation(parts: TrainableParts, compiles: bool) -> AbstractContextManager[None]:
    return compiled(parts.layers) if compiles else nullcontext()


def _trimming(job: TrainJob, compiles: bool, device: torch.device) -> AbstractContextManager[None]:
    trims = device.type == "cpu" and not compiles  # a hook would break compiled graphs
    return trimmed_heap(_running(job)) if trims else nullcontext()


def _running(job: TrainJob) -> Sequence[nn.Module]:
    """The layers that a step runs: alignment alone ends behind its last state."""
    align = job.settings.objective.align if job.settings.objective is not None else None
    if align is None or align.weight < 1 or job.teacher is None:
        return job.parts.layers
    return job.parts.layers[: max(ours for ours, _ in job.teacher.pairs) + 1]


def _checkpointing(job: TrainJob) -> AbstractContextManager[None]:
    layers = job.parts.layers
    if job.settings.gradient_checkpointing is not True:
        layers = [layers[number] for number in job.recomputed_layers]
    return recomputing(layers) if layers else nullcontext()


@contextmanager
def _isolated(objective: CausalLMLoss, parts: TrainableParts, row_tokens: int) -> Iterator[Documents]:
    """Inside the block, documents of a packed row stay apart, tested on whole rows; yields those of the current batch.

    Raises InputError where the leak remains with every module found run separately.
    """
    vocabulary, tokens = _vocabulary(parts), max(row_tokens, FEW_TOKENS)
    for tried in (FEW_TOKENS, tokens):
        with isolate_documents(objective.model, parts.layers, vocabulary, tried) as documents:
            fault = _packing_fault(objective, vocabulary, tokens)
            if fault is None:
                yield documents
                return
    what = f"its layers let a document of a packed row reach the next one, and {fault}."
    raise InputError(
        Problem("train.packed", what, "Set `packed: false`: one document per row, rows of similar length.")
    )


def _packing_fault(objective: CausalLMLoss, vocabulary: int, tokens: int) -> str | None:
    try:
        leaks = documents_leak(objective, vocabulary, tokens)
    except MODEL_FAULTS as error:
        return f"running each separately fails: {type(error).__name__}: {str(error)[:200]}"
    return "no module was found that could run over each separately instead" if leaks else None


def _vocabulary(parts: TrainableParts) -> int:
    return len(next(parts.embedding.parameters()))

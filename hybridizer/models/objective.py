"""The next-token loss of a causal language model, taken from the input of its head so that no full logits exist.

The model runs its own code. A hook at the head takes the hidden states and passes an empty slice on; the chunked loss
does the rest. Families whose logits are more than `head(hidden)` (scaled, soft-capped) use their own code there as
well. They are recognised by comparing logits, not by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor, nn

from hybridizer.core.errors import InputError, Problem
from hybridizer.models.loss import (
    CHUNK_BYTES,
    IGNORED,
    Criterion,
    Head,
    NextToken,
    chunked_loss,
    count_logits,
    token_losses,
)
from hybridizer.models.parts import MODEL_FAULTS, ModelParts, first_floating
from hybridizer.models.wrapping import Forward, replaced_forward


@runtime_checkable
class TrainableParts(ModelParts, Protocol):
    """Parts whose layers may return tuples: `tuple_sizes[i]` is 0 where layer i returns a bare tensor."""

    @property
    def tuple_sizes(self) -> tuple[int, ...]: ...


class CausalLMLoss(nn.Module):
    """Sum of -ln p over the targets of a batch, in nats and float32, as a module that can be wrapped and sharded."""

    def __init__(
        self, model: nn.Module, parts: TrainableParts, chunk_bytes: int = CHUNK_BYTES, bare_head: bool | None = None
    ) -> None:
        """Raises InputError when the model has no head module, or its logits do not come from one.

        `bare_head` is what the objective of a model with the same tail found; None to find it, which runs the tail.
        """
        super().__init__()
        if parts.head is None or not list(parts.head.parameters()):
            what = "the output head is not a module with weights of its own, so its input cannot be read."
            raise InputError(Problem(type(model).__name__, what, "Take a model with an output head module."))
        self.model, self._parts, self._chunk_bytes = model, parts, chunk_bytes
        # accelerate and transformers read from this attribute which modules FSDP wraps as one unit.
        self._no_split_modules = sorted({type(layer).__name__ for layer in parts.layers})
        self.bare_head = self._is_bare_head(parts.head) if bare_head is None else bare_head

    def forward(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        position_ids: Int[Tensor, "rows tokens"],
        targets: Int64[Tensor, "rows tokens"],
        places: Int64[Tensor, "predicted"] | None = None,
    ) -> Float32[Tensor, ""]:
        """The loss sum of one batch; targets are IGNORED where nothing is predicted.

        With `places`, what `predicted_places` found on the host, the head runs on those tokens alone.
        """
        return self._terms(input_ids, position_ids, targets, places)[0]

    def _terms(
        self, input_ids: Tensor, position_ids: Tensor, targets: Tensor, places: Tensor | None
    ) -> tuple[Float32[Tensor, ""], Float32[Tensor, "terms tokens"]]:
        """The loss sum of one batch, and the terms of each token that counts; sources are judged by the first."""
        return self._chunked(chosen(self.hidden(input_ids, position_ids), places), NextToken(chosen(targets, places)))

    def _chunked(self, hidden: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor]:
        """`criterion` of the logits of `hidden` (tokens, width): its sum, and its terms (terms, tokens)."""
        assert self._parts.head is not None
        parameters = list(self._parts.head.parameters())
        return chunked_loss(hidden, self.head, parameters, criterion, self._chunk_bytes)

    @torch.no_grad()
    def token_losses(
        self, input_ids: Int64[Tensor, "rows tokens"], position_ids: Int[Tensor, "rows tokens"] | None = None
    ) -> Float32[Tensor, "rows tokens-1"]:
        """-ln p of every token but the first of each row, float32 (rows, tokens - 1), from (rows, tokens) ids.

        A row is one document or a part of one, without padding. Positions are those of `hidden`.
        """
        hidden = self.hidden(input_ids, position_ids)[:, :-1].flatten(0, 1)
        losses = token_losses(hidden, self.head, input_ids[:, 1:].flatten(), self._chunk_bytes)
        return losses.view(len(input_ids), -1)

    def hidden(
        self, input_ids: Int[Tensor, "rows tokens"], position_ids: Int[Tensor, "rows tokens"] | None = None, **more: Any
    ) -> Float[Tensor, "rows tokens width"]:
        """The input of the head; without `position_ids` the model numbers the positions itself.

        `more` goes to the model as it is, such as the `past_key_values` of the tokens before `input_ids`.
        """
        given = {} if position_ids is None else {"position_ids": position_ids}
        return self._run(input_ids, **{"use_cache": False, **given, **more})[0]

    @torch.no_grad()
    def cache(self, input_ids: Int[Tensor, "rows tokens"]) -> Any:
        """The model's cache after `input_ids`, as its `past_key_values`; None for a model that gives none."""
        return getattr(self._run(input_ids, use_cache=True)[1], "past_key_values", None)

    def _run(self, input_ids: Int[Tensor, "rows tokens"], **given: Any) -> tuple[Tensor, Any]:
        """The input of the head, and the model's output, whose logits are empty."""
        assert self._parts.head is not None
        taken: list[Tensor] = []

        def take(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            taken.append(args[0])
            return (args[0][:, :0],)

        hook = self._parts.head.register_forward_pre_hook(take)
        try:
            output = self.model(input_ids=input_ids, **given)
        finally:
            hook.remove()
        return taken[-1], output

    @torch.no_grad()
    def logits(self, hidden: Float[Tensor, "tokens width"]) -> Float32[Tensor, "tokens vocabulary"]:
        """The model's logits in float32 where `hidden` is the input of its head."""
        return self.head(hidden).float()

    def count_logits(self) -> int:
        """How many logits the model gives for a token."""
        assert self._parts.head is not None
        weight = next(self._parts.head.parameters())
        return count_logits(self.head, weight.new_zeros(1, weight.shape[-1]))

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The decoder layers, shallow first."""
        return tuple(self._parts.layers)

    @property
    def head(self) -> Head:
        """From inputs of the head (tokens, width) to the model's logits."""
        head = self._parts.head if self.bare_head else self._tail
        assert head is not None
        return head

    def _tail(self, hidden: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens vocabulary"]:
        """The logits that the model's own code computes when `hidden` is the input of its head."""
        assert self._parts.head is not None
        hook = self._parts.head.register_forward_pre_hook(lambda _module, _args: (hidden[None],))
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        try:
            with _layers_skipped(self._parts):
                logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        return logits[0]

    @torch.no_grad()
    def _is_bare_head(self, head: nn.Module) -> bool:
        """Whether the logits equal the output of the head bit for bit. Raises InputError if the head is not reached."""
        weight = next(head.parameters())
        width = weight.shape[-1]
        probe = torch.linspace(-3, 3, 2 * width, device=weight.device).view(2, width).to(weight.dtype)
        try:
            logits = self._tail(probe)
        except MODEL_FAULTS as error:
            what = f"its logits cannot be taken from its head alone: {type(error).__name__}: {str(error)[:200]}"
            raise InputError(
                Problem(type(self.model).__name__, what, "This family cannot be trained or scored here.")
            ) from error
        return torch.equal(logits, head(probe))


class Student(NamedTuple):
    """A model and how its loss is computed: by `num_sources` sources of text, `chunk_bytes` of logits at a time."""

    model: nn.Module
    parts: TrainableParts
    num_sources: int
    chunk_bytes: int = CHUNK_BYTES


class LossBySource(CausalLMLoss):
    """The same sum, and beside it the sums of each source of text, which carry no gradients.

    Objectives of more than one term have `term_names`: a sum of each follows those of the sources.
    """

    term_names: tuple[str, ...] = ()

    def __init__(self, student: Student) -> None:
        """Raises InputError as `CausalLMLoss` does."""
        super().__init__(student.model, student.parts, student.chunk_bytes)
        self._num_sources = student.num_sources

    def forward(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "rows tokens"],
        position_ids: Int[Tensor, "rows tokens"],
        targets: Int64[Tensor, "rows tokens"],
        sources: Int64[Tensor, "rows tokens"],
        places: Int64[Tensor, "predicted"] | None = None,
    ) -> tuple[Float32[Tensor, ""], Float32[Tensor, "sources"]]:
        """The loss sum of one batch, and that of each source; `sources` numbers the source of each token from 0."""
        total, terms = self._terms(input_ids, position_ids, targets, places)
        return total, self._sums(terms, chosen(sources, places))

    def _sums(self, terms: Float32[Tensor, "terms tokens"], sources: Int64[Tensor, "tokens"]) -> Float32[Tensor, "_"]:
        """The sum of the first of `terms` over each source, and of each term, where there are several."""
        of_sources = terms.new_zeros(self._num_sources).index_add_(0, sources, terms[0])
        return torch.cat([of_sources, terms.sum(1)]) if self.term_names else of_sources


def chosen(values: Tensor, places: Tensor | None) -> Tensor:
    """The (rows, tokens, ...) `values` as (tokens, ...), at the `places` that `predicted_places` found."""
    return values.flatten(0, 1) if places is None else values.flatten(0, 1)[places]


def predicted_places(targets: Int64[Tensor, "rows tokens"]) -> Int64[Tensor, "predicted"] | None:
    """Where in the flat batch something is predicted, or None if that is nearly everywhere.

    For targets on the host: on a device, the host would have to wait for the count. Where more than a tenth is padding,
    a copy of the other tokens costs less than the head.
    """
    counted = (targets != IGNORED).flatten()
    return counted.nonzero()[:, 0] if 10 * int(counted.sum()) < 9 * counted.numel() else None


@contextmanager
def _layers_skipped(parts: TrainableParts) -> Iterator[None]:
    """Inside the block, every layer returns its input without running."""

    def skip(size: int) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = first_floating((*args, *kwargs.values()))
            return (hidden, *[None] * (size - 1)) if size else hidden

        return forward

    with replaced_forward({layer: skip(size) for layer, size in zip(parts.layers, parts.tuple_sizes, strict=True)}):
        yield

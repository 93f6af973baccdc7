"""Compositions of donor layers scored in memory on the same items: bits of documents, and answers to probes.

What two compositions have in common at their start is run once: the hidden states of a kept path (say, the host's own
layers) are stored, and a composition that begins with the same layers starts from them. Batches are the same for every
composition, so a score with reuse equals the score of a full run bit for bit.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hybridizer.core.bootstrap import Array
from hybridizer.core.errors import InputError, Problem
from hybridizer.data.tokenizer import TokenizerEncoder
from hybridizer.evaluate.bits import add_bits_, refuse_broken, refuse_unknown_tokens, text_batches
from hybridizer.evaluate.texts import GENERAL, LEAST_TOKENS, Document, TextSet
from hybridizer.models.batching import make_batches
from hybridizer.models.compose import Composer, LayerList, Loaded
from hybridizer.models.load import max_tokens
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import Parts, arbitrary_ids, first_floating
from hybridizer.models.residual import last_rows, read_outputs, replaced
from hybridizer.recipe.models import Trace
from hybridizer.trace.lens import Lens
from hybridizer.trace.perturbation import can_reuse_prefix
from hybridizer.trace.probes import ProbeSet
from hybridizer.trace.prompts import Prompt, check_fit, prepare_prompts

MAX_STATE_BYTES = 1 << 30
LayerPath = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Items:
    """What compositions are scored on: documents in the host's tokens, and prompts with one-token answers.

    `context` is the window for documents in tokens, `batch_size` the most prompts in a batch.
    """

    texts: tuple[TextSet, ...]
    prompts: tuple[Prompt, ...]
    context: int = 512
    batch_size: int = 32

    @property
    def num_bytes(self) -> Array:
        """Bytes of UTF-8 of each document, float64 (documents,): what bits per byte divide by."""
        return np.array([document.num_bytes for text in self.texts for document in text.documents], np.float64)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents and prompts."""
        return sum(text.num_tokens for text in self.texts) + sum(len(prompt.ids) for prompt in self.prompts)


@dataclass(frozen=True)
class Score:
    """One composition on all items, in their order.

    `bits` of each document, float64 (documents,); `hit` of each prompt, 1 where the most probable next token is its
    answer, else 0, and `target_prob`, the probability of the answer, 0..1, both float64 (prompts,), NaN for a prompt
    without a one-token answer.
    """

    bits: Array
    hit: Array
    target_prob: Array


def join(scores: Sequence[Score]) -> Score:
    """The scores of one composition on several sets of items as that on all of them, one set after the other."""
    columns = ([getattr(score, name) for score in scores] for name in ("bits", "hit", "target_prob"))
    return Score(*(np.concatenate(column) for column in columns))


def prepare_items(
    tokenizer: Any,
    probes: ProbeSet | None,
    texts: Sequence[TextSet],
    *,
    context: int = 512,
    batch_size: int = 32,
) -> Items:
    """The items in the tokens of the host's `tokenizer`. Raises InputError for prompts without tokens, or no item."""
    prompts = () if probes is None else tuple(prepare_prompts(probes, tokenizer, Trace(), None, None))
    if not prompts and not any(text.documents for text in texts):
        raise InputError(Problem("items", "neither probes nor text is given.", "Give probes, text, or both."))
    return Items(tuple(texts), prompts, context, batch_size)


def encode_text(name: str, tokenizer: Any, documents: Sequence[str]) -> TextSet:
    """`documents` as a text to score, in their order, special tokens included.

    Raises InputError for a document of fewer than two tokens: the first token of a document is not predicted.
    """
    encoder = TokenizerEncoder(tokenizer)
    rows = encoder.encode(list(documents))
    short = [number for number, row in enumerate(rows, start=1) if len(row) < LEAST_TOKENS]
    if short:
        raise InputError(Problem(name, f"documents {short[:10]} have fewer than two tokens.", "Leave them out."))
    found = [Document(np.array(row, np.int64), len(text.encode())) for text, row in zip(documents, rows, strict=True)]
    total = sum(len(row) for row in rows)
    return TextSet(name, GENERAL, tuple(found), len(documents), total, prefix=encoder.prefix)


def builtin_documents(max_bytes: int = 24_000, passage_bytes: int = 500) -> list[str]:
    """Passages of English prose from the reference topics that come with every Python (PSF licence), spread over them.

    Each is the beginning of a topic, cut at the end of a line, of `passage_bytes` or somewhat less; as many as stay
    within `max_bytes`. For text of another language or domain, name texts in the recipe's `evaluate` section.
    """
    from pydoc_data.topics import topics

    bodies = [re.sub(r"\n{2,}", "\n", topics[name].split("\n\n", 1)[-1]).strip() for name in sorted(topics)]
    passages = [body[:passage_bytes].rpartition("\n")[0] for body in bodies if len(body) > passage_bytes]
    passages = [passage for passage in passages if len(passage) > passage_bytes // 2]
    count = min(len(passages), max(1, max_bytes // passage_bytes))
    return [passages[i * len(passages) // count] for i in range(count)]


@dataclass
class _Kept:
    """Hidden states of one path: by number of layers run (`cuts`), then by batch, as the layer returned them."""

    path: LayerPath
    cuts: tuple[int, ...]
    states: dict[int, list[Any]] = field(default_factory=dict)
    num_bytes: int = 0


class Scorer:
    """Scores compositions of loaded donors on `items`; at most `max_state_bytes` of hidden states are kept.

    `num_passes` counts the runs over all items so far, full or from a kept state, `num_layer_tokens` the layers times
    tokens that ran.
    """

    def __init__(
        self,
        models: Mapping[str, Loaded],
        host: str,
        items: Items,
        *,
        max_state_bytes: int = MAX_STATE_BYTES,
        advance: Callable[[int], None] = lambda passes: None,
        reuse: bool | None = None,
    ) -> None:
        """`advance` gets 1 for every pass. Raises InputError for tokens that the host has no embedding for.

        `reuse` is what `can_reuse_prefix` says of the host, None to ask it.
        """
        model, parts = models[host]
        self.composer, self.items = Composer(models, host), items
        self.num_passes = self.num_layer_tokens = 0
        self._max_state_bytes, self._advance = max_state_bytes, advance
        longest = max_tokens(model.config)
        context = min(items.context, longest or items.context)
        for text in items.texts:
            refuse_unknown_tokens(parts, text)
        if items.prompts:
            probes = ProbeSet("probes", "", ())
            check_fit(items.prompts, probes, len(next(parts.embedding.parameters())), longest)
        self._texts = [list(text_batches(text, context)) for text in items.texts]
        self._prompts = make_batches([len(prompt.ids) for prompt in items.prompts], items.batch_size)
        self._kept: list[_Kept] = []
        self._scores: dict[LayerPath, Score] = {}
        self._reuse = can_reuse_prefix(model, parts) if reuse is None else reuse
        self._bare_head: bool | None = None  # of the host's tail, which all compositions have

    @property
    def host_path(self) -> LayerPath:
        """The host's own layers."""
        return self.composer.identity()

    @property
    def num_state_bytes(self) -> int:
        """Bytes of the hidden states that are kept now."""
        return sum(kept.num_bytes for kept in self._kept)

    def score(self, layers: LayerList) -> Score:
        """The score of the composition `layers`; of one scored before, from memory.

        Raises PlanError when it cannot be composed, RunError where a loss is not finite.
        """
        path = tuple(layers)
        if path not in self._scores:
            kept, cut = self._longest(path)
            self._scores[path] = self._run(path, None if kept is None else kept.states[cut], cut, None)
        return self._scores[path]

    def keep(self, layers: LayerList, cuts: Sequence[int] | None = None) -> Score:
        """The score of `layers`, whose hidden states after `cuts` layers are kept for compositions that begin alike.

        As many cuts as fit into `max_state_bytes`: all layers by default, every second, every third and so on where
        those do not fit; of `cuts` that are given the last ones are left out. Nothing is kept for families whose layers
        pass on more than the residual stream.
        """
        path = tuple(layers)
        chosen = self._choose_cuts(path, cuts)
        if not chosen:
            return self.score(path)
        kept = _Kept(path, chosen)
        self._scores[path] = self._run(path, None, 0, kept)
        self._kept.append(kept)
        return self._scores[path]

    def forget(self) -> None:
        """Free all hidden states that are kept."""
        self._kept.clear()

    def _longest(self, path: LayerPath) -> tuple[_Kept | None, int]:
        best: tuple[_Kept | None, int] = (None, 0)
        for kept in self._kept:
            shared = next((i for i, (a, b) in enumerate(zip(kept.path, path, strict=False)) if a != b), len(kept.path))
            # A composition always runs a layer of its own: its last one is where the tail begins.
            cut = max((cut for cut in kept.cuts if cut <= min(shared, len(path) - 1)), default=0)
            if cut > best[1]:
                best = (kept, cut)
        return best

    def _choose_cuts(self, path: LayerPath, cuts: Sequence[int] | None) -> tuple[int, ...]:
        if not self._reuse:
            return ()
        room = self._max_state_bytes - self.num_state_bytes
        fits = max(0, room // self._bytes_per_cut())
        if cuts is not None:
            return tuple(sorted(set(cuts) & set(range(1, len(path)))))[:fits]
        every = range(1, len(path))
        step = next((step for step in every if len(every[step - 1 :: step]) <= fits), None)
        return () if step is None else tuple(every[step - 1 :: step])

    def _bytes_per_cut(self) -> int:
        """Bytes of the hidden states after one layer, of all items."""
        model, parts = self.composer.models[self.composer.host]
        state = read_outputs(model, parts, arbitrary_ids(model, 1, 1), first_floating)[-1]
        tokens = sum(batch.ids.size for text in self._texts for batch in text)
        return int(state.nbytes) * (tokens + sum(len(prompt.ids) for prompt in self.items.prompts))

    @torch.no_grad()
    def _run(self, path: LayerPath, states: list[Any] | None, cut: int, kept: _Kept | None) -> Score:
        """One pass over all items, from `states` after `cut` layers if given; hidden states go into `kept`."""
        given = iter(states) if states is not None else None
        watch = _Watch(kept)
        with self.composer.borrowed(path) as (model, parts):
            bits = [self._score_text(model, parts, number, given, cut, watch) for number in range(len(self._texts))]
            hit, prob = self._score_prompts(model, parts, given, cut, watch)
        self.num_passes += 1
        self._advance(1)
        return Score(np.concatenate([np.zeros(0), *bits]), hit, prob)

    def _score_text(
        self, model: nn.Module, parts: Parts, number: int, given: Iterator[Any] | None, cut: int, watch: _Watch
    ) -> Array:
        text = self.items.texts[number]
        bits = np.zeros(len(text.documents))
        objective = CausalLMLoss(model, parts, bare_head=self._bare_head)
        self._bare_head = objective.bare_head
        for batch in self._texts[number]:
            with self._starting(parts, given, cut), watch.watching(parts):
                losses = objective.token_losses(torch.from_numpy(batch.ids).to(parts.device))
            add_bits_(bits, batch, losses)
            self.num_layer_tokens += (parts.num_layers - cut) * batch.ids.size
        refuse_broken(bits, text)
        return bits

    def _score_prompts(
        self, model: nn.Module, parts: Parts, given: Iterator[Any] | None, cut: int, watch: _Watch
    ) -> tuple[Array, Array]:
        prompts = self.items.prompts
        hit, prob = np.full(len(prompts), np.nan), np.full(len(prompts), np.nan)
        lens = Lens(model, parts)
        for batch in self._prompts:
            ids = torch.tensor([prompts[index].ids for index in batch], device=parts.device)
            with self._starting(parts, given, cut), watch.watching(parts):
                final = read_outputs(model, parts, ids, lambda output: output)[-1]
            log_p = lens.final_log2_probs([last_rows(parts, final)])[:, 0]
            best = log_p.argmax(dim=-1)
            for row, index in enumerate(batch):
                answer = prompts[index].answer
                if answer is not None:
                    hit[index], prob[index] = float(best[row] == answer), float(log_p[row, answer].exp2())
            self.num_layer_tokens += (parts.num_layers - cut) * ids.numel()
        return hit, prob

    @contextlib.contextmanager
    def _starting(self, parts: Parts, given: Iterator[Any] | None, cut: int) -> Iterator[None]:
        """Inside the block, the first `cut` layers give the next of the states `given` instead of running."""
        if given is None:
            yield
            return
        with replaced(parts, [_copy(next(given))] * cut):
            yield


class _Watch:
    """Records the outputs of the layers before each cut of a path that is to be kept, one batch after the other."""

    def __init__(self, kept: _Kept | None) -> None:
        self._kept = kept

    @contextlib.contextmanager
    def watching(self, parts: Parts) -> Iterator[None]:
        """Inside the block, record the first call of each layer: later ones belong to a tail of another shape."""
        if self._kept is None:
            yield
            return
        hooks = [parts.layers[cut - 1].register_forward_hook(self._recorder(cut)) for cut in self._kept.cuts]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _recorder(self, cut: int) -> Any:
        kept = self._kept
        assert kept is not None
        rows = kept.states.setdefault(cut, [])
        wanted = len(rows)

        def record(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if len(rows) == wanted:
                rows.append(_copy(output))
                hidden = first_floating(output)
                assert hidden is not None
                kept.num_bytes += hidden.nbytes

        return record


def _copy(output: Any) -> Any:
    """A layer's output whose hidden states are a copy: layers may add to their input in place."""
    if isinstance(output, Tensor):
        return output.clone()
    return tuple(item.clone() if isinstance(item, Tensor) else item for item in output)

"""Runs one batch of prompts through the model, clean and perturbed, and reads every layer through the lens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from hybridizer.models.residual import read_last_rows
from hybridizer.recipe.models import Trace
from hybridizer.trace.divergence import js_divergence, kl_divergence, kl_from_uniform
from hybridizer.trace.lens import Lens
from hybridizer.trace.perturbation import can_reuse_prefix, disturbed_finals
from hybridizer.trace.prompts import Prompt
from hybridizer.trace.readings import Reading

# About this many bytes of logits are held at once, for clean and for perturbed runs each, for any number of prompts.
LENS_BYTES = 32 * 2**20

# The L+1 states at the last position, the embedding output first.
Hidden = list[Float[Tensor, "batch *streams hidden"]]


@dataclass(frozen=True)
class Meter:
    """Measures batches of prompts of one length as `settings` specify; `seed` is that of the noise.

    With `tuned`, the context perturbation is read through that lens too, in the same runs.
    """

    lens: Lens
    settings: Trace
    seed: int = 0
    tuned: Lens | None = None

    def measure(self, indices: Sequence[int], prompts: Sequence[Prompt]) -> list[Reading]:
        """The readings of the prompts with these indices among the probes."""
        clean, masked, again, disturbed = self._run(indices, prompts)
        parts = self.lens.parts
        num_lenses = 1 if self.tuned is None else 2
        step = max(1, LENS_BYTES // (4 * parts.vocab_size * (parts.num_layers + 1) * num_lenses))
        readings: list[Reading] = []
        for start in range(0, len(prompts), step):
            cut = slice(start, start + step)
            perturbed = (None if states is None else _rows(states, cut) for states in (masked, again, disturbed))
            readings += self._read(indices[cut], prompts[cut], _rows(clean, cut), *perturbed)
        return readings

    @cached_property
    def _reuse_prefix(self) -> bool:
        return can_reuse_prefix(self.lens.model, self.lens.parts)

    def _run(
        self, indices: Sequence[int], prompts: Sequence[Prompt]
    ) -> tuple[Hidden, Hidden | None, Hidden | None, Hidden | None]:
        """The clean run, both masked runs, and the last states of the runs disturbed at each state, where requested."""
        model, parts = self.lens.model, self.lens.parts
        ids = torch.tensor([prompt.ids for prompt in prompts], device=parts.device)
        masked = again = None
        if self.settings.perturb != "layer":
            masked_ids = torch.tensor([prompt.masked for prompt in prompts], device=parts.device)
            masked = read_last_rows(model, parts, masked_ids)
        if self.settings.perturb != "layer" and prompts[0].masked_again is not None:
            masked_ids = torch.tensor([prompt.masked_again for prompt in prompts], device=parts.device)
            again = read_last_rows(model, parts, masked_ids)
        if self.settings.perturb == "context":
            return read_last_rows(model, parts, ids), masked, again, None
        seeds = [self.seed * 1_000_003 + index for index in indices]
        clean, disturbed = disturbed_finals(model, parts, ids, self.settings.noise_ratio, seeds, self._reuse_prefix)
        return clean, masked, again, disturbed

    def _read(
        self,
        indices: Sequence[int],
        prompts: Sequence[Prompt],
        clean: Hidden,
        masked: Hidden | None,
        again: Hidden | None,
        disturbed: Hidden | None,
    ) -> list[Reading]:
        log_p = self.lens.layer_log2_probs(clean)  # (n, L+1, vocab), the only large tensor that stays
        final = log_p[:, -1]
        targets = final.argmax(dim=-1)
        target_prob = log_p.gather(2, targets[:, None, None].expand(-1, log_p.shape[1], 1)).squeeze(2).exp2()
        kl = kl_divergence(final, log_p)
        kl_uniform = kl_from_uniform(final)
        js, js_second = (_context_js(self.lens, log_p, states) for states in (masked, again))
        layer_js = None if disturbed is None else js_divergence(final[:, None], self.lens.final_log2_probs(disturbed))
        tuned_js = tuned_js_second = tuned_kl = None
        if self.tuned is not None:
            tuned_log_p = self.tuned.layer_log2_probs(clean)
            tuned_js, tuned_js_second = (_context_js(self.tuned, tuned_log_p, states) for states in (masked, again))
            tuned_kl = kl_divergence(tuned_log_p[:, -1], tuned_log_p)
        return [
            Reading(
                index=index,
                target=int(targets[row]),
                target_prob=_floats(target_prob[row]),
                js=_row(js, row),
                layer_js=_row(layer_js, row),
                kl=_floats(kl[row]),
                kl_uniform=float(kl_uniform[row]),
                hit=None if prompt.answer is None else bool(targets[row] == prompt.answer),
                answer_prob=None if prompt.answer is None else float(final[row, prompt.answer].exp2()),
                js_second=_row(js_second, row),
                tuned_js=_row(tuned_js, row),
                tuned_js_second=_row(tuned_js_second, row),
                tuned_kl=_row(tuned_kl, row),
            )
            for row, (index, prompt) in enumerate(zip(indices, prompts, strict=True))
        ]


def _context_js(lens: Lens, clean: Float[Tensor, "n states vocab"], states: Hidden | None) -> Tensor | None:
    """The divergence (n, L+1) of a masked run, as its states, from the clean log2-probabilities through `lens`."""
    return None if states is None else js_divergence(clean, lens.layer_log2_probs(states))


def _row(values: Tensor | None, row: int) -> tuple[float, ...] | None:
    return None if values is None else _floats(values[row])


def _rows(states: Hidden, cut: slice) -> list[Tensor]:
    return [hidden[cut] for hidden in states]


def _floats(values: Float[Tensor, "states"]) -> tuple[float, ...]:
    return tuple(values.tolist())

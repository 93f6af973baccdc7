"""Whether the evidence permits freezing the layers from a boundary on: licensed, refused, or not decided.

S(b) > 0 licenses freezing the deep side (arXiv 2605.11416), but the sign of S(b) follows the mask token, the lens and
the template of the prompts. So it is evaluated under at least two mask tokens, all prompts together and each template
with MIN_PROMPTS or more, and each lens of the trace; and only by layers that the lens can read. Ours: freezing is
licensed where S(b) is above 0 under every setting, each with its whole 95% interval, refused where it is below 0 under
every one, and not decided otherwise; a lens that reads no layer of a side is left out. Requiring all settings is an
intersection-union test, which needs no correction for their number; a boundary that was searched for does, see
SettingScores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybridizer.core.bootstrap import (
    Array,
    Clusters,
    Interval,
    bias_left,
    count_clusters,
    critical_value,
    debiased_abs,
    number_clusters,
    weight_blocks,
)
from hybridizer.recipe.layers import format_layers
from hybridizer.trace.blind import LEAST_EXPLAINED
from hybridizer.trace.readings import Readings
from hybridizer.trace.record import RecordedSettings, SettingScores
from hybridizer.trace.sensitivity import boundary_contrasts, change_errors

LICENSED, REFUSED, UNDECIDED = "licensed", "refused", "not decided"
ABOVE, BELOW, LEVEL, UNREAD = "above 0", "below 0", "not distinguished from 0", "not read"
_SIGNS = {1: ABOVE, -1: BELOW, 0: LEVEL}

MIN_PROMPTS = 40
MAX_NAMED = 3  # settings named in a sentence
GIVEN, INNER, ALL = "given", "inner", "all"  # how a boundary was found, see SettingScores


@dataclass(frozen=True)
class JudgedSetting:
    """S(b) under one setting, and its interval, corrected for the search that gave b; None without one.

    `template` is None for all prompts together. `says` is ABOVE, BELOW or LEVEL, the sign of the whole interval, or
    UNREAD: a side has no layer that the lens reads, and `s` is None.
    """

    mask: str
    lens: str
    template: str | None
    n: int
    num_clusters: int
    s: float | None
    s_ci: Interval | None
    says: str


@dataclass(frozen=True)
class Licence:
    """The verdict on freezing from a boundary on, in one word and one sentence, and what it rests on."""

    verdict: str
    sentence: str
    settings: tuple[JudgedSetting, ...] = ()


def find_blind(kl: Array, kl_uniform: Array) -> NDArray[np.bool_]:
    """Which of the L layers (L,) the lens cannot read, from KL at the L+1 states (n, L+1): explained under 10%."""
    total = kl_uniform.sum()
    if total <= 0:
        return np.ones(kl.shape[1] - 1, np.bool_)
    return np.asarray(1 - kl.sum(axis=0)[1:] / total < LEAST_EXPLAINED)


def score_settings(
    readings: Readings, settings: RecordedSettings, templates: Sequence[str | None]
) -> tuple[SettingScores, ...]:
    """S(b) under every setting that the readings have, all prompts first; empty without the context perturbation.

    `templates` are those of the prompts, in order.
    """
    found = list(_measured(readings, settings))
    if not found or readings.num_layers < 2:
        return ()
    scores: list[SettingScores] = []
    clusters = readings.clusters
    for template, chosen in _prompt_sets(templates):
        names = None if clusters is None else number_clusters(clusters[chosen].tolist())
        scores += _score(found, template, chosen, names, settings)
    return tuple(scores)


@dataclass(frozen=True)
class _Measured:
    """JS (n, L+1) of all prompts with one mask token through one lens, and the layers that this lens cannot read."""

    mask: str
    lens: str
    js: Array
    blind: NDArray[np.bool_]


def _measured(readings: Readings, settings: RecordedSettings) -> Iterator[_Measured]:
    columns = [(settings.lens, readings.kl, readings.js, readings.js_second)]
    if readings.tuned_kl is not None:
        columns.append(("tuned", readings.tuned_kl, readings.tuned_js, readings.tuned_js_second))
    for lens, kl, *measured in columns:
        blind = find_blind(kl, readings.kl_uniform)
        for mask, js in zip((settings.mask_with, settings.second_mask_with), measured, strict=True):
            if js is not None:
                assert mask is not None
                yield _Measured(mask, lens, js, blind)


def _prompt_sets(templates: Sequence[str | None]) -> Iterator[tuple[str | None, NDArray[np.int64]]]:
    """All prompts, then those of each template with enough of them, unless that is all prompts again."""
    yield None, np.arange(len(templates))
    rows: dict[str, list[int]] = {}
    for index, template in enumerate(templates):
        if template is not None:
            rows.setdefault(template, []).append(index)
    for template, chosen in rows.items():
        if MIN_PROMPTS <= len(chosen) < len(templates):
            yield template, np.array(chosen)


def _score(
    found: Sequence[_Measured],
    template: str | None,
    chosen: NDArray[np.int64],
    clusters: Clusters | None,
    settings: RecordedSettings,
) -> Iterator[SettingScores]:
    """The settings of one set of prompts; one draw of resamples serves them all."""
    values = [one.js if len(chosen) == len(one.js) else one.js[chosen] for one in found]
    errors = [change_errors(js, clusters) for js in values]
    contrasts = [boundary_contrasts(~one.blind) for one in found]
    drawn: list[list[Array]] = [[] for _ in found]
    for weights in weight_blocks(len(chosen), settings.num_resamples, settings.seed, clusters=clusters):
        for rows, js, error, contrast in zip(drawn, values, errors, contrasts, strict=True):
            rows.append(debiased_abs(np.diff(weights @ js, axis=1), error) @ contrast.T)
    num_clusters = count_clusters(len(chosen), clusters)
    for one, js, error, contrast, rows in zip(found, values, errors, contrasts, drawn, strict=True):
        means = np.diff(js.mean(axis=0))
        s = debiased_abs(means, error) @ contrast.T
        bias = bias_left(means, error) @ np.abs(contrast).T
        yield _setting(one, template, len(chosen), num_clusters, (s, bias), np.concatenate(rows))


def _setting(
    one: _Measured, template: str | None, n: int, num_clusters: int, scores: tuple[Array, Array], samples: Array
) -> SettingScores:
    num_layers, (s, bias) = len(one.blind), scores
    known = ~np.isnan(s)
    inner = inner_boundaries(num_layers)
    families = [[b - 1 for b in among if known[b - 1]] for among in (inner, range(1, num_layers))]
    criticals = [critical_value(samples[:, family], num_clusters) for family in families]
    errors = samples.std(axis=0) if num_clusters > 1 else np.full(len(s), np.nan)
    return SettingScores(
        mask=one.mask,
        lens=one.lens,
        template=template,
        n=n,
        num_clusters=num_clusters,
        blind_layers=tuple(np.flatnonzero(one.blind).tolist()),
        s=tuple(None if np.isnan(value) else float(value) for value in s),
        s_error=tuple(None if np.isnan(value) else float(value) for value in errors),
        s_bias=tuple(None if np.isnan(value) else float(value) for value in bias),
        critical=critical_value(samples[:, :0], num_clusters),
        critical_inner=criticals[0],
        critical_all=criticals[1],
    )


def inner_boundaries(num_layers: int) -> range:
    """The boundaries with a quarter of the layers or more on each side."""
    quarter = -(-num_layers // 4)
    return range(quarter, num_layers - quarter + 1)


def judge(settings: Sequence[SettingScores], b: int, found_by: str = GIVEN) -> Licence:
    """The verdict of a record's `licence_settings` on freezing layers b..L-1.

    `found_by` is GIVEN, INNER or ALL: the search that gave this b.
    """
    start = f"Freezing from layer {b} on is"
    reason = _why_unusable(settings, b)
    judged = tuple(_judge_setting(row, b, found_by) for row in settings)
    if reason is not None:
        return Licence(UNDECIDED, f"{start} not decided: {reason}.", judged)
    used = [row for row in settings if row.s[b - 1] is not None]
    signs = [_sign(setting_interval(row, b, found_by)) for row in used]
    verdict = LICENSED if set(signs) == {1} else REFUSED if set(signs) == {-1} else UNDECIDED
    counted = {words: signs.count(sign) for sign, words in _SIGNS.items()}
    found = [f"{words} under {count}" for words, count in counted.items() if count]
    against = [row for row, sign in zip(used, signs, strict=True) if sign != 1 or verdict == LICENSED]
    against.sort(key=lambda row: row.s[b - 1] or 0.0)
    named = "; ".join(_describe(row, b, found_by) for row in against[:MAX_NAMED])
    label = "the least are" if verdict != UNDECIDED else "against it are"
    kind = "95% intervals" if found_by == GIVEN else "95% intervals corrected for the search"
    return Licence(
        verdict,
        f"{start} {verdict}: S({b}) is {', '.join(found)} of {len(used)} settings ({kind}); {label} {named}"
        f"{_left_out(settings, b)}.",
        judged,
    )


def _judge_setting(row: SettingScores, b: int, found_by: str) -> JudgedSetting:
    band, s = setting_interval(row, b, found_by), row.s[b - 1]
    says = UNREAD if s is None else _SIGNS[_sign(band)]
    return JudgedSetting(row.mask, row.lens, row.template, row.n, row.num_clusters, s, band, says)


def _why_unusable(settings: Sequence[SettingScores], b: int) -> str | None:
    if not settings:
        return "the trace has no context perturbation"
    if len({row.mask for row in settings}) < 2:
        return "the trace has one mask token, and two are needed"
    if all(row.s[b - 1] is None for row in settings):
        return f"one side has no layer that is read{_left_out(settings, b)}"
    return None


def _left_out(settings: Sequence[SettingScores], b: int) -> str:
    """The lenses that read no layer of a side, which have no S(b), with the layers that they do not read."""
    blind = {row.lens: row.blind_layers for row in settings if row.s[b - 1] is None}
    return "".join(
        f"; the {lens} lens explains under {LEAST_EXPLAINED:.0%} at layers {format_layers(layers)} and is left out"
        for lens, layers in blind.items()
    )


def _sign(band: Interval | None) -> int:
    return 0 if band is None or band[0] <= 0 <= band[1] else 1 if band[0] > 0 else -1


def _describe(row: SettingScores, b: int, found_by: str) -> str:
    band = setting_interval(row, b, found_by)
    spread = f"{band[0]:+.3f} to {band[1]:+.3f}" if band else "no interval"
    prompts = "all prompts" if row.template is None else f"template {row.template!r}"
    return f"{row.s[b - 1]:+.3f} ({spread}) with mask {row.mask!r}, {row.lens} lens, {prompts}"


def least_lower_end(settings: Sequence[SettingScores], b: int, found_by: str) -> float:
    """The lowest end of the intervals of S(b) under all settings: how far a licence is from being lost."""
    bands = (setting_interval(row, b, found_by) for row in settings)
    return min(band[0] for band in bands if band is not None)


def setting_interval(row: SettingScores, b: int, found_by: str = GIVEN) -> Interval | None:
    """The 95% interval of S(b) under this setting, corrected for the search that gave b; None where it has none."""
    s, error, bias = row.s[b - 1], row.s_error[b - 1], row.s_bias[b - 1]
    if s is None or error is None or bias is None:
        return None
    reach = {GIVEN: row.critical, INNER: row.critical_inner, ALL: row.critical_all}[found_by] * error + bias
    return s - reach, s + reach

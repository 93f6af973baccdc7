"""Trace records with given dJS, from which the boundary is chosen; all other figures are constant."""

from hybridizer.trace.record import (
    BoundaryFigure,
    EmbeddingFigures,
    LayerFigures,
    RecordedDonor,
    RecordedProbes,
    RecordedSettings,
    SettingScores,
    TaskParticle,
    TraceRecord,
)

STATE = {"target_prob": 0.1, "target_prob_ci": None, "js": 0.1, "js_ci": None, "layer_js": None, "layer_js_ci": None,
         "explained": None, "explained_ci": None}  # fmt: skip
SETTINGS = RecordedSettings(
    perturb="context", mask_ratio=0.3, mask_with="_", mask_token_id=7, mask_chosen_as="filler", second_mask_with=" the",
    second_mask_token_id=8, mask_positions=None, noise_ratio=None, lens="plain", licence_lenses=("plain",),
    tuned_lens=None, epsilon=1e-10, tau=0.5, p_min=0.1, seed=0, num_resamples=500, dtype="float32",
)  # fmt: skip


def setting(mask, s, half_width, *, lens="plain", template=None, blind=(), searched=1.0):
    """S(b) under one setting; intervals of a searched b are `searched` times as wide."""
    error = [None if half_width is None or value is None else half_width for value in s]
    bias = [None if value is None else 0.0 for value in s]
    columns = (tuple(s), tuple(error), tuple(bias))
    return SettingScores(mask, lens, template, 100, 100, tuple(blind), *columns, 1.0, searched, searched)


def record(delta_js, *, half_width=0.01, particle=None):
    """A record whose S(b) follow from `delta_js`, each with an interval of `half_width` on either side, or none."""
    num_layers = len(delta_js)
    boundary = []
    for b in range(1, num_layers):
        s = sum(delta_js[:b]) / b - sum(delta_js[b:]) / (num_layers - b)
        band = None if half_width is None else (s - half_width, s + half_width)
        boundary.append(BoundaryFigure(b, s, band, s, band, 1 - sum(delta_js[b:]) / (num_layers - b), None))
    return TraceRecord(
        donor=RecordedDonor("alpha", "sha256:0", "llama", num_layers),
        probes=RecordedProbes("p", "0" * 64, 100, 100),
        settings=SETTINGS,
        accuracy=None, accuracy_ci=None, accuracy_n=0, target_prob=None, target_prob_ci=None,
        embedding=EmbeddingFigures(**STATE),
        layers=tuple(
            LayerFigures(layer=layer, ratio_median=0.5, ratio_mean=9.0, delta_js=delta, delta_js_ci=None,
                         task_particles=0, blind=False, **STATE)
            for layer, delta in enumerate(delta_js)
        ),
        task_particle=TaskParticle(particle, None if particle is None else (particle + 1) / num_layers, None, 10, 0),
        vulnerable_layer=None, boundary=tuple(boundary), boundary_marks={}, best_boundary=None,
        licence_settings=tuple(
            setting(mask, [row.s for row in boundary], half_width) for mask in ("_", " the")
        ) if boundary else (),
    )  # fmt: skip

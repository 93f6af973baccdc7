"""A trace record as other programs see it: the fields of "hybridizer.trace/1" that allocation reads, and no more."""


def record(delta_js, *, half_width=0.01, particle=None):
    """A record whose S(b) follow from `delta_js`, each with an interval of `half_width` either side, or with none."""
    num_layers = len(delta_js)
    boundary = []
    for b in range(1, num_layers):
        s = sum(delta_js[:b]) / b - sum(delta_js[b:]) / (num_layers - b)
        boundary.append({"b": b, "s": s, "s_ci": None if half_width is None else [s - half_width, s + half_width]})
    return {
        "schema": "hybridizer.trace/1",
        "donor": {"reference": "alpha", "num_layers": num_layers},
        "layers": [{"layer": layer, "delta_js": delta} for layer, delta in enumerate(delta_js, start=1)],
        "task_particle": {"layer": particle, "relative_depth": particle and particle / num_layers},
        "boundary": boundary,
    }

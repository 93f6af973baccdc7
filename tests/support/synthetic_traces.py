"""A trace record made by formula: sensitivity falls with depth, and the answer appears in late layers."""

import math


def synthetic_record(reference="alpha", num_layers=30, n=500, height=0.05, with_layer=False, with_intervals=True):
    """The plain object of "hybridizer.trace/3" with computed numbers."""

    def near(value, width):
        return [max(0.0, value - width), value + width] if with_intervals else None

    js, rows, delta = 0.03, [], []
    for layer in range(num_layers):
        depth = (layer + 1) / num_layers
        step = height * math.exp(-3 * depth) * (1 + 0.5 * math.sin(5 * layer)) * (-1 if layer % 7 == 6 else 1)
        js += step
        delta.append(abs(step))
        prob = 0.42 / (1 + math.exp(-18 * (depth - 0.8)))
        rows.append({
            "layer": layer, "target_prob": prob, "target_prob_ci": near(prob, 0.03),
            "ratio_median": 0.4, "ratio_mean": 9.0,
            "js": js, "js_ci": near(js, 0.015), "delta_js": abs(step), "delta_js_ci": near(abs(step), 0.006),
            "task_particles": round(120 * math.exp(-(((depth - 0.82) / 0.07) ** 2))),
            "layer_js": 0.3 * math.exp(-4 * depth) + 0.05 if with_layer else None,
            "blind": False,
            "layer_js_ci": near(0.3 * math.exp(-4 * depth) + 0.05, 0.02) if with_layer else None,
        })  # fmt: skip
    scores = [sum(delta[:b]) / b - sum(delta[b:]) / (num_layers - b) for b in range(1, num_layers)]
    return {
        "schema": "hybridizer.trace/3",
        "donor": {"reference": reference, "fingerprint": "sha256:0", "family": "llama", "num_layers": num_layers},
        "probes": {"name": "antonyms-en", "sha256": "0" * 64, "n": n, "num_clusters": n // 2},
        "settings": {"perturb": "both" if with_layer else "context", "mask_ratio": 0.3, "lens": "plain", "seed": 0},
        "accuracy": 0.452, "accuracy_ci": [0.41, 0.49] if with_intervals else None, "accuracy_n": n,
        "target_prob": 0.26, "target_prob_ci": [0.24, 0.28] if with_intervals else None,
        "embedding": {"js": 0.03, "js_ci": near(0.03, 0.01), "target_prob": 0.001, "target_prob_ci": None},
        "layers": rows,
        "task_particle": {"layer": 0.8 * num_layers - 1, "relative_depth": 0.8, "layer_ci": [23, 24], "n": 470,
                          "num_without": 30},
        "vulnerable_layer": {"layer": 0, "relative_depth": 1 / num_layers, "js": 0.3} if with_layer else None,
        "boundary": [
            {"b": b, "s": s, "s_ci": [s - 0.01, s + 0.01] if with_intervals else None,
             "s_debiased": s - 0.002, "s_debiased_ci": [s - 0.012, s + 0.008] if with_intervals else None}
            for b, s in enumerate(scores, start=1)
        ],
    }  # fmt: skip

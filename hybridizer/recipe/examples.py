"""Examples of recipe keys that take several lines: the starter recipe shows them, and editors offer them."""

EXAMPLE_SLICES = [
    {"donor": "domain", "layers": "0..14"},
    {"donor": "instruct", "layers": [15, "20..28"]},
    {"donor": "instruct", "layers": 29, "mixer": {"kind": "mamba2", "fit": "ridge"}},
    {"fresh": "mamba2", "count": 2, "zero_output": True},
    {
        "blend": {
            "method": "slerp",
            "base": "instruct",
            "parameters": {"t": 0.5},
            "sources": [
                {"donor": "instruct", "layers": "10..12"},
                {"donor": "domain", "layers": "10..12", "parameters": {"weight": 0.5}},
            ],
        }
    },
]

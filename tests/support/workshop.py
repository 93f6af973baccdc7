"""A working folder with tiny donors, recipes and texts: in which the examples of docstrings and docs/python.md run."""

import json
from pathlib import Path

from support.lines import make_donor, write_documents, write_recipe

DONORS = {"instruct": "donors/instruct", "domain": "donors/domain"}
DIAL = {"host": "instruct", "deep": "instruct", "shallow": "domain", "boundary": 0.5}


def make_workshop(folder: Path) -> None:
    """Two tiny donors of four layers, recipe.yaml (splice only), train.yaml, text.jsonl and probes.jsonl."""
    make_donor(folder / "donors/instruct", seed=1)
    make_donor(folder / "donors/domain", seed=2)
    write_documents(folder / "text.jsonl", 120)
    # Targets of one token, different ones: the tiny tokenizer has one token per byte.
    probes = [{"prompt": f"the cat {i} is ", "target": "abcd"[i % 4]} for i in range(12)]
    (folder / "probes.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in probes))
    write_recipe(folder / "recipe.yaml", donors=DONORS, layout=DIAL)
    train = {"data": [{"path": "text.jsonl"}], "tokens": 2000, "seq_len": 64, "lr": 1e-3, "heldout_ratio": 0.2}
    evaluate = {"max_tokens": 400, "context": 64, "new_tokens": 4}
    write_recipe(folder / "train.yaml", donors=DONORS, layout=DIAL, train=train, evaluate=evaluate)

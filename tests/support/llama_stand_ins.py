"""Programs with the names of llama.cpp's, which do what a test tells them in a file beside them, plan.json.

The converter copies the config that it was given into the file; llama-perplexity prints the figure that the plan has
for the type of the file that it gets. What llama.cpp itself does is tested where it is at hand.
"""

import json
import sys
from pathlib import Path

CONVERTER = """
import json, sys
from pathlib import Path
plan = json.loads((Path(__file__).parent / "plan.json").read_text())
words = sys.argv[1:]
kind, out, model = words[words.index("--outtype") + 1], words[words.index("--outfile") + 1], Path(words[0])
Path(out).write_text(json.dumps({"type": kind, "config": json.loads((model / "config.json").read_text())}))
if plan.get("converter") == "fails":
    print("INFO: reading")
    sys.exit("NotImplementedError: BPE pre-tokenizer was not recognized")
"""
PERPLEXITY = """
import json, os, signal, sys
from pathlib import Path
plan = json.loads((Path(__file__).parent / "plan.json").read_text())
words = sys.argv[1:]
kind = json.loads(Path(words[words.index("--model") + 1]).read_text())["type"]
if plan.get("perplexity") == "dies":
    os.kill(os.getpid(), signal.SIGABRT)
chunks = plan.get("chunks") or words[words.index("--chunks") + 1]
assert Path(words[words.index("--file") + 1]).read_text()
print(f"0.01.234.567 I perplexity: calculating perplexity over {chunks} chunks, n_ctx=512")
print(f"0.02.345.678 I Final estimate: PPL = {plan['figures'][kind]} +/- 0.10000")
"""
QUANTIZE = """
import json, sys
from pathlib import Path
source, target, kind = sys.argv[1:]
assert json.loads(Path(source).read_text())["type"] == "f32"
Path(target).write_text(json.dumps({"type": kind.lower()}))
"""


def write_stand_ins(folder: Path, **plan) -> Path:
    """A folder as --llama-cpp takes it; `plan` has `figures` by type, and what is to go wrong."""
    (folder / "build/bin").mkdir(parents=True, exist_ok=True)
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    for name, program in (("llama-perplexity", PERPLEXITY), ("llama-quantize", QUANTIZE)):
        path = folder / "build/bin" / name
        path.write_text(f"#!{sys.executable}{program}")
        path.chmod(0o755)
    for place in (folder, folder / "build/bin"):
        (place / "plan.json").write_text(json.dumps(plan))
    return folder

"""What vLLM computes of some windows: the half of scripts/vllm_table.py that runs in vLLM's own environment.

    VLLM_PYTHON vllm_score.py ASKED.json FOUND.json

ASKED has the folder of the model, the type, windows of token ids, how many tokens to add to the beginning of the first
one, and more arguments of `vllm.LLM`. FOUND gets the version, the log-probability (natural) of every token of a window
but its first, and the tokens added by largest probability. Nothing of hybridizer is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import vllm


def main() -> None:
    """Score the windows, continue the first, and write what was found."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    windows, start, more = asked["windows"], asked["start"], asked["more"]
    engine = vllm.LLM(
        model=asked["folder"],
        dtype=asked["dtype"],
        max_model_len=len(windows[0]) + 1,
        max_num_seqs=4,
        enforce_eager=True,
        enable_prefix_caching=False,
        **asked["engine"],
    )
    score = vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    scored = engine.generate([{"prompt_token_ids": window} for window in windows], score)
    extend = vllm.SamplingParams(max_tokens=more, temperature=0, ignore_eos=True)
    continued = engine.generate([{"prompt_token_ids": windows[0][:start]}], extend)[0]
    found = {
        "version": vllm.__version__,
        "logprobs": [
            [each[token].logprob for token, each in zip(window[1:], answer.prompt_logprobs[1:], strict=True)]
            for window, answer in zip(windows, scored, strict=True)
        ],
        "added": list(continued.outputs[0].token_ids),
    }
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()

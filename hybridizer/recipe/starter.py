"""The recipe that `hybridize init` writes: every key, with what it is for beside it."""

from __future__ import annotations

from hybridizer.recipe.to_yaml import to_yaml

_TEXT = """\
# A recipe for hybridize: `hybridize check` this file, then `hybridize build` it.
# Every key can be set for one run from the command line: --set layout.boundary=0.6

# name: my-hybrid        # the run and its folder; this file's name if left out
seed: 0                  # the seed of everything random

# The checkpoints to build from, each under a name of your choice. A source is a folder (a relative one counts from this
# file), a GGUF file, a hub id with @revision, or pkg:package/file for a file inside an installed Python package.
donors:
  instruct:
    {instruct}
  domain:
    {domain}
    allow: []            # any of pickle, remote_code, vocabulary; a donor that needs one is refused without it
    # fingerprint: sha256:...      # the content this donor must have, as `hybridize plan` shows it

# Which donor gives which layer. Shallow is near the input, deep is near the output.
layout:
  host: instruct         # gives embeddings, final norm, head and tokenizer
  deep: instruct
  shallow: domain
  boundary: 0.5          # where deep begins: a share of the depth, or its first layer, such as 15

  # Or all layers in full, from shallow to deep, in place of deep, shallow and boundary:
  # slices:
  #   - donor: domain
  #     layers: 0..14              # both ends included; all layers if left out
  #   - donor: instruct
  #     layers: [15, 20..29]       # any order, repeats allowed
  #   - blend:                     # layers mixed by a mergekit method, first with first, and so on
  #       method: slerp
  #       base: instruct           # for methods that start from one of the sources
  #       parameters: {{t: 0.5}}     # a source has its own parameters too, where the method takes some: {{weight: 0.5}}
  #       sources:
  #         - {{donor: instruct, layers: 10..12}}
  #         - {{donor: domain, layers: 10..12}}

output:
  dtype: keep            # as each donor has it, or float32, bfloat16, float16
  max_shard_bytes: 5GB   # the most bytes in one safetensors file
"""


def starter(instruct: str = "donors/instruct", domain: str = "donors/domain") -> str:
    """A commented recipe that splices the two sources: the deep half of `instruct` on the shallow half of `domain`."""
    instruct_line, domain_line = (to_yaml({"source": source}).strip() for source in (instruct, domain))
    return _TEXT.format(instruct=instruct_line, domain=domain_line)

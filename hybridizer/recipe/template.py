"""The recipe that `hybridize init` writes: every key, with what it is for beside it."""

from __future__ import annotations

from hybridizer.recipe.dump import to_yaml

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
    allow: []            # any of pickle, remote_code, vocabulary, no_tokenizer; else refused where one is needed
    # fingerprint: sha256:...      # the content this donor must have, as `hybridize plan` shows it

# Which donor gives which layer. Shallow is near the input, deep is near the output.
layout:
  host: instruct         # gives embeddings, final norm, head and tokenizer
  deep: instruct         # a donor, or auto: the donor that ranks first when all are traced
  shallow: domain
  boundary: 0.5          # where deep begins: a share of the depth, its first layer (15), or by a trace of the deep
                         # donor: auto, knee, s-maximal, task-particle, midpoint

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

# How donors are traced, where `deep` or `boundary` asks for it.
trace:
  probes: antonyms-en    # or antonyms-zh, or a file of {{"prompt": ..., "target": ...}} lines
  perturb: context       # context: mask tokens of the prompt; layer: disturb one layer's output; both
  mask_ratio: 0.3
  mask_with: auto        # a token's text, or auto: the tokenizer's mask, unknown or padding token, or another word
  lens: plain            # or tuned: a map per layer, for donors whose early layers the plain lens cannot read
  tau: 0.5               # a task particle rises by this ratio or more, ...
  p_min: 0.1             # ... to this probability or more
  dtype: float32

# Continued pre-training of what is not frozen. Without this section the spliced model is the result.
#
# train:
#   data:                  # a mixture of sources, each with its share of the tokens
#     - path: corpus/**/*.txt        # a file or a glob: .txt, .md, .rst, .jsonl, .parquet, also compressed
#       weight: 1.0
#       field: text                  # the JSONL field or Parquet column
#       max_document_bytes: 10MB     # longer documents are left out, counted and listed
#     # - hub: org/dataset           # or a dataset on a hub, read as a stream
#     #   config: default
#     #   split: train
#     #   revision: main
#     #   max_documents: 100k
#   tokens: 2M             # how many tokens to train on
#   freeze: deep           # deep, shallow, none, or layers: [0, 15..29]
#   embedding: side        # train or freeze; side: as the first layer, ...
#   final_norm: side       # ... as the last layer, ...
#   head: side             # ... as the last layer
#   # lora: {{rank: 16, alpha: 32, dropout: 0}}      # train low-rank adapters in place of whole matrices
#   seq_len: 1024         # tokens in a row
#   packed: true           # several documents in a row, kept apart
#   global_batch_size: 8       # rows in one optimizer step
#   micro_batch_size: 0      # rows in memory at a time; 0: all of a step
#   heldout_ratio: 0.02    # the share of documents that never train, to measure on
#   optimizer: adamw       # or adamw8bit
#   lr: 3e-5
#   betas: [0.9, 0.95]
#   eps: 1e-8
#   weight_decay: 0.1
#   max_grad_norm: 1.0
#   schedule: cosine       # or wsd (warm-up, stable, decay), constant
#   warmup_ratio: 0.1
#   min_lr_ratio: 0.1       # the last rate, as a share of lr
#   decay_ratio: 0.2       # for wsd
#   precision: auto        # bfloat16 where the device has it, else float32
#   gradient_checkpointing: false          # gradient checkpointing: less memory, a third more compute
#   compile: false
#   # max_steps: 1000      # stop early ...
#   # max_minutes: 60
#   checkpoint_minutes: 5
#   trackers: []           # aim, clearml, comet_ml, dvclive, mlflow, swanlab, tensorboard, trackio, wandb

# What is measured before and after training, besides the documents held out.
#
# evaluate:
#   bits_per_byte:         # general texts, to see what was forgotten
#     - name: news
#       path: heldout/news.jsonl
#       field: text
#   max_tokens: 100k       # of each text, at most
#   context: 1024          # tokens in a window
#   prompts: []            # continued before and after
#   new_tokens: 40

output:
  dtype: keep            # as each donor has it, or float32, bfloat16, float16
  max_shard_bytes: 5GB   # the most bytes in one safetensors file
"""


def starter(instruct: str = "donors/instruct", domain: str = "donors/domain") -> str:
    """A commented recipe that splices the two sources: the deep half of `instruct` on the shallow half of `domain`."""
    instruct_line, domain_line = (to_yaml({"source": source}).strip() for source in (instruct, domain))
    return _TEXT.format(instruct=instruct_line, domain=domain_line)

"""The files of a training, and what each one means.

    training/
      checkpoints/          states that the run resumes from; see train/checkpoints.py
      log.jsonl             one line per step
      masters.safetensors   what the loop leaves: the trained tensors in float32, under their names in the model as it
                            ran, adapters included; gone as soon as trained.safetensors is there
      trained.safetensors   the result: the trained tensors in float32, under their names in the output, adapters merged
      training.json         the record of the result, written last, with the hash of trained.safetensors

In folders of earlier versions trained.safetensors held the masters for a moment, between the loop and the record.
Beside a record it has always been the result, and without one it is not read.
"""

CHECKPOINTS, LOG = "checkpoints", "log.jsonl"
MASTERS, TRAINED, RECORD = "masters.safetensors", "trained.safetensors", "training.json"

"""The structure of a checkpoint, read from config.json and tensor names alone: no weights, no torch, no transformers.

`read_structure` reads one checkpoint, `check_compatible` reports why layers of several donors cannot be in one model,
and `splice_config` writes the config of the model that they form.
"""

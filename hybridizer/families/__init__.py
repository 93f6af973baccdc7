"""What a model family is made of, told from config.json and tensor names alone: no weights, no torch, no transformers.

`read_structure` takes a checkpoint apart, `check_compatible` says why layers of several donors cannot share a model,
and `splice_config` writes the config of the model they make.
"""

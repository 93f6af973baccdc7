"""What a model family is made of, told from config.json and tensor names alone: no weights, no torch, no transformers.

`read_anatomy` takes a checkpoint apart, `check_joins` says why layers of several donors cannot live in one model,
`splice_config` writes the config of the model they make, and `renumber` names their tensors in it.
"""

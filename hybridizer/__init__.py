"""Build hybrid language models from pretrained checkpoints: trace, rank, splice, freeze, train, prove."""

__version__ = "0.1.0"

"""Mixers that replace the attention of a layer: their weights, and the closed-form fit of their output projections."""

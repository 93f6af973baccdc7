"""Which layers a lens can read. Apart from the rest, so that tables use it without loading numpy."""

LEAST_EXPLAINED = 0.1
"""Below this share of the final distribution, a layer's figures describe the lens more than the layer."""

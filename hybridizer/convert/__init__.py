"""A finished model in the files of another engine, with the proof that the engine computes the same."""

"""What an output model is made of: which donor gives each layer, whether the joins hold, one source for every tensor."""

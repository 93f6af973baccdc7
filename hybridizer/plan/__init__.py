"""What an output model is made of: the donor of each layer, whether the joins hold, one source for every tensor."""

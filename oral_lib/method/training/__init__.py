"""Training of the network: on the tokens of a zoo, and through the frozen base model."""

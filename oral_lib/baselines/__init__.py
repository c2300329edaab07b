"""Methods that need no generator, which a generated adapter has to be compared with."""

"""The steps of a reproduction: what is run, in which order, and the command lines."""

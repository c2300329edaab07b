"""Studies that notebooks show: of one generator, of its samples, and a toy."""

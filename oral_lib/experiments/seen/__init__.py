"""Generators of seen tasks that are trained through the base models: training, development."""

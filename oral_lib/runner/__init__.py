"""Runs nodes that make files out of files. Standard library only."""

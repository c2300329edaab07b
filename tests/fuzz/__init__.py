"""Hostile files: valid ones are mutated, and each must be read or refused in one clear line."""

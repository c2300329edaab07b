"""Tasks: their texts, their rows and their images."""

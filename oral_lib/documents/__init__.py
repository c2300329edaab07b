"""Documents that people write: YAML, JSON and JSON lines, read strictly."""

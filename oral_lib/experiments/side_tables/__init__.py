"""What the tables next to metrics.csv hold: distances, maps, bytes and costs of adapters."""

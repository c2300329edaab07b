"""What a generator's folder stores, and how it is read: few bytes, and every value checked."""

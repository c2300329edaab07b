"""Tables and figures of the studies that notebooks show."""

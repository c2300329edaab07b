"""Tables and figures of studies: ablations, and what notebooks show."""

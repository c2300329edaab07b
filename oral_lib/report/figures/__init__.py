"""The figures of reports and notebooks, drawn from tables and arrays."""

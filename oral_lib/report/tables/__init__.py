"""The tables of a report; nothing is scored here."""

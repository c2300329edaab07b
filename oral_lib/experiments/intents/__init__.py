"""Adapters for tasks that no zoo holds: intents by text, their rivals and their measurement."""

"""Intents: tasks "is the message about X" over sets of short messages with an intent each."""

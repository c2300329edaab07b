"""The report of experiment intents: means over many unseen tasks, tables, figures, a page."""

"""Methods that intents are compared with: from few rows, from a text and a zoo, in the prompt."""

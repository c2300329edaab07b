"""Tables, figures and findings of a result, made from its stored rows; imports no torch."""

"""What others have trained: which files of a model's folder are read, how its tokenizer cuts."""

"""What is done with a trained generator: adapters for a sentence, their answers, a release."""

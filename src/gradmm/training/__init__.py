"""Training a model on labelled text."""

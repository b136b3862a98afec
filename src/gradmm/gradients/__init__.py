"""Gradients of the output head in closed form: factors, distances, targets."""

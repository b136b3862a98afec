"""Differential privacy: clipping, noise, its accounting, and the record of what was spent."""

"""Comparing methods by what models learn from their texts."""

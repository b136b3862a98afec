"""Solvers: find synthetic texts, given a released target. None of them sees a real row."""

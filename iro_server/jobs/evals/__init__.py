"""Evals: a model's answers, or stored ones, to many items, graded by several criteria."""

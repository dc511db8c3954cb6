"""Batches: many requests of one route, from a file, with the answers in another."""

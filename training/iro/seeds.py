"""Purposes that seeds are derived for, so that none is drawn twice."""

SPLIT, ROLLOUTS, BETA, VALIDATION, FIT, LENGTHS, TILT, TILTED = range(8)

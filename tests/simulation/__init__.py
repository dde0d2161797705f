"""Deterministic simulation: all stages on an in-memory log, one random generator, seeded faults."""

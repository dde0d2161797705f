"""Benches: each prints its figures, then one line per goal, and exits 1 when one is missed."""

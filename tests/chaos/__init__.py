"""Faults against real processes, brokers and sockets."""

"""The local stack: real servers on loopback, started, watched and stopped by us."""

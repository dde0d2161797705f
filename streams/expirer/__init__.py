"""The expirer: ends runs that no worker will: their stages are scaled to zero (DESIGN 4.9)."""

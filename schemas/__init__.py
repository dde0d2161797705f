"""Wire contracts: one `.avsc` per record, and what reads and writes them."""

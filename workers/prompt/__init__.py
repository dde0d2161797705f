"""The prompt stage: admit, clean, encode."""

"""What each model family does its own way."""

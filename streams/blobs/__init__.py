"""Claim checks and fences, in a folder or on S3."""

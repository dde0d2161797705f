"""Model folders: what they say of themselves, and a tiny one."""

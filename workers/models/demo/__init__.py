"""The demo model: a tiny Wan that obeys its prompt, from drawn data to committed weights."""

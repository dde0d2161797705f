"""The decoder stage: latents to frames."""

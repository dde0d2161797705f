"""The sampler stage: denoise latents."""

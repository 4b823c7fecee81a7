"""Masked diffusion: noise, losses, schedules, unmasking rules, the sampler and its trajectories."""

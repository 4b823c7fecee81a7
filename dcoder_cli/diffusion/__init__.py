"""The mathematics of masked diffusion: noise, losses, coupled masks, schedules, unmasking rules."""

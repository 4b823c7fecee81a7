"""Stage 4: coupled-GRPO and its baselines, and the variance lab."""

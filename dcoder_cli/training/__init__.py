"""The training loops: stages 0-3 (denoise) and stage 4 (coupled-GRPO), on one shared setup."""

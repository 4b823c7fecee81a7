"""The training loops: stages 0-3 (denoise) and, in grpo/, stage 4, on one set-up."""

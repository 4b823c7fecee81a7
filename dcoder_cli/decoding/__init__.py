"""Prompt -> tokens -> trajectory: exact and fast modes, infilling, AR models."""

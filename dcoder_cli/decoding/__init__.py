"""Decoding: prompt -> tokens -> trajectory, for every model and unmasking rule."""

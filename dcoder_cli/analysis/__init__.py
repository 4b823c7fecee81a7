"""Measurements of decoding order and their pictures."""

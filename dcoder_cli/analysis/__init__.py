"""Measurements of decoding order and their pictures; the HTML report."""

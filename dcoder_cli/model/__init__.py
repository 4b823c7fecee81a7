"""Checkpoints as models: layouts, special ids, attention patterns, reading, writing, converting."""

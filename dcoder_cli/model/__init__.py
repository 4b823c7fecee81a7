"""Checkpoints as models: special ids, attention patterns, backbones, reading, writing and converting."""

"""YAML presets for GPU sizes; read through dcoder_cli.base.presets."""

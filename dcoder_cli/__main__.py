"""`python -m dcoder_cli`: the same as `dcoder`, and what `accelerate launch -m dcoder_cli` runs."""

from dcoder_cli.main import process

process()

"""Running model-written code: sandbox, judge, getting code out of text. Never imports torch."""

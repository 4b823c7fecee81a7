"""Running model-written code: sandbox, fork server, judge, and getting code out of text. Never imports torch."""

"""Errors, configuration, console, files, run folders: what everything stands on. Never imports torch."""

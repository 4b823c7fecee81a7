"""What everything stands on: errors, configuration, console, run folders. Never imports torch."""

"""What draws in a terminal: the live view, the conversation."""

"""The studies built from all of the above: quickstart, reproduce."""

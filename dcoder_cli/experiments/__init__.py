"""The studies built from all of the below: quickstart and reproduce."""

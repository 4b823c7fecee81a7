"""How fast it all is on this machine, beside the same work done plainly."""

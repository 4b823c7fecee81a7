"""From text to packed shards of tokens, and from shards to batches; micro tasks."""

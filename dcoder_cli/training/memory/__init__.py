"""How much memory a stage takes on each GPU, by part, before it is started: the formula behind `dcoder presets fit`."""

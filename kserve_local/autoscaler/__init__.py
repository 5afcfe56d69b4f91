"""How many replicas there should be: policies as pure functions, with time as an argument."""

"""Rules: one function for each command, in the literal table RULES of `machine`."""

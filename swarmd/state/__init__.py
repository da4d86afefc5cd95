"""The replicated machine: commands in, rules apply, events out; one SQLite file is its state."""

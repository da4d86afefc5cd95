"""One daemon on every host: a handful of machines become one swarm."""

__version__ = "0.1.0"

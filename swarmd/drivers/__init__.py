"""The world outside: one file for each part of it, with nothing of it leaking upwards."""

"""What every dialect shares on the wire: serving, checks, limits, bodies and streams.

No dialect's words are known here; a dialect hands in a `Surface` and gets requests that were
already checked.
"""

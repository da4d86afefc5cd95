"""Who a node is and how it proves it: the swarm's authority, certificates, tokens, sealed boxes.

Everything here is a value or a pure function: `now` and random bytes are given. Nothing is
re-exported, so that who only reads a token does not load a library of ciphers.
"""

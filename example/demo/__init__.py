"""``python -m example.demo``: the store opens, sells, loses a server, and is compared
with one database at every step."""

"""Transactions over several nodes: savepoints, the commit protocol, its failures."""

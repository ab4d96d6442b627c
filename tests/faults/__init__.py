"""Concurrent clients while servers fail; ``python -m tests.faults`` runs them."""

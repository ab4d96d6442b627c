"""A sharded alias while its nodes fail; ``python -m tests.faults.sharded`` runs it."""

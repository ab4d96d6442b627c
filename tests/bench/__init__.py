"""What dbfleet costs over plain Django: ``python -m tests.bench``."""

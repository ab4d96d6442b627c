"""What dbfleet costs and saves, beside plain Django: ``python -m tests.bench``."""

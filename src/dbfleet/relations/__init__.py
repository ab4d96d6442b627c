"""Relations between models whose rows are not in one database."""

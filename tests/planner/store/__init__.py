"""Models of every layout, for plans that are made without a database."""

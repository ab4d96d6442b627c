"""An app whose tables a distributed engine spreads."""

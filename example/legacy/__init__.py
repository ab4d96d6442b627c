"""The old system's tables, which the store reads once and never writes."""

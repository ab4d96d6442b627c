"""The app that every project of the benchmark has."""

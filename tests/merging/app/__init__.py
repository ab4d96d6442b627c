"""The app of the scenarios."""

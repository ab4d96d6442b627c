"""The project's tests; `support` holds what they share."""

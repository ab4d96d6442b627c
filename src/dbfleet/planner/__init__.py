"""Turns a statement into a route, without any I/O."""

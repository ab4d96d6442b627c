"""One transaction over the nodes of an alias: enlisting, savepoints, commit."""

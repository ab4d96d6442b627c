"""What the store sells, and who works there. Lives on ``default``, a cluster."""

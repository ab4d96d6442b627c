"""What a fleet does when servers are not what its settings say, or go away."""

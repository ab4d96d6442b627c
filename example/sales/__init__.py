"""Who bought what. Lives on ``sales``, spread over shards by customer."""

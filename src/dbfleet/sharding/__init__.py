"""Rows over shards: keys, slots, the shard map, ids, unique claims, writes."""

"""Random querysets and writes: one plain database against sharded aliases.

Guards one promise: what a fleet answers is what one database answers, or an error of
dbfleet's own. Everything random comes from one printed seed.
"""

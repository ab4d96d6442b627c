"""What tests, the demo and the benchmarks share.

``dbfleet.testing.rig`` starts real database clusters. Nothing here is imported
by a running project, and nothing here needs Django's settings.
"""

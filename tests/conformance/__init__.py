"""Django's own test suite, unmodified, run on a fleet and on the plain engine.

``python -m tests.conformance`` runs the same tests twice in one invocation, once on
the plain engine and once on the alias under test, and compares the two test by test.
The invariant: a difference is either in ``known_differences.toml``, with its class and
its reason, or it fails the run; a listed difference that is gone fails it too.
"""

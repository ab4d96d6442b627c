"""A primary with three replicas while they fail, lag and lose connections.

``python -m tests.faults.replicas`` runs clients (threads, asyncio tasks, job workers)
against them and checks what their sessions were promised.
"""

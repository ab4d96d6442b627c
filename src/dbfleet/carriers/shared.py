"""What was written for a user or an object, kept in the cache for every other reader.

Guards one invariant: an entry covers every entry before it, or says that it may not,
which makes its readers ask the primary. Without locks: a writer takes the next number,
merges the entry of the number before, and stores its own; an entry that should be
there and is not, because its writer is not done or the cache dropped it, counts as one
that demands everything.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

from django.core.cache import BaseCache, caches
from django.db.models import Model

from dbfleet import conf, sessions
from dbfleet.errors import ConfigurationError
from dbfleet.sessions import Session, tokens

#: how often and how long a writer waits for the one before it
_TRIES, _PAUSE_S = 3, 0.002
#: entries that a session knows that it covers
_REMEMBERED = 64


def token_for(obj: Model | str) -> str:
    """What readers of ``obj`` have to see, as text for ``dbfleet.resume``; "": nothing.

    ``obj`` is a saved instance or any text that names what is meant. Two round trips to
    the cache, none to a database. Raises what the cache raises, ConfigurationError for
    a cache that cannot count, ValueError for an instance that was not saved.
    """
    return _read(cache(), _key(obj))[1]


def require_token_for(obj: Model | str) -> None:
    """Have the running session see whatever was saved for ``obj``.

    Costs and errors are those of :func:`token_for`. An entry that the cache has lost
    altogether demands nothing: choose a cache that drops nothing before its time, and
    ``ttl_s`` above the longest lag.
    """
    key = _key(obj)
    number, token = _read(cache(), key)
    session = sessions.current()
    tokens.apply(token, session)
    _remember(session, key, number)


def save_token_for(obj: Model | str, *, ttl_s: int | None = None) -> None:
    """Let readers of ``obj`` see what the running session wrote and was held to.

    Merged with what others saved, the higher position wins; kept for ``ttl_s`` seconds
    (``SHARED_TTL_S``). Which replica the session reads from is not passed on. Call it
    after the commit, from ``transaction.on_commit``: what is not committed has no
    position, and readers ask the primary instead.

    Three to four round trips to the cache, up to six and 4 ms where writers meet; none
    if the session has nothing to say, none to a database. Raises as :func:`token_for`.
    """
    key = _key(obj)
    mine, session = tokens.running(has_replicas=False), sessions.current()
    if not mine and key not in session.required:
        return
    store = cache()
    ttl_s = conf.settings().carriers.shared_ttl_s if ttl_s is None else ttl_s
    number, is_first = _next(store, key, ttl_s)
    if not is_first and session.required.get(key) != number - 1:
        mine = _merged(mine, _entry(store, key, number - 1))
    store.set(f"{key}:{number}", mine, ttl_s)
    _remember(session, key, number)


def cache() -> BaseCache:
    """The cache of ``CARRIERS``; raises ConfigurationError if it cannot count."""
    name = conf.settings().carriers.cache
    found: BaseCache = caches[name]
    if type(found).incr is BaseCache.incr:
        raise ConfigurationError(
            "E004",
            f"cache {name!r} ({type(found).__name__}) cannot count without losing one "
            "of two writers; name a Redis or Memcached cache in "
            "DBFLEET['CARRIERS']['CACHE']",
        )
    return found


def _key(obj: Model | str) -> str:
    if isinstance(obj, Model):
        if obj.pk is None:
            raise ValueError(f"{obj!r} was not saved and has no key to be found by")
        concrete = obj._meta.concrete_model or type(obj)
        obj = f"{concrete._meta.label_lower}:{obj.pk}"
    digest = hashlib.sha256(obj.encode()).hexdigest()[:40]
    return f"dbfleet:token:{digest}"


def _read(store: BaseCache, key: str) -> tuple[int, str]:
    """The newest entry and its number."""
    number = store.get(key)
    if number is None:
        return 0, ""
    return number, _entry(store, key, number)


def _remember(session: Session, key: str, number: int) -> None:
    """The session covers this entry; what it forgets is merged again when it saves."""
    session.required.pop(key, None)
    if len(session.required) >= _REMEMBERED:
        session.required.pop(next(iter(session.required), ""), None)
    session.required[key] = number


def _next(store: BaseCache, key: str, ttl_s: int) -> tuple[int, bool]:
    """The number of the next entry, and whether none is known before it."""
    for _ in range(_TRIES):
        # A counter that starts anew is above all numbers of one that was lost.
        first = time.time_ns() // 1000
        if store.add(key, first, ttl_s):
            return first, True
        try:
            number = store.incr(key)
        except ValueError:  # it ran out between the two
            continue
        store.touch(key, ttl_s)
        return number, False
    raise RuntimeError(f"the cache drops what it holds at once ({key})")


def _entry(store: BaseCache, key: str, number: int) -> str:
    for trial in range(_TRIES):
        found: Any = store.get(f"{key}:{number}")
        if found is not None:
            return str(found)
        if trial < _TRIES - 1:
            time.sleep(_PAUSE_S)
    return tokens.EVERYTHING


def _merged(mine: str, other: str) -> str:
    session = Session()
    tokens.apply(mine, session)
    tokens.apply(other, session)
    return tokens.dump(session)

"""The middleware: a browser's or a caller's session goes on in its next request.

Guards two invariants: the token that leaves with a response covers all that was
committed before the response was ready; and of responses that come back in any order
none takes back what another one said, because each sets a cookie of its own name and
drops only cookies that it covers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.auth import SESSION_KEY, get_user_model
from django.http import HttpRequest
from django.utils.cache import patch_cache_control, patch_vary_headers
from django.utils.module_loading import import_string

from dbfleet import conf, sessions
from dbfleet.carriers import headers, shared, signed
from dbfleet.errors import ConfigurationError
from dbfleet.observe import events
from dbfleet.sessions import tokens
from dbfleet.topology.carriers import CarrierSettings

logger = logging.getLogger("dbfleet.carriers")

#: where a request keeps what arrived with it
_ATTRIBUTE = "_dbfleet_arrived"


class _Arrived(NamedTuple):
    """What came with a request."""

    #: names of all the cookies that held a token, good or not
    cookies: tuple[str, ...] = ()
    #: the one token that they hold, if it need not be sent again
    cookie: str = ""
    header: str = ""


class SessionMiddleware:
    """Carries the session by cookie, header and cache, as ``CARRIERS`` says.

    Sync and async. Put it first, so that what other middleware writes is carried, too.
    No round trips; with ``SHARED`` two to the cache for a request, up to six for one
    that wrote. Raises ConfigurationError when the server starts for a function or
    cache of ``CARRIERS`` that is not there.

    The token is taken when the response is ready, after ``ATOMIC_REQUESTS`` has
    committed. A streaming response is sent later: what its stream reads and writes is
    the same session's, but not in the token.
    """

    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        options = conf.settings().carriers
        self._is_trusted = _imported("TRUSTED_CALLER", options.trusted_caller)
        self._key_of: Callable[[HttpRequest], Any] | None = None
        if options.shared is not None:
            shared.cache()
            is_user = options.shared == "user"
            self._key_of = user_key if is_user else _imported("SHARED", options.shared)
            # Only if asked for: under ASGI it costs each request a thread.
            self.process_view = self._require_shared
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        if iscoroutinefunction(self):
            return self._acall(request)
        arrived = self._arrive(request)
        response = self.get_response(request)
        if self._key_of is not None:
            self._save_shared(request)
        self._leave(arrived, response)
        return response

    async def _acall(self, request: HttpRequest) -> Any:
        arrived = self._arrive(request)
        response = await self.get_response(request)
        if self._key_of is not None:
            await sync_to_async(self._save_shared)(request)
        self._leave(arrived, response)
        return response

    # -- the request ----------------------------------------------------------------

    def _arrive(self, request: HttpRequest) -> _Arrived:
        if sessions.peek() is None:
            # The first request of a server that imported Django's handler late.
            sessions.begin()
        options = conf.settings().carriers
        cookies: tuple[str, ...] = ()
        cookie = header = ""
        if options.cookie is not None:
            prefix = f"{options.cookie}-"
            cookies = tuple(name for name in request.COOKIES if name.startswith(prefix))
            values = [request.COOKIES[name] for name in cookies]
            if values:
                cookie = _only(values, signed.COOKIE)
        if options.header is not None:
            header = self._arrive_by_header(request, options.header)
        return _Arrived(cookies, cookie, header)

    def _arrive_by_header(self, request: HttpRequest, name: str) -> str:
        values = headers.split(request.headers.get(name, ""))
        if not values:
            return ""
        if self._is_trusted is not None and self._is_trusted(request):
            session = sessions.current()
            for value in values[: signed.MAX_TOKENS]:
                tokens.apply(value, session)
            if len(values) > signed.MAX_TOKENS:
                tokens.ask_all(session)
            return ""
        return _only(values, signed.HEADER)

    def _require_shared(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        """``process_view``: what the session of the user needs is known by now."""
        key = self._key(request)
        if key is None:
            return
        try:
            shared.require_token_for(key)
        except Exception:
            # Not known is never taken for nothing.
            logger.exception("a shared session could not be read from the cache")
            events.emit("carrier_failed", carrier="cache")
            tokens.ask_all(sessions.current())
        setattr(request, _ATTRIBUTE, (key, tokens.running(has_replicas=False)))

    def _key(self, request: HttpRequest) -> Any:
        assert self._key_of is not None
        return self._key_of(request)

    # -- the response -----------------------------------------------------------------

    def _save_shared(self, request: HttpRequest) -> None:
        """Tell the user's other devices, if there is something new to tell."""
        now = tokens.running(has_replicas=False)
        key, before = getattr(request, _ATTRIBUTE, (None, ""))
        if now == before:
            return
        if key is None:  # somebody may have logged in
            key = self._key(request)
        if key is None:
            return
        try:
            shared.save_token_for(key)
        except Exception:
            # The page was made and its writes are committed: it has to be answered.
            logger.exception("a shared session could not be saved in the cache")
            events.emit("carrier_failed", carrier="cache")

    def _leave(self, arrived: _Arrived, response: Any) -> None:
        token = tokens.token()
        if _is_for_all(response) and not tokens.running(has_replicas=False):
            return  # it only read, and a token would keep the page from being cached
        options = conf.settings().carriers
        if options.cookie is not None and token != arrived.cookie:
            self._set_cookies(arrived, response, token, options)
        if options.header is not None and token != arrived.header:
            signs = signed.sign(token, signed.HEADER) if token else ""
            response.headers[options.header] = signs
            _keep_private(response, options.header)

    def _set_cookies(
        self, arrived: _Arrived, response: Any, token: str, options: CarrierSettings
    ) -> None:
        where = {
            "path": settings.SESSION_COOKIE_PATH,
            "domain": settings.SESSION_COOKIE_DOMAIN,
            "samesite": settings.SESSION_COOKIE_SAMESITE,
        }
        # Equal tokens have equal checksums, so equal names.
        name = f"{options.cookie}-{token[-8:]}" if token else ""
        for other in arrived.cookies:
            # A demand that arrived is met, or was reported as lost, which is said once.
            if other != name:
                response.delete_cookie(other, **where)
        if name:
            response.set_cookie(
                name,
                signed.sign(token, signed.COOKIE),
                max_age=options.max_age_s,
                secure=settings.SESSION_COOKIE_SECURE,
                httponly=settings.SESSION_COOKIE_HTTPONLY,
                **where,
            )
        if name or arrived.cookies:
            _keep_private(response, "Cookie")


def user_key(request: HttpRequest) -> str | None:
    """The key of the user who is logged in, as ``require_token_for(user)`` has it.

    Reads the session of :mod:`django.contrib.sessions`, only if the request uses it,
    and never the user.
    """
    session = getattr(request, "session", None)
    if session is None:
        return None
    if not session.accessed and settings.SESSION_COOKIE_NAME not in request.COOKIES:
        return None
    pk = session.get(SESSION_KEY)
    return None if pk is None else f"{get_user_model()._meta.label_lower}:{pk}"


def _only(values: list[str], kind: str) -> str:
    """Take up signed tokens; the one there is, if it need not be sent again."""
    found = signed.take_up(values, kind, sessions.current())
    if len(found) == len(values) == 1 and not found[0].is_old:
        return found[0].token
    return ""


def _is_for_all(response: Any) -> bool:
    """Whether the view lets caches keep the response for everybody."""
    said = response.headers.get("Cache-Control", "").lower()
    return "public" in said or "s-maxage" in said


def _keep_private(response: Any, header: str) -> None:
    patch_cache_control(response, private=True)
    patch_vary_headers(response, [header])


def _imported(option: str, path: str | None) -> Callable[[HttpRequest], Any] | None:
    if path is None:
        return None
    try:
        found = import_string(path)
    except ImportError as error:
        raise ConfigurationError(
            "E004", f"DBFLEET['CARRIERS'][{option!r}]: {error}"
        ) from error
    if not callable(found):
        raise ConfigurationError(
            "E004", f"DBFLEET['CARRIERS'][{option!r}]: {path} is no function"
        )
    return found  # type: ignore[no-any-return]

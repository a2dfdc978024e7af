"""Who may ask: API keys, the landing page's sessions, known hosts, allowed origins."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import Callable

import msgspec
import trio
from quart import Request

from owm.api.errors import Forbidden, Misdirected, Unauthorised
from owm.api.keys import ApiKey, KeyStore
from owm.clock import Clock
from owm.config import ApiSettings

__all__ = ["SESSION_COOKIE", "Access", "Caller"]

SESSION_COOKIE = "owm_session"
_SESSION_LIFE = 86_400.0  #: seconds
_CACHE_LIFE = 1.0  #: seconds for which a key's state is believed, so revoking takes effect within it
_CACHE_SIZE = 4096


class Caller(msgspec.Struct, frozen=True):
    """Who asks. ``id`` is what is counted, and who may fetch the answer later."""

    id: str
    per_day: int  #: 0 for no limit
    anonymous: bool = False  #: known by its address alone


class Access:
    """Decides who a request comes from.

    Args:
        settings: allowed hosts and origins, limits of the page.
        keys: where API keys are looked up, in a worker thread.
        clock: for the age of sessions and of the cache.
        random_bytes: makes the key that signs sessions; it lives as long as the process.
    """

    def __init__(
        self,
        settings: ApiSettings,
        keys: KeyStore,
        clock: Clock,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._clock = clock
        self._random_bytes = random_bytes
        self._session_key = random_bytes(32)
        self._cache: OrderedDict[bytes, tuple[float, ApiKey | None]] = OrderedDict()
        self._hosts = {host.lower() for host in settings.allowed_hosts}

    def check_host(self, request: Request) -> None:
        """Refuse a Host that is none of ours: a page on a rebound name must not reach us (A9). Raises Misdirected."""
        name = _host_name(request.headers.get("Host", ""))
        if "*" in self._hosts or name in self._hosts or name in {"localhost", self._settings.host.lower()}:
            return
        try:
            if ipaddress.ip_address(name).is_loopback:
                return
        except ValueError:
            pass
        raise Misdirected("this gateway does not answer to that host name; add it to api.allowed_hosts in owm.toml")

    def allows_origin(self, origin: str) -> bool:
        return origin in self._settings.cors_origins

    async def identify(self, request: Request) -> Caller:
        """Who asks. Raises Unauthorised, or Forbidden for a foreign page that rides on a session."""
        authorization = request.headers.get("Authorization")
        if authorization is not None:
            scheme, _, secret = authorization.partition(" ")
            key = await self._find(secret.strip()) if scheme.lower() == "bearer" else None
            if key is None:
                raise Unauthorised("the API key is not valid; send `Authorization: Bearer owm_...`")
            return Caller(key.id, key.per_day)
        address = client_address(request)
        if not self._valid_session(request.cookies.get(SESSION_COOKIE, ""), address):
            raise Unauthorised("an API key is needed: send `Authorization: Bearer owm_...`")
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
            raise Forbidden("the page's session serves the page only; elsewhere send an API key")
        return Caller(f"page:{address}", self._settings.page_requests_per_day, anonymous=True)

    def new_session(self, request: Request) -> str:
        """A signed value for the page's cookie, good for a day from this address."""
        expires = str(int(self._clock.time() + _SESSION_LIFE))
        return f"{expires}.{self._sign(expires, client_address(request))}"

    def _valid_session(self, value: str, address: str) -> bool:
        expires, _, signature = value.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(expires, address).encode()):
            return False
        return int(expires) > self._clock.time()  # signed by us, so it is a number

    def _sign(self, expires: str, address: str) -> str:
        return hmac.digest(self._session_key, f"{expires}|{address}".encode(), hashlib.sha256).hex()

    async def _find(self, secret: str) -> ApiKey | None:
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        now = self._clock.monotonic()
        cached = self._cache.get(digest)
        if cached is not None and now - cached[0] < _CACHE_LIFE:
            return cached[1]
        key = await trio.to_thread.run_sync(self._keys.find, secret)
        self._cache[digest] = (now, key)
        self._cache.move_to_end(digest)
        while len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return key


def client_address(request: Request) -> str:
    """The peer of the connection: an IPv4 address, or the /64 of an IPv6 one, which one household owns whole."""
    client = request.scope.get("client")
    if not client:
        return "unknown"
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _host_name(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")

"""Asks sidetone how a call is to be handled, from asyncio with aiohttp (3.10 or newer).

    from sidetone_aiohttp import Sidetone, Refused, Unavailable

    async with Sidetone("/run/sidetone/sidetone.sock") as sidetone:      # one for the whole program
        try:
            answer = await sidetone.resolve(number, {"event_type": "door_open", "zone": ["Z1", "Z2"]}, credentials=True)
            if answer["stale"]:
                log.warning("answer is %d ms old", answer["staleness_ms"])
            await start(answer["language"], answer["prompt"]["system"], answer["credentials"]["openai"]["default"])
        except Refused as no:             # sidetone says no: unknown_number, inactive_number, tenant_suspended, ...
            await hang_up(no.status)
        except Unavailable as away:       # sidetone cannot say: timeout, not_ready, ...; your fallback, never "no such number"
            await start(DEFAULT_LANGUAGE)

An answer with credentials is not to be logged.
"""

import asyncio
import time
from urllib.parse import quote, urlencode

import aiohttp

# The question has its answer, and it is no: asking again does not help.
REFUSALS = {"unknown_number", "inactive_number", "tenant_suspended", "invalid_number", "bad_request"}


class Refused(Exception):
    """sidetone says no; `status` says why."""

    def __init__(self, status):
        super().__init__(status)
        self.status = status


class Unavailable(Exception):
    """sidetone cannot say. Nothing is asked before `retry_after` seconds have passed, where it is not 0."""

    def __init__(self, status, retry_after=0.0):
        super().__init__(status)
        self.status, self.retry_after = status, retry_after


class Sidetone:
    def __init__(self, path="/run/sidetone/sidetone.sock", connect=0.25, total=1.0):
        self.path, self.timeout = path, aiohttp.ClientTimeout(total=total, sock_connect=connect)
        self._away, self._not_before = "", 0.0

    async def __aenter__(self):
        # aiohttp asks once more by itself where sidetone had closed a connection that was kept.
        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(self.path), timeout=self.timeout)
        return self

    async def __aexit__(self, *_):
        await self._session.close()

    async def lookup(self, to, call=None):
        """The short view. `to` as it came, `call` the parameters of the call, lists for repeated ones."""
        return await self._ask("/v1/lookup", to, call)

    async def resolve(self, to, call=None, credentials=False):
        """The full view, with the prompts, and the credentials if asked for."""
        return await self._ask("/v1/resolve", to, {**(call or {}), **({"include": "credentials"} if credentials else {})})

    async def _ask(self, route, to, call):
        now = time.monotonic()
        if now < self._not_before:  # as Retry-After said
            raise Unavailable(self._away, self._not_before - now)
        query = urlencode({"to": to, **(call or {})}, doseq=True, quote_via=quote, errors="replace")
        try:
            async with self._session.get(f"http://localhost{route}?{query}") as reply:
                answer = await reply.json(content_type=None)
                status = answer["status"]
        except asyncio.TimeoutError as error:
            raise Unavailable("timeout") from error
        except (aiohttp.ClientError, ValueError, KeyError, TypeError) as error:
            raise Unavailable("unreachable") from error
        if reply.status == 200 and status == "ok":
            return answer
        if status in REFUSALS:
            raise Refused(status)
        wait = reply.headers.get("Retry-After", "")
        retry_after = float(wait) if wait.isdigit() else 0.0
        if status in ("not_ready", "overloaded"):
            self._away, self._not_before = status, time.monotonic() + min(retry_after, 60)
        raise Unavailable(status, retry_after)

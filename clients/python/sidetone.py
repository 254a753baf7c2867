"""Asks sidetone how a call is to be handled. Standard library only, Python 3.8 or newer, for programs with threads or without.

    from sidetone import Sidetone, Refused, Unavailable

    sidetone = Sidetone("/run/sidetone/sidetone.sock")
    try:
        answer = sidetone.resolve(number, {"event_type": "door_open", "zone": ["Z1", "Z2"], "attr.vip": "true"}, credentials=True)
        if answer["stale"]:
            log.warning("answer is %d ms old", answer["staleness_ms"])
        start(answer["language"], answer["prompt"]["system"], answer["credentials"]["openai"]["default"])
    except Refused as no:             # sidetone says no: unknown_number, inactive_number, tenant_suspended, ...
        hang_up(no.status)
    except Unavailable as away:       # sidetone cannot say: timeout, not_ready, ...; your fallback, never "no such number"
        start(DEFAULT_LANGUAGE)

An answer with credentials is not to be logged. Try it: python3 sidetone.py +14155550100 event_type=door_open
"""

import http.client
import json
import socket
import sys
import threading
import time
from urllib.parse import quote, urlencode

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


class _Socket(socket.socket):
    """Every wait ends with the time of the whole question, however slowly the bytes come."""

    deadline = 0.0

    def recv_into(self, *args):
        self.settimeout(max(self.deadline - time.monotonic(), 0.001))
        return super().recv_into(*args)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = _Socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Sidetone:
    """Keeps one connection for each thread."""

    def __init__(self, path="/run/sidetone/sidetone.sock", connect=0.25, total=1.0):
        self.path, self.connect, self.total = path, connect, total
        self._local = threading.local()
        self._away, self._not_before = "", 0.0

    def lookup(self, to, call=None):
        """The short view. `to` as it came, `call` the parameters of the call, lists for repeated ones."""
        return self._ask("/v1/lookup", to, call)

    def resolve(self, to, call=None, credentials=False):
        """The full view, with the prompts, and the credentials if asked for."""
        return self._ask("/v1/resolve", to, {**(call or {}), **({"include": "credentials"} if credentials else {})})

    def _ask(self, route, to, call):
        now = time.monotonic()
        if now < self._not_before:  # as Retry-After said
            raise Unavailable(self._away, self._not_before - now)
        query = urlencode({"to": to, **(call or {})}, doseq=True, quote_via=quote, errors="replace")
        code, retry_after, body = self._exchange(f"{route}?{query}", now + self.total)
        try:
            answer = json.loads(body)
            status = answer["status"]
        except (ValueError, KeyError, TypeError):
            raise Unavailable("unreachable") from None  # somebody else answers there
        if code == 200 and status == "ok":
            return answer
        if status in REFUSALS:
            raise Refused(status)
        if status in ("not_ready", "overloaded"):
            self._away, self._not_before = status, time.monotonic() + min(retry_after, 60)
        raise Unavailable(status, retry_after)

    def _exchange(self, target, deadline):
        while True:
            connection = getattr(self._local, "connection", None)
            kept = connection is not None
            if not kept:
                connection = self._local.connection = _Connection(self.path, self.connect)
            try:
                if not kept:
                    connection.connect()
                connection.sock.settimeout(max(deadline - time.monotonic(), 0.001))
                connection.sock.deadline = deadline
                connection.request("GET", target)
                reply = connection.getresponse()
                body = reply.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._local.connection = None
                # Once more only on a connection that was kept and that sidetone had closed meanwhile.
                if kept and isinstance(error, (BrokenPipeError, ConnectionResetError)):
                    continue
                raise Unavailable("timeout" if isinstance(error, socket.timeout) else "unreachable") from error
            if reply.will_close:
                self._local.connection = None
            wait = reply.headers.get("Retry-After", "")
            return reply.status, float(wait) if wait.isdigit() else 0.0, body


if __name__ == "__main__":
    try:
        print(json.dumps(Sidetone().lookup(sys.argv[1], dict(pair.split("=", 1) for pair in sys.argv[2:])), ensure_ascii=False, indent=2))
    except (Refused, Unavailable) as why:
        sys.exit(f"{type(why).__name__}: {why}")

"""What schemathesis has to be told about sidetone: how to reach a Unix socket, and what the formats of the description mean.

SIDETONE_SOCKET is the socket to ask on; without it, TCP is used as ever. SIDETONE_TOKEN is what operators over TCP show.
"""

import os
import socket
from string import ascii_lowercase
from urllib.parse import parse_qsl

import schemathesis
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool


class UnixConnection(HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(os.environ["SIDETONE_SOCKET"])


class UnixPool(HTTPConnectionPool):
    ConnectionCls = UnixConnection


if "SIDETONE_SOCKET" in os.environ:
    pool = UnixPool("localhost", maxsize=4)
    HTTPAdapter.get_connection_with_tls_context = lambda *_, **__: pool

# A few spellings of numbers that there are (of an active and a suspended tenant), and numbers that there are not.
NUMBERS = ["+14155550100", "+541150000002", "+542994000003", "+15005550006", "+4930123456789"]
SPELLINGS = ["{}", "sip:{}@sip.example;user=phone", '"Ops" <sips:{}@h>;tag=1', "tel:{}", "00{}"]

printable = st.characters(exclude_categories=("Cc", "Cs"))
# Four bytes a character at most, and 256 bytes are the limit.
text = st.text(printable, max_size=64)
name = st.text(ascii_lowercase + "_", min_size=1, max_size=20).filter(
    lambda name: name not in ("account_ref", "event_type", "zone", "outside_business_hours")
)


def spelled(number, spelling):
    return spelling.format(number.removeprefix("+") if spelling.startswith("00") else number)


FORMATS = {
    "called-number": st.builds(spelled, st.sampled_from(NUMBERS), st.sampled_from(SPELLINGS)),
    "short-text": st.sampled_from(["ACME-001234", "door_open", "Z1", "openai"]) | text,
    "attribute-name": name.map("attr.{}".format),
    "bare-attribute-name": name,
    # Not `attr`: what stands there is an object.
    "member-name": name.map("x_{}".format) | name.map("attr.{}".format),
    "instant": st.datetimes().map(lambda at: at.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0") + "-03:00"),
    "tenant-name": st.sampled_from(["seguridad-acme-sa", "d2c4a8e1-7b9f-4a6e-8a1b-77889900aabb", "nobody"]),
    "entity-tags": st.sampled_from(["*", '"x"', 'W/"0123456789abcdef0123456789abcdef", "y"']),
    "event-id": st.sampled_from(["ok:5f0c9e1a7b3d2846", "unknown_number:", "x"]),
    "log-filter": st.sampled_from(["info", "warn,sidetone::feed=debug", "off"]),
}
for known, strategy in FORMATS.items():
    schemathesis.openapi.format(known, strategy)


@schemathesis.deserializer("application/x-www-form-urlencoded")
def pairs(_, response):
    """A form as it is read: each name once, and a plus is a plus."""
    found = parse_qsl(response.content.decode().replace("+", "%2B"), keep_blank_values=True)
    assert len(dict(found)) == len(found), found
    return dict(found)


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """What no schema of single parameters can say: either `to` or `tenant` is watched. And no order waits ten seconds, with
    the others behind it, for a transaction that never comes: it is one that has been."""
    body = case.body
    if case.operation.path == "/v1/admin/refresh" and isinstance(body, dict):
        xid = body.get("at_least")
        if type(xid) is int and xid > 0:
            body["at_least"] = 1
        elif isinstance(xid, str) and xid.isascii() and xid.isdigit():
            body["at_least"] = "1"
    if case.operation.path != "/v1/watch" or not case.meta or not case.meta.generation.mode.is_positive:
        return
    query = case.query
    if "to" in query:
        query.pop("tenant", None)
    elif "tenant" not in query:
        query["to"] = NUMBERS[0]


@schemathesis.hook
def before_load_schema(ctx, raw):
    """Over TCP operators have to show the token, but for the files; on the sockets nobody has to."""
    if not os.environ.get("SIDETONE_TOKEN"):
        return
    for path, methods in raw["paths"].items():
        for operation in methods.values():
            operation["security"] = [{}] if path in ("/", "/api", "/openapi.yaml") else [{"token": []}]

"""drive.py CLIENT SOCKET: a question a line on stdin, `view=lookup&to=…`, after `ready` an answer a line on stdout, both as forms."""

import asyncio
import inspect
import sys
from importlib import import_module
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode

sys.path.insert(0, str(Path(__file__).parents[3] / "clients" / "python"))
client = import_module(sys.argv[1])


def told(answer):
    return {
        "kind": "answer",
        "status": answer["status"],
        "language": answer["language"],
        "label": answer["label"],
        "stale": int(answer["stale"]),
        "prompt_ids": answer["prompt"]["ids"],
        "system": answer["prompt"].get("system", ""),
        "secret": answer.get("credentials", {}).get("openai", {}).get("default", ""),
    }


async def ask(sidetone, line):
    question = parse_qs(line, keep_blank_values=True, errors="surrogateescape")
    (view,), (to,) = question.pop("view"), question.pop("to")
    credentials = bool(question.pop("include", None))
    try:
        answer = sidetone.lookup(to, question) if view == "lookup" else sidetone.resolve(to, question, credentials=credentials)
        return told(await answer if inspect.isawaitable(answer) else answer)
    except client.Refused as no:
        return {"kind": "refused", "status": no.status}
    except client.Unavailable as away:
        return {"kind": "unavailable", "status": away.status, "wait": away.retry_after}


async def main():
    sidetone = client.Sidetone(sys.argv[2])
    if hasattr(sidetone, "__aenter__"):
        await sidetone.__aenter__()
    print("ready", flush=True)
    # The loop goes on while nothing is asked: it is in the loop that a client sees a connection end.
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(urlencode(await ask(sidetone, line.strip()), quote_via=quote), flush=True)
    if hasattr(sidetone, "__aexit__"):
        await sidetone.__aexit__(None, None, None)


asyncio.run(main())

// Asks sidetone how a call is to be handled. Node 18 or newer, nothing to install.
//
//   import { Sidetone, Refused, Unavailable } from "./sidetone.mjs";
//
//   const sidetone = new Sidetone("/run/sidetone/sidetone.sock");
//   try {
//     const answer = await sidetone.resolve(number, { event_type: "door_open", zone: ["Z1", "Z2"], "attr.vip": true }, { credentials: true });
//     if (answer.stale) log(`answer is ${answer.staleness_ms} ms old`);
//     await start(answer.language, answer.prompt.system, answer.credentials.openai.default);
//   } catch (why) {
//     if (why instanceof Refused) hangUp(why.status);             // sidetone says no: unknown_number, tenant_suspended, ...
//     else if (why instanceof Unavailable) start(DEFAULT_LANGUAGE); // sidetone cannot say; your fallback, never "no such number"
//     else throw why;
//   }
//
// An answer with credentials is not to be logged. Try it: node sidetone.mjs +14155550100 event_type=door_open

import { Agent, request } from "node:http";
import { pathToFileURL } from "node:url";

// The question has its answer, and it is no: asking again does not help.
const REFUSALS = new Set(["unknown_number", "inactive_number", "tenant_suspended", "invalid_number", "bad_request"]);

/** sidetone says no; `status` says why. */
export class Refused extends Error {
  constructor(status) {
    super(status);
    this.status = status;
  }
}

/** sidetone cannot say. Nothing is asked before `retryAfter` seconds have passed, where it is not 0. */
export class Unavailable extends Error {
  constructor(status, retryAfter = 0) {
    super(status);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export class Sidetone {
  #agent = new Agent({ keepAlive: true, maxFreeSockets: 16 });
  #away = "";
  #notBefore = 0;

  /** `totalMs` bounds the whole question; connecting to a Unix socket never waits in Node. */
  constructor(socketPath = "/run/sidetone/sidetone.sock", { totalMs = 1000 } = {}) {
    this.socketPath = socketPath;
    this.totalMs = totalMs;
  }

  /** The short view. `to` as it came, `call` the parameters of the call, arrays for repeated ones. */
  lookup(to, call = {}) {
    return this.#ask("/v1/lookup", to, call);
  }

  /** The full view, with the prompts, and the credentials if asked for. */
  resolve(to, call = {}, { credentials = false } = {}) {
    return this.#ask("/v1/resolve", to, credentials ? { ...call, include: "credentials" } : call);
  }

  /** Closes the connections that are kept. */
  close() {
    this.#agent.destroy();
  }

  async #ask(route, to, call) {
    const wait = this.#notBefore - performance.now();
    if (wait > 0) throw new Unavailable(this.#away, wait / 1000); // as Retry-After said
    const query = new URLSearchParams({ to });
    for (const [name, value] of Object.entries(call)) {
      for (const one of [value].flat()) query.append(name, one);
    }
    // URLSearchParams writes a space as +, which sidetone takes as +.
    const path = `${route}?${query.toString().replaceAll("+", "%20")}`;
    const signal = AbortSignal.timeout(this.totalMs);
    const { code, retryAfter, body } = await this.#get(path, signal, this.#agent).catch((error) => {
      // Once more, on a new connection, only where sidetone had closed one that was kept.
      if (error.kept && !signal.aborted) return this.#get(path, signal, false);
      throw error;
    }).catch(() => {
      throw new Unavailable(signal.aborted ? "timeout" : "unreachable");
    });
    let answer;
    try {
      answer = JSON.parse(body);
    } catch {
      throw new Unavailable("unreachable"); // somebody else answers there
    }
    const status = answer?.status ?? "unreachable";
    if (code === 200 && status === "ok") return answer;
    if (REFUSALS.has(status)) throw new Refused(status);
    if (["not_ready", "overloaded"].includes(status)) {
      this.#away = status;
      this.#notBefore = performance.now() + Math.min(retryAfter, 60) * 1000;
    }
    throw new Unavailable(status, retryAfter);
  }

  #get(path, signal, agent) {
    return new Promise((resolve, reject) => {
      const asked = request({ socketPath: this.socketPath, path, agent, signal, headers: { Host: "localhost" } }, (reply) => {
        const pieces = [];
        reply.on("data", (piece) => pieces.push(piece));
        reply.on("error", reject);
        reply.on("end", () => resolve({
          code: reply.statusCode,
          retryAfter: Number(reply.headers["retry-after"]) || 0,
          body: Buffer.concat(pieces).toString(),
        }));
      });
      asked.on("error", (error) => reject(Object.assign(error, { kept: asked.reusedSocket && ["ECONNRESET", "EPIPE"].includes(error.code) })));
      asked.end();
    });
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [to, ...call] = process.argv.slice(2);
  const sidetone = new Sidetone();
  await sidetone.lookup(to, Object.fromEntries(new URLSearchParams(call.join("&")))).then(
    (answer) => console.log(JSON.stringify(answer, null, 2)),
    (why) => { console.error(`${why.constructor.name}: ${why.message}`); process.exitCode = 1; },
  );
  sidetone.close();
}

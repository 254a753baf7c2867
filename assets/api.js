// The node's routes. The token, where the port asks for one, is kept for this tab alone and goes in a header, never in a URL.

const KEPT = 'sidetone-token';
const SILENCE_MS = 5000;
const AGAIN_MS = [500, 1000, 2000, 4000];

let token = sessionStorage.getItem(KEPT) ?? '';

export function setToken(value) {
  token = value;
  sessionStorage.setItem(KEPT, value);
}

function forgetToken() {
  token = '';
  sessionStorage.removeItem(KEPT);
}

function headers() {
  return token ? { authorization: `Bearer ${token}` } : {};
}

/** Asks the operator for the token; set by whoever can. Resolves once there is one. */
let askForToken = () => new Promise(() => {});
let asking = null;

export function onTokenWanted(ask) {
  askForToken = ask;
}

/** One dialog however many requests want it. */
async function wantToken(shown) {
  if (shown !== token) return; // another request has got one meanwhile
  const wrong = token !== '';
  forgetToken();
  asking ??= askForToken(wrong).finally(() => { asking = null; });
  await asking;
}

async function request(path, options = {}) {
  for (;;) {
    const shown = token;
    const reply = await fetch(path, { ...options, cache: 'no-store', headers: { ...headers(), ...options.headers } });
    if (reply.status !== 401) return reply;
    await wantToken(shown);
  }
}

async function json(reply) {
  const body = await reply.json();
  return { ok: reply.ok, code: reply.status, body };
}

export const get = async (path) => json(await request(path));

export const post = async (path, body) => json(await request(path, {
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify(body),
}));

/** Follows a stream of events for good: `on.event(name, data)`, and `on.contact(true|false, why)` when it comes or goes. */
export async function follow(path, on) {
  let failed = 0;
  for (;;) {
    await visible();
    let why = '';
    const gone = new AbortController();
    const hidden = whenHiddenForLong(() => gone.abort());
    try {
      const reply = await request(path, { signal: gone.signal });
      if (!reply.ok) throw new Error((await reply.json()).message);
      await read(reply.body, gone, (name, data) => {
        failed = 0;
        on.contact(true, '');
        if (name !== 'end') on.event(name, JSON.parse(data));
      });
    } catch (error) {
      why = gone.signal.aborted || error instanceof TypeError ? '' : error.message;
    } finally {
      hidden();
    }
    on.contact(false, why);
    await new Promise((done) => { setTimeout(done, AGAIN_MS[Math.min(failed, AGAIN_MS.length - 1)]); });
    failed += 1;
  }
}

/** Reads events until the stream ends or is silent for too long. */
async function read(body, gone, take) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const silent = setTimeout(() => gone.abort(), SILENCE_MS);
    const { value, done } = await reader.read().finally(() => clearTimeout(silent));
    if (done) return;
    const blocks = (rest + value).split('\n\n');
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split('\n').map((line) => {
        const at = line.indexOf(': ');
        return [line.slice(0, at), line.slice(at + 2)];
      }));
      if (fields.event) take(fields.event, fields.data);
    }
  }
}

/** A page that nobody sees gives its place among the listeners back after a minute. */
const HIDDEN_MS = 60_000;

function visible() {
  return new Promise((done) => {
    if (!document.hidden) { done(); return; }
    document.addEventListener('visibilitychange', done, { once: true });
  });
}

function whenHiddenForLong(act) {
  let timer = null;
  const changed = () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(act, HIDDEN_MS);
  };
  document.addEventListener('visibilitychange', changed);
  return () => {
    clearTimeout(timer);
    document.removeEventListener('visibilitychange', changed);
  };
}

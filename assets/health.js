// How the node is: what is wrong and what to do about it first, then the same as figures, then the rows that are bad.

import { $, el, facts, table, text } from './dom.js';
import { ago, agoHere, bytes, duration, moment, number, t } from './i18n.js';

const FLOWS = ['level', 'pulling'];
const LOST = ['connecting', 'backoff'];

/** A length of time as the settings write it, in milliseconds. */
function setting(shown) {
  return shown.endsWith('ms') ? parseFloat(shown) : parseFloat(shown) * 1000;
}

/** The figures as of now: the sample is younger than the status. */
function now({ status, sample }) {
  return {
    stale: sample?.stale ?? status.stale,
    staleness_ms: sample?.staleness_ms ?? status.staleness_ms,
    proved: (sample?.at ?? Date.now()) - (sample?.staleness_ms ?? status.staleness_ms),
    behind: sample?.behind ?? status.feed.behind,
    connections: sample?.connections ?? status.connections,
  };
}

/** Everything that is wrong, the worst first: how bad, what, and the places of its sentence. */
export function findings(state) {
  const { status } = state;
  const found = [];
  if (state.heard === false) found.push(['bad', 'silent', { ago: agoHere(state.since), why: state.why }]);
  if (!status) return found;
  const { feed, settings } = status;
  const limit = duration(setting(settings.stale_after));
  const { stale, staleness_ms, proved } = now(state);
  if (!status.ready) found.push(['bad', 'notready', {}]);
  if (status.refuse_credentials) found.push(['bad', 'refused', {}]);
  if (feed.refused_database) found.push(['bad', 'database', {}]);
  if (feed.held) found.push(['warn', 'held', { since: moment(feed.held.since), ...counts(feed.held) }]);
  if (LOST.includes(feed.state) && feed.last_error) {
    found.push(['warn', 'feed', { since: moment(proved), ago: ago(proved), error: feed.last_error.text }]);
  }
  if (stale) found.push(['warn', 'stale', { age: duration(staleness_ms), limit }]);
  if (feed.schema_version !== null && feed.schema_version !== feed.schema_needed) {
    found.push(['warn', 'schema', { found: feed.schema_version, needed: feed.schema_needed }]);
  }
  if (!LOST.includes(feed.state)) {
    if (!feed.armed) found.push(['warn', 'armed', {}]);
    if (!feed.listening) found.push(['warn', 'deaf', {}]);
  }
  if (status.quarantined_rows) found.push(['warn', 'rows', { count: number(status.quarantined_rows) }]);
  return found;
}

const counts = (of) => ({ tenants: number(of.tenants), numbers: number(of.numbers) });

/** The one sentence. */
function verdict(state, found) {
  if (state.heard === false) return ['bad', 'verdict.silent'];
  if (!state.status) return ['wait', 'verdict.wait'];
  if (found.some(([tone]) => tone === 'bad')) return ['bad', 'verdict.bad'];
  if (found.some(([, what]) => what === 'feed')) return ['warn', 'verdict.cutoff'];
  if (found.length) return ['warn', 'verdict.warn'];
  if (!FLOWS.includes(state.status.feed.state)) return ['wait', 'verdict.catching'];
  return ['good', 'verdict.good'];
}

export function showHealth(state) {
  const { status } = state;
  const found = findings(state);
  const [tone, sentence] = verdict(state, found);
  $('verdict').dataset.tone = tone;
  text($('verdict-title'), t(sentence));
  text($('verdict-more'), tone === 'good' ? t('verdict.good.more') : found.length ? t('verdict.more') : '');
  const listed = found.map(([how, what, places]) => [how, t(`finding.${what}`, places).trim(), t(`finding.${what}.do`)]);
  const known = JSON.stringify(listed);
  if ($('findings').dataset.known !== known) {
    $('findings').dataset.known = known;
    $('findings').replaceChildren(...listed.map(([how, what, act]) => el('li', { 'data-tone': how }, el('p', {}, what), el('p', { class: 'act' }, act))));
  }
  showContact(state);
  if (!status) return;
  document.title = `${tone === 'good' ? '' : '! '}${status.node} · sidetone`;
  text($('node'), status.node);
  tiles(state);
  rows(status);
  details(state);
}

function showContact({ heard, since }) {
  $('contact').dataset.tone = heard === null ? 'wait' : heard ? 'good' : 'bad';
  text($('contact-text'), heard === null ? t('contact.wait') : heard ? t('contact.yes') : t('contact.no', { ago: agoHere(since) }));
}

function tile(id, tone, value, note) {
  const node = $(`tile-${id}`);
  node.dataset.tone = tone;
  text(node.querySelector('.value'), value);
  text(node.querySelector('.note'), note);
}

function tiles(state) {
  const { status } = state;
  const { feed, settings } = status;
  const { stale, staleness_ms, proved, behind } = now(state);
  const limit = duration(setting(settings.stale_after));
  tile('ready', status.ready ? 'good' : 'bad', t(status.ready ? 'yes' : 'no'),
    t('ready.note', { ...counts(status.replica), since: moment(status.started) }));
  tile('fresh', stale ? 'warn' : 'good', duration(staleness_ms), t(stale ? 'fresh.stale' : 'fresh.fresh', { limit }));
  const flows = FLOWS.includes(feed.state);
  const since = feed.level_since ?? proved;
  tile('feed', flows ? 'good' : feed.state === 'backoff' ? 'bad' : 'warn',
    t(`feed.${flows ? 'level' : feed.state}`),
    behind ? t('feed.behind', { count: number(behind) }) : t('feed.note', { since: moment(since), ago: ago(since) }));
  tile('held', feed.held ? 'warn' : 'good', t(feed.held ? 'yes' : 'held.none'), feed.held ? t('held.note', counts(feed.held)) : '');
  tile('quarantined', status.quarantined_rows ? 'warn' : 'good', number(status.quarantined_rows), '');
  const error = feed.last_error;
  tile('error', error ? (flows ? 'wait' : 'bad') : 'good', error ? t(flows ? 'error.healed' : 'error.now') : t('none'),
    error ? t('error.note', { at: moment(error.at), text: error.text }) : '');
}

function rows(status) {
  const { quarantined, quarantined_rows: count } = status;
  const held = status.feed.held;
  const known = JSON.stringify([quarantined, count, held, document.documentElement.lang]);
  if ($('rows').dataset.known === known) return;
  $('rows').dataset.known = known;
  const children = [];
  if (held) children.push(el('p', { class: 'held' }, t('rows.held', { since: moment(held.since), ...counts(held) })));
  children.push(count ? faultTable(quarantined, t('rows.caption', { shown: number(quarantined.length), count: number(count) })) : el('p', {}, t('rows.none')));
  $('rows').replaceChildren(...children);
}

export function faultTable(faults, caption) {
  return table(caption, ['rows.table', 'rows.key', 'rows.reason', 'rows.detail', 'rows.force'].map((key) => t(key)),
    faults.map((fault) => [el('code', {}, fault.table), el('code', {}, fault.key), fault.reason, el('span', { lang: 'en' }, fault.detail),
      t(fault.last_good ? 'rows.lastgood' : 'rows.leftout')]));
}

/** Everything, for who wants to know; rebuilt only while it is open. */
function details(state) {
  const place = $('details');
  if (!place.parentElement.open) return;
  const flat = [];
  flatten('', { ...state.status, ...now(state), proved: undefined, behind: undefined, quarantined: undefined, status: undefined }, flat);
  const known = JSON.stringify(flat);
  if (place.dataset.known === known) return;
  place.dataset.known = known;
  place.replaceChildren(...facts(flat));
}

function flatten(prefix, value, to) {
  for (const [name, inner] of Object.entries(value)) {
    const path = prefix ? `${prefix}.${name}` : name;
    if (inner === undefined) continue;
    if (inner !== null && typeof inner === 'object' && !Array.isArray(inner)) flatten(path, inner, to);
    else to.push([path, said(name, inner)]);
  }
}

/** An entry of a list; what is true of it stands behind it. */
function one(entry) {
  if (typeof entry !== 'object') return entry;
  return Object.entries(entry).map(([name, value]) => (value === true ? `(${name})` : value)).filter((value) => value !== false).join(' ');
}

function said(name, value) {
  if (value === null || value === '' || (Array.isArray(value) && !value.length)) return t('unknown');
  if (Array.isArray(value)) return value.map(one).join(', ');
  if (typeof value === 'boolean') return t(value ? 'yes' : 'no');
  if (typeof value !== 'number') return value;
  if (/(^|_)bytes$/.test(name)) return bytes(value);
  return name.endsWith('_ms') ? duration(value) : number(value);
}


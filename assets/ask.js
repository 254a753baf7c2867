// "Ask for a call": the question, what a call would be told, and why.

import { $, el, facts, table, text } from './dom.js';
import { get } from './api.js';
import { bytes, has, moment, t } from './i18n.js';
import { why } from './why.js';
import { faultTable } from './health.js';

/** The last answer: {failed} or {explained, code, told}. Kept to be shown in another language. */
let last = null;
let asked = 0;

export function wireAsk() {
  const form = $('ask');
  addAttribute();
  $('attribute-more').addEventListener('click', () => addAttribute().focus());
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    ask(question(form));
  });
}

function addAttribute() {
  const name = el('input', { class: 'attribute-name', maxlength: '64', autocomplete: 'off', spellcheck: 'false', 'data-t-label': 'ask.name', 'aria-label': t('ask.name'), placeholder: 'vip' });
  const value = el('input', { class: 'attribute-value', maxlength: '256', autocomplete: 'off', spellcheck: 'false', 'data-t-label': 'ask.value', 'aria-label': t('ask.value'), placeholder: 'true' });
  const less = el('button', { type: 'button', 'data-t': 'ask.less' }, t('ask.less'));
  const row = el('div', { class: 'attribute' }, name, value, less);
  less.addEventListener('click', () => {
    row.remove();
    $('attribute-more').focus();
  });
  $('attributes').append(row);
  return name;
}

/** The form as the parameters of a question. */
function question(form) {
  const said = new URLSearchParams();
  const given = (name) => form.elements[name].value.trim();
  said.append('to', given('to'));
  for (const name of ['account_ref', 'event_type', 'outside_business_hours']) {
    if (given(name)) said.append(name, given(name));
  }
  for (const zone of given('zones').split(',').map((one) => one.trim()).filter(Boolean)) said.append('zone', zone);
  for (const row of form.querySelectorAll('.attribute')) {
    const name = row.querySelector('.attribute-name').value.trim();
    if (name) said.append(`attr.${name}`, row.querySelector('.attribute-value').value.trim());
  }
  if (given('at')) said.append('at', new Date(given('at')).toISOString());
  return said;
}

/** As the node reads it: there a plus is a plus. */
const query = (said) => said.toString().replaceAll('+', '%20');

async function ask(said) {
  const mine = asked += 1;
  text($('answer'), t('ask.asking'));
  $('why').replaceChildren();
  let found;
  try {
    const { code, body } = await get(`/v1/admin/explain?${query(said)}`);
    // The same instant for both.
    if (body.at) said.set('at', body.at);
    const told = await get(`/v1/admin/lookup?${query(said)}`);
    found = { code, explained: body, told: told.body };
  } catch (error) {
    found = { failed: error.message };
  }
  if (mine !== asked) return; // a later question is under way
  last = found;
  showAnswer();
}

export function showAnswer() {
  if (!last) return;
  if (last.failed) {
    text($('answer'), t('ask.failed', { why: last.failed }));
    return;
  }
  const { explained, told } = last;
  $('answer').replaceChildren(summary(explained));
  const parts = explained.fields ? explanation(explained, told) : explained.faults ? [faults(explained)] : [];
  $('why').replaceChildren(...parts.filter(Boolean));
}

function summary(explained) {
  const { status, number, tenant, prompts } = explained;
  if (status === 'ok') {
    const chosen = prompts.filter((prompt) => prompt.chosen).length;
    return el('p', { class: 'outcome', 'data-tone': 'good' }, t('answer.ok', { number, tenant: tenant.name, prompts: chosen, all: prompts.length }));
  }
  const known = has(`status.${status}`) ? t(`status.${status}`) : explained.message;
  return el('p', { class: 'outcome', 'data-tone': 'warn' }, t('answer.no', { status, message: known }));
}

function explanation(explained, told) {
  const { tenant, business_hours: hours } = explained;
  return [
    el('dl', { class: 'facts' }, facts([
      [t('answer.tenant'), `${tenant.name} (${tenant.slug}, ${tenant.status})`],
      [t('answer.revision'), el('code', {}, explained.revision)],
      [t('answer.at'), moment(explained.at)],
      [t('answer.hours'), `${t(`hours.${hours.value}`)}: ${hours.local_time} ${hours.timezone}`],
      ['', why(hours.why)],
    ])),
    fields(explained.fields),
    prompts(explained.prompts),
    credentials(explained.credentials),
    faults(explained),
    el('details', {}, el('summary', {}, t('answer.raw')), el('pre', { tabindex: '0' }, JSON.stringify(told, null, 1))),
  ];
}

const shown = (value) => (value === '' ? el('span', { class: 'empty' }, t('answer.empty')) : String(value));

function fields(of) {
  return table(t('answer.fields'), ['answer.field', 'answer.is', 'answer.from', 'answer.why'].map((key) => t(key)),
    Object.entries(of).map(([name, field]) => [
      el('code', {}, name),
      shown(field.value),
      [el('code', {}, `${field.table}.${field.column}`), ' ', el('code', { class: 'id' }, field.id), ' ', el('code', { class: 'id' }, field.revision)],
      why(field.why),
    ]));
}

function prompts(of) {
  return el('section', {},
    el('h3', {}, t('answer.prompts')),
    of.length ? el('ol', { class: 'prompts' }, of.map(prompt)) : el('p', {}, t('answer.noprompts')));
}

function prompt(one) {
  return el('li', { 'data-tone': one.chosen ? 'good' : 'off' },
    el('p', {}, el('span', { class: 'badge' }, t(one.chosen ? 'answer.chosen' : 'answer.notchosen')), ' ', el('strong', {}, one.name), ' ',
      el('span', { class: 'hint' }, t('answer.prompt', { scope: one.scope, priority: one.priority, version: one.version, bytes: bytes(one.content_bytes) }))),
    el('p', {}, why(one.why), ' ', el('code', { class: 'id' }, one.id)),
    bindings(one));
}

function bindings(one) {
  const notes = [
    one.bindings_left_out ? t('answer.leftout', { count: one.bindings_left_out }) : '',
    one.bindings_not_listed ? t('answer.notlisted', { count: one.bindings_not_listed }) : '',
  ].join('');
  if (!one.bindings.length) return el('p', { class: 'hint' }, notes || t('answer.nobindings'));
  return el('ul', { class: 'bindings', 'aria-label': t('answer.bindings') },
    one.bindings.map(binding), notes ? el('li', { class: 'hint' }, notes) : null);
}

function binding(one) {
  const state = one.acts ? 'answer.acts' : one.matches ? 'answer.matches' : 'answer.nomatch';
  const columns = [['account_ref', one.account_ref], ['event_type', one.event_type], ['phone_number_id', one.phone_number_id]]
    .filter(([, value]) => value).map(([name, value]) => `${name} = ${value}`);
  return el('li', { 'data-tone': one.matches ? 'good' : 'off' },
    el('span', { class: 'badge' }, t(state)), ' ',
    columns.length ? [el('code', {}, columns.join(', ')), ' '] : null,
    one.effects.length ? [el('code', {}, one.effects.join(', ')), ' '] : null,
    why(one.why), ' ', el('code', { class: 'id' }, one.id));
}

function credentials(of) {
  if (!of.length) return null;
  return table(t('answer.credentials'), [t('answer.provider'), t('ask.name'), '', t('answer.why')],
    of.map((one) => [one.provider, one.name, t(one.status === 'ok' ? 'answer.opens' : 'answer.withheld'), el('span', { lang: 'en' }, one.why)]));
}

function faults(explained) {
  return explained.faults.length ? faultTable(explained.faults, t('answer.faults')) : null;
}

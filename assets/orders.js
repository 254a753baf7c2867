// Refresh and verify: the order, its progress as the samples tell it, what it did.

import { $, el, table, text } from './dom.js';
import { post } from './api.js';
import { duration, has, number, t } from './i18n.js';

/** The order under way or done: what, since when, and once it ended {code, body} or {failed}. */
let order = null;
let current = null;

export function wireOrders(state) {
  current = state;
  const refresh = $('refresh');
  refresh.addEventListener('change', scope);
  scope();
  refresh.addEventListener('submit', async (event) => {
    event.preventDefault();
    const { scope: { value: what }, which, wait, accept_loss: accept } = refresh.elements;
    const body = what === 'all' ? { scope: 'all' } : { [what]: which.value.trim() };
    if (accept.checked && !(await confirmed())) return;
    await place('refresh', { ...body, wait: wait.checked, accept_loss: accept.checked });
    accept.checked = false;
  });
  $('verify').addEventListener('submit', (event) => {
    event.preventDefault();
    place('verify', {});
  });
}

/** What is to be refreshed is asked for only where it is not everything. */
function scope() {
  const what = $('refresh').elements.scope.value;
  const { which } = $('refresh').elements;
  $('refresh-which').hidden = what === 'all';
  which.required = what !== 'all';
  if (what !== 'all') {
    const words = $('refresh-which').querySelector('span');
    words.dataset.t = `refresh.which.${what}`;
    text(words, t(words.dataset.t));
  }
}

/** Resolves to whether the operator lets a loss through, told what it is. */
function confirmed() {
  const held = current.status?.feed.held;
  text($('loss-text'), held ? t('loss.held', { tenants: number(held.tenants), numbers: number(held.numbers) }) : t('loss.nothing'));
  const dialog = $('loss');
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((answer) => {
    dialog.addEventListener('close', () => answer(dialog.returnValue === 'yes'), { once: true });
  });
}

async function place(what, body) {
  if (order && !order.ended) return;
  order = { what, since: Date.now() };
  showOrder(current);
  $('order').scrollIntoView({ block: 'nearest' });
  try {
    order.reply = await post(`/v1/admin/${what}`, body);
  } catch {
    order.lost = true;
  }
  order.ended = true;
  showOrder(current);
}

export function showOrder({ status, sample }) {
  $('order').hidden = !order;
  for (const button of [$('refresh'), $('verify')].map((form) => form.querySelector('[type=submit]'))) {
    button.setAttribute('aria-disabled', String(Boolean(order && !order.ended)));
  }
  if (!order) return;
  $('order-progress').hidden = Boolean(order.ended);
  if (!order.ended) {
    const feed = sample?.feed ?? status?.feed.state ?? 'idle';
    text($('order-text'), t(`order.running.${order.what}`));
    // Moves each second, so beside what is read out.
    text($('order-now'), t('order.now', {
      elapsed: duration(Math.floor((Date.now() - order.since) / 1000) * 1000), feed: t(`feed.${feed}`), behind: number(sample?.behind ?? 0),
    }));
    $('order-result').replaceChildren();
    return;
  }
  text($('order-now'), '');
  const [tone, words, more] = outcome();
  $('order').dataset.tone = tone;
  text($('order-text'), words);
  const known = words + document.documentElement.lang;
  if ($('order-result').dataset.known === known && $('order-result').childNodes.length) return;
  $('order-result').dataset.known = known;
  $('order-result').replaceChildren(...more);
}

function outcome() {
  if (order.lost) return ['warn', t('order.lost'), []];
  const { ok, code, body } = order.reply;
  if (!ok) {
    const known = has(`refused.${body.status}`);
    const why = known ? t(`refused.${body.status}`) : body.message;
    return ['bad', t('order.failed', { why }), known ? [el('p', { class: 'hint', lang: 'en' }, body.message)] : []];
  }
  if (code === 202) return ['good', t('order.accepted'), []];
  const figures = Object.fromEntries(Object.entries(body).filter(([, value]) => typeof value === 'number').map(([name, value]) => [name, number(value)]));
  const words = t(`order.done.${order.what}`, { ...figures, elapsed: duration(body.elapsed_ms) });
  const held = body.held ? ` ${t('order.held')}` : '';
  const more = body.first?.length
    ? [table(t('order.differences'), [t('rows.table'), t('rows.key'), t('order.what')], body.first.map((one) => [el('code', {}, one.table), el('code', {}, one.key), one.what]))]
    : [];
  return [body.held || body.differences ? 'warn' : 'good', words + held, more];
}

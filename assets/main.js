// Wires the parts together. State flows one way: events of the node change it, and every part shows it.

import { $, text } from './dom.js';
import { follow, onTokenWanted, setToken } from './api.js';
import { applyLanguage, chooseLanguage, t } from './i18n.js';
import { showHealth } from './health.js';
import { addSample, showPlots } from './plots.js';
import { showAnswer, wireAsk } from './ask.js';
import { showOrder, wireOrders } from './orders.js';

/** What is known: the last status and sample, whether the node is heard, since when it is so. */
const state = { status: null, sample: null, heard: null, since: Date.now(), why: '' };

function show() {
  showHealth(state);
  showOrder(state);
}

function showAll() {
  applyLanguage();
  show();
  showPlots();
  showAnswer();
}

for (const button of document.querySelectorAll('[data-language]')) {
  button.addEventListener('click', () => {
    chooseLanguage(button.dataset.language);
    showAll();
  });
}

onTokenWanted((wrong) => new Promise((given) => {
  text($('token-wrong'), wrong ? t('token.wrong') : '');
  $('token-form').onsubmit = () => {
    setToken($('token-value').value.trim());
    $('token-value').value = '';
    given();
  };
  // There is nothing behind it to go back to.
  $('token').oncancel = (event) => event.preventDefault();
  if (!$('token').open) $('token').showModal();
}));

wireAsk();
wireOrders(state);
showAll();
setInterval(show, 1000); // ages grow without events

follow('/v1/admin/events', {
  event(name, data) {
    if (name === 'status') {
      state.status = data;
    } else if (name === 'sample') {
      state.sample = data;
      addSample(data);
    }
    show();
  },
  contact(heard, why) {
    if (state.heard !== heard) state.since = Date.now();
    state.heard = heard;
    state.why = why;
    show();
  },
});

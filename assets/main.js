// Wires the parts together. State flows one way: events of the node change it, and every part shows it.

import { $, text } from './dom.js';
import { follow, onTokenWanted, setToken } from './api.js';
import { applyLanguage, chooseLanguage, setClock, t } from './i18n.js';
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
  const [dialog, field] = [$('token'), $('token-value')];
  text($('token-wrong'), wrong ? t('token.wrong') : '');
  dialog.onclose = () => {
    const token = field.value.trim();
    field.value = '';
    if (dialog.returnValue === 'given' && token) {
      setToken(token);
      given();
    } else {
      dialog.showModal(); // there is nothing behind it to go back to
    }
  };
  dialog.returnValue = '';
  dialog.showModal();
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
      setClock(data.at);
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

// Five minutes of samples, one plot for each question. Drawn by uPlot; the newest figures stand above each as text.

/* global uPlot */
import { $, el, text } from './dom.js';
import { duration, percent, short, t } from './i18n.js';

const SPAN_S = 300;
const HEIGHT = 140;
/** A pause longer than this is a gap in the line. */
const GAP_S = 2.5;

const sum = (calls, names) => names.reduce((all, name) => all + (calls[name] ?? 0), 0);
const GROUPS = {
  answered: ['ok'],
  refused: ['tenant_suspended', 'inactive_number', 'unknown_number', 'forbidden', 'credentials_need_unix_socket'],
  wrong: ['invalid_number', 'bad_request', 'no_such_route', 'method_not_allowed'],
  failed: ['credentials_stale', 'not_ready', 'overloaded', 'internal'],
};

/** What is plotted: of a sample, each series by name and colour; how a value is written; what none means. */
const PLOTS = [
  {
    id: 'calls',
    series: [['answered', 'good'], ['refused', 'accent'], ['wrong', 'warn'], ['failed', 'bad']],
    of: ({ calls }) => Object.values(GROUPS).map((names) => sum(calls, names)),
    say: (value) => `${short(value)}/s`,
    quiet: true,
  },
  { id: 'duration', series: [['median', 'good'], ['p99', 'accent']], of: (s) => [s.p50_ms, s.p99_ms], say: duration, none: 'plot.nothing' },
  { id: 'staleness', series: [['age', 'accent']], of: (s) => [s.staleness_ms], say: duration },
  { id: 'visible', series: [['median', 'good'], ['p99', 'accent']], of: (s) => [s.visible_p50_ms, s.visible_p99_ms], say: duration, none: 'plot.nochange' },
  { id: 'connections', series: [['callers', 'good'], ['watchers', 'accent']], of: (s) => [s.connections, s.watchers], say: short },
  { id: 'hits', series: [['share', 'good']], of: (s) => [s.hit_ratio], say: percent, none: 'plot.nothing', range: [0, 1] },
];

const samples = [];
const drawn = new Map();

export function addSample(sample) {
  const at = sample.at / 1000;
  const last = samples.at(-1);
  if (last && at <= last.at) return; // the clock was set back
  if (last && at - last.at > GAP_S) samples.push({ at: last.at + 1, gap: true });
  samples.push({ at, ...of(sample) });
  while (samples[0].at < at - SPAN_S) samples.shift();
  for (const plot of PLOTS) drawn.get(plot.id)?.setData(data(plot));
  captions();
}

const of = (sample) => Object.fromEntries(PLOTS.map((plot) => [plot.id, plot.of(sample)]));

function data(plot) {
  // What never happened has no line along the bottom.
  const silent = (index) => plot.quiet && index > 0 && !samples.some((sample) => sample[plot.id]?.[index] > 0);
  const line = (index) => samples.map((sample) => (sample.gap || silent(index) ? null : sample[plot.id][index] ?? null));
  return [samples.map((sample) => sample.at), ...plot.series.map((_, index) => line(index))];
}

/** Draws everything anew: at first, in another language, in other colours. */
export function showPlots() {
  const places = PLOTS.map((plot) => el('figure', { class: 'plot' },
    el('figcaption', {}, el('strong', {}, t(`plot.${plot.id}`)), el('span', { id: `plot-${plot.id}`, class: 'figures' })),
    el('div', { class: 'canvas', 'aria-hidden': 'true' })));
  for (const chart of drawn.values()) chart.destroy();
  drawn.clear();
  $('plots').replaceChildren(...places);
  PLOTS.forEach((plot, index) => drawn.set(plot.id, draw(plot, places[index].querySelector('.canvas'))));
  captions();
}

function draw(plot, place) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { stroke: colour('muted'), font, grid: { stroke: colour('line'), width: 1 }, ticks: { show: false } };
  const last = () => samples.at(-1)?.at ?? Date.now() / 1000;
  const chart = new uPlot({
    width: Math.max(place.clientWidth, 100),
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    select: { show: false },
    scales: {
      x: { range: () => [last() - SPAN_S, last()] },
      y: { range: plot.range ?? ((_, low, high) => [0, high > 0 ? high * 1.15 : 1]) },
    },
    axes: [
      { ...axis, space: 60, size: 26, values: (_, at) => at.map((s) => new Date(s * 1000).toTimeString().slice(0, 5)), incrs: [60, 120, 300] },
      { ...axis, space: 34, size: 62, values: (_, at) => at.map((value) => (value === 0 ? '0' : plot.say(value))) },
    ],
    series: [{}, ...plot.series.map(([name, hue], index) => ({
      label: name,
      stroke: colour(hue),
      width: 1.75,
      dash: index === 1 ? [5, 3] : index === 2 ? [2, 3] : undefined,
      // A second without calls is a gap, so that a single one must be seen alone.
      points: plot.none ? { show: true, size: 4, fill: colour(hue) } : { show: false },
    }))],
  }, data(plot), place);
  return chart;
}

function captions() {
  const newest = samples.findLast((sample) => !sample.gap);
  for (const plot of PLOTS) {
    const values = newest?.[plot.id] ?? [];
    const shown = plot.series
      .map(([name, hue], index) => [name, hue, values[index]])
      .filter(([, , value], index) => value !== null && value !== undefined && (!plot.quiet || index === 0 || value > 0));
    const place = $(`plot-${plot.id}`);
    if (!place) continue;
    const words = shown.map(([name, hue, value]) => [`${plot.series.length > 1 ? `${t(`series.${name}`)} ` : ''}${plot.say(value)}`, hue]);
    if (!words.length) {
      text(place, newest ? t(plot.none ?? 'unknown') : '…');
    } else if (place.textContent !== words.map(([word]) => word).join('')) {
      place.replaceChildren(...words.map(([word, hue]) => el('span', { 'data-hue': hue }, word)));
    }
  }
}

new ResizeObserver(() => {
  for (const chart of drawn.values()) {
    const width = chart.root.parentElement?.clientWidth;
    if (width && width !== chart.width) chart.setSize({ width, height: HEIGHT });
  }
}).observe($('plots'));

matchMedia('(prefers-color-scheme: dark)').addEventListener('change', showPlots);


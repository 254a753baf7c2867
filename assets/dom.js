// Elements from values. What comes from rows becomes text and attributes, never markup.

export const $ = (id) => document.getElementById(id);

/** An element; strings among the children become text, what is null is left out. */
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Sets the text, but only when it is another one: a screen reader tells each change. */
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

/** A table with a caption that is read out; rows are lists of cells. */
export function table(caption, heads, rows) {
  const cell = (value) => el('td', {}, value);
  return el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption },
    el('table', {},
      el('caption', {}, caption),
      el('thead', {}, el('tr', {}, heads.map((head) => el('th', { scope: 'col' }, head)))),
      el('tbody', {}, rows.map((row) => el('tr', {}, row.map(cell))))));
}

/** Names and values. */
export function facts(pairs) {
  return pairs.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]);
}

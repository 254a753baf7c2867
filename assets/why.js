// The node's reasons are English sentences; here they are said in Spanish. One that is not known is shown as it came.

import { el } from './dom.js';
import { language } from './i18n.js';

/** Sentences and how they are said, with their places, in the order in which they are tried. */
const SPANISH = [
  [/^it applies, but does not fit into limits\.stack_bytes after those before it$/, () => 'se aplica, pero no cabe en limits.stack_bytes tras los anteriores'],
  [/^it is global and has no bindings$/, () => 'es global y no tiene vinculaciones'],
  [/^binding (\S+) matches$/, (id) => `coincide la vinculación ${id}`],
  [/^it is not active$/, () => 'no está activo'],
  [/^it has no version$/, () => 'no tiene ninguna versión'],
  [/^none of its bindings matches$/, () => 'no coincide ninguna de sus vinculaciones'],
  [/^all of its bindings are bad rows, which never match$/, () => 'todas sus vinculaciones son filas defectuosas, que nunca coinciden'],
  [/^its scope is (\S+) and it has no binding$/, (scope) => `su ámbito es ${scope} y no tiene vinculaciones`],
  [/^its scope is (\S+) and no binding that matches sets (\S+)$/, (scope, column) => `su ámbito es ${scope} y ninguna vinculación que coincida fija ${column}`],
  [/^matches and acts, the most special that does$/, () => 'coincide y actúa, por ser la más específica de las que coinciden'],
  [/^matches, but does not set (\S+)$/, (column) => `coincide, pero no fija ${column}`],
  [/^matches and does not act$/, () => 'coincide y no actúa'],
  [/^(account_ref|event_type) (.*) is not the call's: (.*)$/s, (column, wanted, said) => `${column} ${wanted} no es el de la llamada: ${spanish(said) ?? said}`],
  [/^phone_number_id is not the called number's$/, () => 'phone_number_id no es el del número llamado'],
  [/^condition (.*) does not hold: (.*)$/s, (condition, said) => `la condición ${condition} no se cumple: ${spanish(said) ?? said}`],
  [/^the call has no (.*)$/s, (name) => `la llamada no trae ${name}`],
  [/^the call's (\S+) is (.*)$/s, (name, value) => `${name} de la llamada es ${value}`],
  [/^the call's (\S+) are (.*)$/s, (name, values) => `${name} de la llamada son ${values}`],
  [/^the call says itself whether it is outside business hours$/, () => 'la propia llamada dice si está fuera del horario de atención'],
  [/^the tenant is open at this local time$/, () => 'el tenant está abierto a esta hora local'],
  [/^the tenant is closed at this local time$/, () => 'el tenant está cerrado a esta hora local'],
  [/^the tenant has no business hours$/, () => 'el tenant no tiene horario de atención'],
  [/^(\S+) of the number; no binding that acts overrides it$/, (column) => `${column} del número; ninguna vinculación que actúe lo cambia`],
  [/^(\S+) of the tenant's settings; no binding that acts overrides it$/, (column) => `${column} de los ajustes del tenant; ninguna vinculación que actúe lo cambia`],
  [/^no settings row of the tenant is in force$/, () => 'no hay ninguna fila de ajustes del tenant en vigor'],
  [/^(\S+) of binding (\S+), which acts for prompt (\S+), the last in the stack with this override$/, (effect, binding, prompt) => `${effect} de la vinculación ${binding}, que actúa por el prompt ${prompt}, el último de la pila que lo cambia`],
];

export function spanish(sentence) {
  for (const [shape, say] of SPANISH) {
    const places = sentence.match(shape);
    if (places) return say(...places.slice(1));
  }
  return null;
}

/** What a badge and an id beside the reason say already. */
const SAID = /^(chosen|not chosen|left out|binding \S+): /;

/** A reason in the language chosen. */
export function why(reason) {
  const sentence = reason.replace(SAID, '');
  const said = language() === 'es' ? spanish(sentence) : null;
  return said === null ? el('span', { lang: 'en' }, sentence) : el('span', {}, said);
}

// What the page says, in English and Spanish. The browser's language is the default, the choice is remembered.

const KEPT = 'sidetone-language';

const en = {
  skip: 'Skip to the state of the node',
  language: 'Language',
  api: 'Every route of the daemon, described',
  'contact.wait': 'connecting …',
  'contact.yes': 'live',
  'contact.no': 'no contact for {ago}',

  'verdict.wait': 'Asking the node …',
  'verdict.good': 'Answering, level with Postgres',
  'verdict.good.more': 'Nothing to do.',
  'verdict.catching': 'Answering, catching up with Postgres',
  'verdict.warn': 'Answering, but this needs a look',
  'verdict.cutoff': 'Answering from its own copy, cut off from Postgres',
  'verdict.bad': 'Calls are not answered as they should be',
  'verdict.silent': 'This page hears nothing from the node',
  'verdict.more': 'What is known and what to do:',

  'finding.silent': 'Nothing was heard for {ago}; what stands below is from before. {why}',
  'finding.silent.do': 'Is the daemon running (systemctl status sidetone), does the tunnel stand? The page tries again by itself.',
  'finding.notready': 'The node has no complete copy yet: calls get “not_ready”.',
  'finding.notready.do': 'It copies as soon as it reaches Postgres. On the node: sidetone check.',
  'finding.feed': 'No connection to Postgres since {since} ({ago}): {error}',
  'finding.feed.do': 'Calls are answered from the copy on disk meanwhile. On the node, sidetone check says what is missing; the node tries again by itself.',
  'finding.stale': 'Answers are {age} old, older than feed.stale_after ({limit}) allows.',
  'finding.stale.do': 'They are given all the same, marked as stale. Fresh again as soon as Postgres is reached.',
  'finding.refused': 'Credentials are refused: the node has not been level with Postgres for too long.',
  'finding.refused.do': 'Calls that ask for credentials get “credentials_stale”. Restore the connection to Postgres.',
  'finding.held': 'A loss is held back since {since}. Postgres no longer has what this node answers for (tenants: {tenants}, numbers: {numbers}).',
  'finding.held.do': 'If that is right, refresh below and accept the loss. If not, restore the rows in Postgres; nothing is lost here.',
  'finding.database': 'The database has no tenant in common with this node’s copy; nothing is taken from it.',
  'finding.database.do': 'Is postgres.url the right database? If it is, refresh below and accept the loss.',
  'finding.armed': 'Triggers are missing or disabled in Postgres: changes may go unnoticed until the next comparison.',
  'finding.armed.do': 'sidetone check names them; sidetone migrate, as the owner of the tables, puts them back.',
  'finding.deaf': 'Notifications are not heard; changes arrive with the heartbeat.',
  'finding.deaf.do': 'Is a pooler in transaction mode between the node and Postgres?',
  'finding.schema': 'The schema in Postgres is version {found}, this build needs {needed}.',
  'finding.schema.do': 'Run sidetone migrate as the owner of the tables, or install the build that fits.',
  'finding.rows': 'Rows that are not in force as they stand in Postgres: {count}.',
  'finding.rows.do': 'Each stands below with its reason. Where there was a good row before, that one answers.',

  'tile.ready': 'Answering',
  'tile.fresh': 'Age of answers',
  'tile.feed': 'Feed from Postgres',
  'tile.held': 'Held back',
  'tile.quarantined': 'Bad rows',
  'tile.error': 'Last error',
  yes: 'yes',
  no: 'no',
  none: 'none',
  unknown: '–',
  'ready.note': 'numbers: {numbers}, tenants: {tenants}; up since {since}',
  'fresh.fresh': 'fresh; stale after {limit}',
  'fresh.stale': 'stale; the limit is {limit}',
  'feed.level': 'level',
  'feed.pulling': 'pulling',
  'feed.idle': 'not started',
  'feed.connecting': 'connecting',
  'feed.listening': 'not level',
  'feed.backoff': 'cut off',
  'feed.note': 'since {since} ({ago})',
  'feed.behind': 'changed keys to apply: {count}',
  'held.none': 'nothing',
  'held.note': 'tenants: {tenants}, numbers: {numbers}',
  'error.note': '{at}: {text}',
  'error.healed': 'healed',
  'error.now': 'going on',

  plots: 'The last five minutes',
  'plot.calls': 'Calls a second',
  'plot.duration': 'Time to answer',
  'plot.staleness': 'Age of answers',
  'plot.visible': 'Commit to answer',
  'plot.hits': 'Answered from memory',
  'plot.connections': 'Open connections',
  'series.answered': 'answered',
  'series.refused': 'refused',
  'series.wrong': 'not understood',
  'series.failed': 'failed',
  'series.median': 'half within',
  'series.p99': '99 % within',
  'series.callers': 'callers',
  'series.watchers': 'watchers',
  'plot.nothing': 'no calls',
  'plot.nochange': 'no changes',

  ask: 'Ask for a call',
  'ask.hint': 'What a call would be told, and why. It is not counted as a call; secrets and prompts’ contents are not shown.',
  'ask.to': 'Number called',
  'ask.zones': 'zone, several with commas',
  'ask.hours.reckoned': 'as reckoned',
  'ask.at': 'Instant, in this browser’s time zone (empty: now)',
  'ask.attributes': 'Other attributes',
  'ask.name': 'Name',
  'ask.value': 'Value',
  'ask.more': 'Add an attribute',
  'ask.less': 'Remove',
  'ask.submit': 'Ask',
  'ask.asking': 'Asking …',
  'ask.failed': 'The question could not be asked: {why}',
  'answer.ok': '{number} is answered ({tenant}); prompts chosen: {prompts} of {all}.',
  'answer.no': 'A call gets “{status}”: {message}',
  'answer.fields': 'Each field and the row it is from',
  'answer.field': 'Field',
  'answer.is': 'Value',
  'answer.from': 'From',
  'answer.why': 'Why',
  'answer.empty': '(empty)',
  'answer.prompts': 'Prompts, in the order of the stack',
  'answer.noprompts': 'The tenant has no prompts.',
  'answer.chosen': 'chosen',
  'answer.notchosen': 'not chosen',
  'answer.prompt': '{scope}, priority {priority}, version {version}, {bytes}',
  'answer.matches': 'matches',
  'answer.acts': 'matches and acts',
  'answer.nomatch': 'does not match',
  'answer.bindings': 'Bindings',
  'answer.nobindings': 'no bindings',
  'answer.leftout': 'Bad bindings left out: {count}. ',
  'answer.notlisted': 'Further bindings, not listed: {count}.',
  'answer.hours': 'Business hours',
  'hours.open': 'open',
  'hours.closed': 'closed',
  'hours.': 'none',
  'answer.revision': 'Revision',
  'answer.tenant': 'Tenant',
  'answer.at': 'Instant',
  'answer.credentials': 'Credentials, by name',
  'answer.provider': 'Provider',
  'answer.opens': 'opens',
  'answer.withheld': 'withheld',
  'answer.faults': 'Bad rows of this number and tenant',
  'answer.raw': 'The short view as the call gets it',

  rows: 'Rows that are not in force as they stand in Postgres',
  'rows.none': 'None: every row is in force.',
  'rows.caption': '{shown} of {count} rows',
  'rows.table': 'Table',
  'rows.key': 'Key',
  'rows.reason': 'Reason',
  'rows.detail': 'What is wrong',
  'rows.force': 'In force instead',
  'rows.lastgood': 'the last good row',
  'rows.leftout': 'nothing: left out',
  'rows.held': 'Held back since {since}, and still answered for though Postgres no longer has them: tenants: {tenants}, numbers: {numbers}.',

  orders: 'Refresh and verify',
  'refresh.what': 'Refresh',
  'refresh.hint': 'Pulls from Postgres now and compares. Needed only when something went past the triggers; calls are answered meanwhile.',
  'refresh.all': 'everything',
  'refresh.tenant': 'one tenant',
  'refresh.number': 'one number',
  'refresh.which.tenant': 'Slug or id of the tenant',
  'refresh.which.number': 'Number',
  'refresh.wait': 'wait until this node answers with it',
  'refresh.accept': 'accept a loss that is held back',
  'refresh.submit': 'Refresh',
  'verify.what': 'Verify',
  'verify.hint': 'Compares every row here with Postgres by hash and repairs what differs. Differences that no change had announced must be 0.',
  'verify.submit': 'Verify and repair',
  'order.progress': 'Progress',
  'order.running.refresh': 'Refreshing …',
  'order.running.verify': 'Verifying …',
  'order.now': '{elapsed}; feed: {feed}; changed keys to apply: {behind}',
  'order.accepted': 'Ordered; the feed does it as soon as it can.',
  'order.done.refresh': 'Refreshed in {elapsed}. Rows read: {read}, written: {written}, removed: {removed}.',
  'order.done.verify': 'Verified in {elapsed}. Compared tenants: {tenants}, numbers: {numbers}. Differences: {differences}, rows repaired: {repaired}.',
  'order.held': 'A loss was held back instead of carried out.',
  'order.failed': 'Not done: {why}',
  'order.lost': 'The connection was lost before the end; the order goes on in the node.',
  'order.differences': 'Rows that differed',
  'order.what': 'Here it was',

  details: 'Everything the node says of itself',

  token: 'This port asks for a token',
  'token.hint': 'The one in admin.token_file on the node. It is kept for this tab only.',
  'token.label': 'Token',
  'token.submit': 'Go on',
  'token.wrong': 'That was not it.',

  'refused.not_ready': 'Postgres cannot be reached. Calls are answered all the same.',
  'refused.unknown_tenant': 'there is no such tenant, in Postgres or here.',
  'refused.invalid_number': 'this is no phone number.',
  'refused.other_database': 'the database has no tenant in common with this node’s copy; if that is right, accept the loss.',
  'refused.overloaded': 'too many orders are waiting; try again later.',
  'refused.stopping': 'the daemon is stopping.',
  'refused.timeout': 'it takes longer than anybody waits; it goes on in the node, see the state of the feed.',

  loss: 'Let the loss through?',
  'loss.held': 'Held back at present, because Postgres no longer has them: tenants: {tenants}, numbers: {numbers}. Their calls would get “unknown_number”.',
  'loss.nothing': 'Nothing is held back at present.',
  'loss.hint': 'What Postgres no longer has by the time of the refresh is removed from this node, however much it is.',
  'loss.no': 'Keep holding it',
  'loss.yes': 'Let it through',

  'status.unknown_number': 'nobody has this number.',
  'status.inactive_number': 'the number is not active.',
  'status.tenant_suspended': 'the tenant is not active.',
  'status.not_ready': 'the node cannot answer for it yet.',
  'status.invalid_number': 'this is no phone number.',
};

const es = {
  skip: 'Ir al estado del nodo',
  language: 'Idioma',
  api: 'Todas las rutas del servicio, descritas',
  'contact.wait': 'conectando …',
  'contact.yes': 'en vivo',
  'contact.no': 'sin contacto desde hace {ago}',

  'verdict.wait': 'Consultando al nodo …',
  'verdict.good': 'Responde, al día con Postgres',
  'verdict.good.more': 'No hay nada que hacer.',
  'verdict.catching': 'Responde, poniéndose al día con Postgres',
  'verdict.warn': 'Responde, pero hay algo que mirar',
  'verdict.cutoff': 'Responde con su propia copia, aislado de Postgres',
  'verdict.bad': 'Las llamadas no reciben la respuesta debida',
  'verdict.silent': 'Esta página no recibe nada del nodo',
  'verdict.more': 'Qué se sabe y qué hacer:',

  'finding.silent': 'No llega nada desde hace {ago}; lo de abajo es anterior. {why}',
  'finding.silent.do': '¿Está en marcha el daemon (systemctl status sidetone)? ¿Sigue en pie el túnel? La página vuelve a intentarlo sola.',
  'finding.notready': 'El nodo aún no tiene una copia completa: las llamadas reciben «not_ready».',
  'finding.notready.do': 'Copiará en cuanto alcance Postgres. En el nodo: sidetone check.',
  'finding.feed': 'Sin conexión con Postgres desde {since} ({ago}): {error}',
  'finding.feed.do': 'Mientras tanto se responde con la copia en disco. En el nodo, sidetone check dice qué falta; el nodo vuelve a intentarlo solo.',
  'finding.stale': 'Las respuestas tienen {age}, más de lo que admite feed.stale_after ({limit}).',
  'finding.stale.do': 'Se dan de todos modos, marcadas como atrasadas. Volverán a ser recientes en cuanto se alcance Postgres.',
  'finding.refused': 'Se niegan las credenciales: hace demasiado que el nodo no está al día con Postgres.',
  'finding.refused.do': 'Las llamadas que piden credenciales reciben «credentials_stale». Hay que restablecer la conexión con Postgres.',
  'finding.held': 'Se retiene una pérdida desde {since}. Postgres ya no tiene algo por lo que este nodo responde (tenants: {tenants}, números: {numbers}).',
  'finding.held.do': 'Si es correcto, actualice abajo aceptando la pérdida. Si no, restaure las filas en Postgres; aquí no se ha perdido nada.',
  'finding.database': 'La base de datos no tiene ningún tenant en común con la copia de este nodo; no se toma nada de ella.',
  'finding.database.do': '¿Es postgres.url la base correcta? Si lo es, actualice abajo aceptando la pérdida.',
  'finding.armed': 'Faltan disparadores en Postgres o están desactivados: puede haber cambios que no se noten hasta la próxima comparación.',
  'finding.armed.do': 'sidetone check dice cuáles; sidetone migrate, como dueño de las tablas, los repone.',
  'finding.deaf': 'No se oyen las notificaciones; los cambios llegan con el latido.',
  'finding.deaf.do': '¿Hay un pooler en modo transacción entre el nodo y Postgres?',
  'finding.schema': 'El esquema en Postgres es la versión {found}; este programa necesita la {needed}.',
  'finding.schema.do': 'Ejecute sidetone migrate como dueño de las tablas, o instale el programa que corresponda.',
  'finding.rows': 'Filas que no están en vigor tal como figuran en Postgres: {count}.',
  'finding.rows.do': 'Cada una figura abajo con su motivo. Donde había una fila buena, se responde con ella.',

  'tile.ready': 'Responde',
  'tile.fresh': 'Antigüedad de las respuestas',
  'tile.feed': 'Flujo desde Postgres',
  'tile.held': 'Retenido',
  'tile.quarantined': 'Filas defectuosas',
  'tile.error': 'Último error',
  yes: 'sí',
  no: 'no',
  none: 'ninguno',
  unknown: '–',
  'ready.note': 'números: {numbers}, tenants: {tenants}; en marcha desde {since}',
  'fresh.fresh': 'recientes; el límite es {limit}',
  'fresh.stale': 'atrasadas; el límite es {limit}',
  'feed.level': 'al día',
  'feed.pulling': 'leyendo',
  'feed.idle': 'sin empezar',
  'feed.connecting': 'conectando',
  'feed.listening': 'no al día',
  'feed.backoff': 'aislado',
  'feed.note': 'desde {since} ({ago})',
  'feed.behind': 'claves cambiadas por aplicar: {count}',
  'held.none': 'nada',
  'held.note': 'tenants: {tenants}, números: {numbers}',
  'error.note': '{at}: {text}',
  'error.healed': 'superado',
  'error.now': 'continúa',

  plots: 'Los últimos cinco minutos',
  'plot.calls': 'Llamadas por segundo',
  'plot.duration': 'Tiempo de respuesta',
  'plot.staleness': 'Antigüedad de las respuestas',
  'plot.visible': 'Del commit a la respuesta',
  'plot.hits': 'Respondido desde memoria',
  'plot.connections': 'Conexiones abiertas',
  'series.answered': 'respondidas',
  'series.refused': 'rechazadas',
  'series.wrong': 'no entendidas',
  'series.failed': 'fallidas',
  'series.median': 'la mitad en',
  'series.p99': 'el 99 % en',
  'series.callers': 'llamantes',
  'series.watchers': 'observadores',
  'plot.nothing': 'sin llamadas',
  'plot.nochange': 'sin cambios',

  ask: 'Preguntar por una llamada',
  'ask.hint': 'Qué se le diría a una llamada, y por qué. No cuenta como llamada; no se muestran secretos ni el contenido de los prompts.',
  'ask.to': 'Número llamado',
  'ask.zones': 'zone, varias separadas por comas',
  'ask.hours.reckoned': 'según el horario',
  'ask.at': 'Instante, en el huso horario de este navegador (vacío: ahora)',
  'ask.attributes': 'Otros atributos',
  'ask.name': 'Nombre',
  'ask.value': 'Valor',
  'ask.more': 'Añadir un atributo',
  'ask.less': 'Quitar',
  'ask.submit': 'Preguntar',
  'ask.asking': 'Preguntando …',
  'ask.failed': 'No se pudo preguntar: {why}',
  'answer.ok': '{number} tiene respuesta ({tenant}); prompts elegidos: {prompts} de {all}.',
  'answer.no': 'Una llamada recibe «{status}»: {message}',
  'answer.fields': 'Cada campo y la fila de la que viene',
  'answer.field': 'Campo',
  'answer.is': 'Valor',
  'answer.from': 'De',
  'answer.why': 'Por qué',
  'answer.empty': '(vacío)',
  'answer.prompts': 'Prompts, en el orden de la pila',
  'answer.noprompts': 'El tenant no tiene prompts.',
  'answer.chosen': 'elegido',
  'answer.notchosen': 'no elegido',
  'answer.prompt': '{scope}, prioridad {priority}, versión {version}, {bytes}',
  'answer.matches': 'coincide',
  'answer.acts': 'coincide y actúa',
  'answer.nomatch': 'no coincide',
  'answer.bindings': 'Vinculaciones',
  'answer.nobindings': 'sin vinculaciones',
  'answer.leftout': 'Vinculaciones defectuosas omitidas: {count}. ',
  'answer.notlisted': 'Otras vinculaciones, sin mostrar: {count}.',
  'answer.hours': 'Horario de atención',
  'hours.open': 'abierto',
  'hours.closed': 'cerrado',
  'hours.': 'ninguno',
  'answer.revision': 'Revisión',
  'answer.tenant': 'Tenant',
  'answer.at': 'Instante',
  'answer.credentials': 'Credenciales, por nombre',
  'answer.provider': 'Proveedor',
  'answer.opens': 'se abre',
  'answer.withheld': 'retenida',
  'answer.faults': 'Filas defectuosas de este número y tenant',
  'answer.raw': 'La vista corta tal como la recibe la llamada',

  rows: 'Filas que no están en vigor tal como figuran en Postgres',
  'rows.none': 'Ninguna: todas las filas están en vigor.',
  'rows.caption': '{shown} de {count} filas',
  'rows.table': 'Tabla',
  'rows.key': 'Clave',
  'rows.reason': 'Motivo',
  'rows.detail': 'Qué tiene de malo',
  'rows.force': 'En vigor en su lugar',
  'rows.lastgood': 'la última fila buena',
  'rows.leftout': 'nada: omitida',
  'rows.held': 'Retenido desde {since}; se sigue respondiendo aunque Postgres ya no los tenga: tenants: {tenants}, números: {numbers}.',

  orders: 'Actualizar y verificar',
  'refresh.what': 'Actualizar',
  'refresh.hint': 'Lee ya de Postgres y compara. Solo hace falta si algo eludió los disparadores; mientras tanto se sigue respondiendo.',
  'refresh.all': 'todo',
  'refresh.tenant': 'un tenant',
  'refresh.number': 'un número',
  'refresh.which.tenant': 'Slug o id del tenant',
  'refresh.which.number': 'Número',
  'refresh.wait': 'esperar a que este nodo responda con ello',
  'refresh.accept': 'aceptar una pérdida retenida',
  'refresh.submit': 'Actualizar',
  'verify.what': 'Verificar',
  'verify.hint': 'Compara por hash cada fila de aquí con Postgres y repara las que difieren. Las diferencias que ningún cambio anunció deben ser 0.',
  'verify.submit': 'Verificar y reparar',
  'order.progress': 'Progreso',
  'order.running.refresh': 'Actualizando …',
  'order.running.verify': 'Verificando …',
  'order.now': '{elapsed}; flujo: {feed}; claves cambiadas por aplicar: {behind}',
  'order.accepted': 'Ordenado; se hará en cuanto se pueda.',
  'order.done.refresh': 'Actualizado en {elapsed}. Filas leídas: {read}, escritas: {written}, eliminadas: {removed}.',
  'order.done.verify': 'Verificado en {elapsed}. Tenants comparados: {tenants}, números: {numbers}. Diferencias: {differences}, filas reparadas: {repaired}.',
  'order.held': 'Se retuvo una pérdida en lugar de aplicarla.',
  'order.failed': 'No se hizo: {why}',
  'order.lost': 'La conexión se perdió antes del final; la orden sigue en el nodo.',
  'order.differences': 'Filas que diferían',
  'order.what': 'Aquí estaba',

  details: 'Todo lo que el nodo dice de sí mismo',

  token: 'Este puerto pide un token',
  'token.hint': 'El que está en admin.token_file en el nodo. Se guarda solo para esta pestaña.',
  'token.label': 'Token',
  'token.submit': 'Continuar',
  'token.wrong': 'No era ese.',

  'refused.not_ready': 'no se alcanza Postgres. A las llamadas se les responde de todos modos.',
  'refused.unknown_tenant': 'no existe ese tenant, ni en Postgres ni aquí.',
  'refused.invalid_number': 'esto no es un número de teléfono.',
  'refused.other_database': 'la base de datos no tiene ningún tenant en común con la copia de este nodo; si es correcto, acepte la pérdida.',
  'refused.overloaded': 'hay demasiadas órdenes en espera; inténtelo más tarde.',
  'refused.stopping': 'el daemon se está deteniendo.',
  'refused.timeout': 'tarda más de lo que nadie espera; sigue en el nodo, véase el estado del flujo.',

  loss: '¿Dejar pasar la pérdida?',
  'loss.held': 'Retenido ahora, porque Postgres ya no los tiene: tenants: {tenants}, números: {numbers}. Sus llamadas recibirían «unknown_number».',
  'loss.nothing': 'Ahora no hay nada retenido.',
  'loss.hint': 'Lo que Postgres ya no tenga al actualizar se elimina de este nodo, por mucho que sea.',
  'loss.no': 'Seguir reteniéndola',
  'loss.yes': 'Dejarla pasar',

  'status.unknown_number': 'nadie tiene este número.',
  'status.inactive_number': 'el número no está activo.',
  'status.tenant_suspended': 'el tenant no está activo.',
  'status.not_ready': 'el nodo aún no puede responder por él.',
  'status.invalid_number': 'no es un número de teléfono.',
};

export const messages = { en, es };

let chosen = remembered() ?? (navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => tag in messages) ?? 'en');

function remembered() {
  const kept = localStorage.getItem(KEPT);
  return kept in messages ? kept : null;
}

export const language = () => chosen;

export function chooseLanguage(to) {
  chosen = to;
  localStorage.setItem(KEPT, to);
}

export const has = (key) => key in messages[chosen];

/** What to say, its places filled in. */
export function t(key, places = {}) {
  return (messages[chosen][key] ?? key).replace(/\{(\w+)\}/g, (_, name) => places[name] ?? '');
}

/** Says everything that stands in the document itself in the language chosen. */
export function applyLanguage() {
  document.documentElement.lang = chosen;
  for (const node of document.querySelectorAll('[data-t]')) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll('[data-t-label]')) node.setAttribute('aria-label', t(node.dataset.tLabel));
  for (const node of document.querySelectorAll('[data-language]')) {
    node.setAttribute('aria-pressed', String(node.dataset.language === chosen));
  }
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(chosen, { maximumFractionDigits: digits }).format(value);
}

/** As many digits as tell something. */
export function short(value) {
  return new Intl.NumberFormat(chosen, { maximumSignificantDigits: 3 }).format(value);
}

export function percent(value) {
  return new Intl.NumberFormat(chosen, { style: 'percent', maximumFractionDigits: 1 }).format(value);
}

export function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const step = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(value, 1)) / 10));
  return `${short(value / 1024 ** step)} ${units[step]}`;
}

/** A length of time in its two largest units. */
export function duration(ms) {
  if (ms === 0) return '0 s';
  if (ms < 1) return `${short(ms * 1000)} µs`;
  if (ms < 1000) return `${short(ms)} ms`;
  if (ms < 60_000) return `${number(ms / 1000, 1)} s`;
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 60) return `${minutes} min ${Math.floor((ms % 60_000) / 1000)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** A moment: the time of day, and the day where it is another one. */
export function moment(at) {
  const when = new Date(at);
  const today = when.toDateString() === new Date().toDateString();
  return new Intl.DateTimeFormat(chosen, { hourCycle: 'h23', timeStyle: 'medium', ...(today ? {} : { dateStyle: 'medium' }) }).format(when);
}

/** How far the node's clock is ahead of this browser's. */
let ahead = 0;

export function setClock(at) {
  ahead = at - Date.now();
}

/** How long ago something was by the node's clock. */
export const ago = (at) => duration(Math.max(0, Math.floor((Date.now() + ahead - new Date(at)) / 1000) * 1000));

/** How long ago something was by this browser's. */
export const agoHere = (at) => duration(Math.max(0, Math.floor((Date.now() - at) / 1000) * 1000));

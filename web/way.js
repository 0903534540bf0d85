// A column of the handshake page: what one way of hearing knows, what it cost, and how far it is behind the others.

const FRIENDS_SHOWN = 6;
const LOG_KEPT = 80;
const TEXT_SHOWN_MAX = 220;
const LATENCIES_KEPT = 50;

/** The newest that any column knows of each friend: the time of the report, whether the friend has left, and since when it is known here. */
const newest = new Map();

const html = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

export function bytesText(bytes) {
  if (bytes < 10_000) return `${Math.round(bytes).toLocaleString('en')} B`;
  return bytes < 1_000_000 ? `${(bytes / 1000).toFixed(1)} kB` : `${(bytes / 1_000_000).toFixed(2)} MB`;
}

export class Way {
  friends = new Map();
  counts = { requests: 0, messages: 0, payload: 0, wire: 0 };
  #latencies = [];
  #serverNow;

  constructor(id, title, serverNow) {
    this.#serverNow = serverNow;
    this.element = document.getElementById('way').content.cloneNode(true).firstElementChild;
    this.element.id = id;
    this.find('h2').textContent = title;
    document.getElementById('ways').append(this.element);
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  control(element) {
    this.find('.controls').append(element);
    return element;
  }

  setState(state, text = state) {
    this.element.dataset.state = state;
    this.find('.state').textContent = text;
  }

  /** Counts what has crossed the wire: payload, and what was around it. */
  count({ requests = 0, messages = 0, payload = 0, around = 0 }) {
    this.counts.requests += requests;
    this.counts.messages += messages;
    this.counts.payload += payload;
    this.counts.wire += payload + around;
  }

  /** Takes in `snapshot` or `update`. */
  hear(frame) {
    const { friends, moved = friends ?? [], left = [] } = frame;
    const gone = friends ? [...this.friends.keys()].filter((id) => !friends.some((friend) => friend.id === id)) : left.map(({ id }) => id);
    for (const friend of moved) this.#learn(friend);
    for (const id of gone) this.forget(id);
  }

  #learn(friend) {
    const known = this.friends.get(friend.id)?.updated_at_ms;
    const { at = -Infinity, left } = newest.get(friend.id) ?? {};
    if (friend.updated_at_ms > at || (left && friend.updated_at_ms === at)) newest.set(friend.id, { at: friend.updated_at_ms, left: false, since: performance.now() });
    // A new distance alone, because I moved, is no arrival of a report.
    if (known !== undefined && known < friend.updated_at_ms) {
      this.#latencies.push(this.#serverNow() - friend.updated_at_ms);
      if (this.#latencies.length > LATENCIES_KEPT) this.#latencies.shift();
    }
    this.friends.set(friend.id, friend);
  }

  forget(id) {
    const mine = this.friends.get(id);
    this.friends.delete(id);
    const known = newest.get(id);
    if (mine && known && !known.left && mine.updated_at_ms >= known.at) newest.set(id, { at: known.at, left: true, since: performance.now() });
  }

  hideExpired() {
    for (const { id, visible_until_ms } of this.friends.values()) if (visible_until_ms <= this.#serverNow()) this.forget(id);
  }

  /** How long something is known on this page that this column does not know, in ms. */
  #behindMs() {
    let since = Infinity;
    for (const [id, known] of newest) {
      const mine = this.friends.get(id);
      const behind = known.left ? mine !== undefined : mine === undefined || mine.updated_at_ms < known.at;
      if (behind) since = Math.min(since, known.since);
    }
    return since === Infinity ? 0 : performance.now() - since;
  }

  show() {
    const set = (name, text) => { this.find(`[data-count=${name}]`).textContent = text; };
    for (const name of ['requests', 'messages']) set(name, this.counts[name].toLocaleString('en'));
    for (const name of ['payload', 'wire']) set(name, bytesText(this.counts[name]));
    Object.assign(this.element.dataset, this.counts);
    const behindMs = Math.round(this.#behindMs());
    this.element.dataset.behind = behindMs;
    set('behind', `${behindMs.toLocaleString('en')} ms`);
    const sorted = [...this.#latencies].sort((a, b) => a - b);
    if (sorted.length) set('median', `${Math.round(sorted[sorted.length >> 1]).toLocaleString('en')} ms`);
    const near = [...this.friends.values()].sort((a, b) => a.distance_m - b.distance_m);
    this.element.dataset.friends = near.map(({ id }) => id).sort().join();
    const rows = near.slice(0, FRIENDS_SHOWN).map(({ id, distance_m, updated_at_ms }) => html('li', {},
      html('b', { textContent: `friend ${id}` }), html('em', { textContent: `${distance_m.toLocaleString('en')} m` }),
      html('i', { textContent: `${Math.max(0, (this.#serverNow() - updated_at_ms) / 1000).toFixed(1)} s old` })));
    this.find('.friends').replaceChildren(...rows);
    this.find('.nobody').textContent = near.length > FRIENDS_SHOWN ? `and ${near.length - FRIENDS_SHOWN} more` : near.length ? '' : 'Nobody is near.';
  }

  /** Shows a head: its lines, and where they are from. */
  showHead(which, lines, note) {
    this.find(`[data-lines=${which}]`).textContent = lines.join('\n');
    this.find(`[data-head=${which}]`).textContent = note;
  }

  facts(...parts) {
    this.find('.facts').replaceChildren(...parts.flatMap(([name, text]) => [`${name} `, html('b', { textContent: text }), ' · ']).slice(0, -1));
  }

  /** `kind` is sent, received or event. */
  log(kind, text, note = '', at = new Date()) {
    const arrow = { sent: '↑', received: '↓', event: '•' }[kind];
    const time = `${at.toLocaleTimeString('en-GB')}.${String(at.getMilliseconds()).padStart(3, '0')}`;
    const shown = text.length > TEXT_SHOWN_MAX ? `${text.slice(0, TEXT_SHOWN_MAX)}…` : text;
    this.find('.log').prepend(html('li', { className: kind }, html('time', { textContent: time }), ' ', html('b', { textContent: arrow }), ` ${shown} `, html('small', { textContent: note })));
    while (this.find('.log').childElementCount > LOG_KEPT) this.find('.log').lastElementChild.remove();
  }
}

export const button = (text, onclick) => html('button', { textContent: text, onclick });

export const select = (label, options, onchange) => {
  const element = html('select', { onchange: () => onchange(element.value) }, ...options.map(([value, text]) => html('option', { value, textContent: text })));
  element.setAttribute('aria-label', label);
  return element;
};

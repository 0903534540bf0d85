// What stands beside the map: the friends by distance, counters, comings and goings, the frame log, toasts.

const RATE_WINDOW_MS = 5_000;
const FRAMES_KEPT = 200;
const FRAME_SHOWN_MAX = 600;
const COMINGS_KEPT = 100;
const COMINGS_NAMED_MAX = 4;
const TOAST_MS = 7_000;

const frames = { count: 0, kept: [], unshown: 0, paused: false };
let updates = [];

export const $ = (id) => document.getElementById(id);
export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const clockText = (date) => date.toLocaleTimeString('en-GB');

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function distanceText(metres) {
  if (metres < 100) return `${Math.round(metres)} m`;
  if (metres < 995) return `${Math.round(metres / 10) * 10} m`;
  return `${(metres / 1000).toFixed(1)} km`;
}

export const lengthText = (metres) => (metres < 1000 ? `${metres} m` : `${Number((metres / 1000).toFixed(2))} km`);

function ageText(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 1) return 'now';
  return seconds < 60 ? `${seconds} s ago` : `${Math.floor(seconds / 60)} min ago`;
}

function html(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** A friend in the list. */
export class Row {
  #age = html('i');
  #distance = html('em');

  constructor(id, hue) {
    this.element = html('li', {}, html('b', { textContent: id }), this.#age, this.#distance);
    this.element.dataset.id = id;
    this.element.style.setProperty('--hue', hue);
  }

  show(distanceM, radiusM) {
    setText(this.#distance, distanceText(distanceM));
    this.element.style.setProperty('--nearness', `${Math.round(100 - 100 * distanceM / radiusM)}%`);
  }

  showAge(ms) {
    setText(this.#age, ageText(ms));
  }

  light(on) {
    this.element.classList.toggle('lit', on);
  }

  remove() {
    this.element.remove();
  }
}

/** Touches only rows out of place, so that scrolling and selection survive. */
export function orderRows(rows) {
  const list = $('friends');
  rows.forEach(({ element }, index) => {
    if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
  });
}

export function countUpdates(moved) {
  updates.push({ at: performance.now(), moved });
}

export function showCounts(friendsNear) {
  const since = performance.now() - RATE_WINDOW_MS;
  updates = updates.filter(({ at }) => at > since);
  const perSecond = updates.reduce((sum, { moved }) => sum + moved, 0) * 1000 / RATE_WINDOW_MS;
  setText($('count-updates'), perSecond < 10 ? String(Number(perSecond.toFixed(1))) : Math.round(perSecond).toLocaleString('en'));
  setText($('count-friends'), String(friendsNear));
  setText($('count-frames'), frames.count.toLocaleString('en'));
  document.title = friendsNear ? `Nearby · ${friendsNear}` : 'Nearby';
}

export function showAck(ms) {
  setText($('count-ack'), `${Math.max(1, Math.round(ms))} ms`);
}

export function tell(text) {
  $('comings').prepend(html('li', {}, html('time', { textContent: clockText(new Date()) }), text));
  if ($('comings').childElementCount > COMINGS_KEPT) $('comings').lastElementChild.remove();
}

/** Many at once, as when I move far or stop sharing, are one line. One alone is no number of friends: it is named as such. */
export function tellEach(ids, what) {
  if (ids.length > COMINGS_NAMED_MAX) tell(`${ids.length} friends ${what}`);
  else ids.forEach((id) => tell(`friend ${id} ${what}`));
}

export function logFrame(direction, text) {
  frames.count += 1;
  if (frames.paused) return;
  frames.kept.unshift({ arrow: direction === 'sent' ? '↑' : '↓', direction, text, at: new Date() });
  frames.kept.length = Math.min(frames.kept.length, FRAMES_KEPT);
  frames.unshown += 1;
}

export function showFrames() {
  $('frames').prepend(...frames.kept.slice(0, frames.unshown).map(frameLine));
  frames.unshown = 0;
  while ($('frames').childElementCount > FRAMES_KEPT) $('frames').lastElementChild.remove();
}

const frameTime = ({ at }) => `${clockText(at)}.${String(at.getMilliseconds()).padStart(3, '0')}`;

function frameLine(frame) {
  const { text, arrow, direction } = frame;
  const shown = text.length > FRAME_SHOWN_MAX ? `${text.slice(0, FRAME_SHOWN_MAX)}… ${text.length.toLocaleString('en')} characters` : text;
  return html('li', { className: direction }, html('time', { textContent: frameTime(frame) }), html('b', { textContent: arrow }), shown);
}

function pauseFrames() {
  frames.paused = !frames.paused;
  setText($('frames-pause'), frames.paused ? 'Resume' : 'Pause');
}

async function copyFrames() {
  const lines = frames.kept.map((frame) => `${frameTime(frame)} ${frame.arrow} ${frame.text}`);
  try {
    await navigator.clipboard.writeText(lines.join('\n'));
    toast('Copied', `${lines.length} frames`);
  } catch {
    toast('Not copied', 'The browser refused the clipboard.', 'bad');
  }
}

export function toast(title, text, tone = '') {
  const box = html('button', { className: tone, title: 'Dismiss' }, html('b', { textContent: title }), ` ${text}`);
  box.onclick = () => box.remove();
  setTimeout(() => box.remove(), TOAST_MS);
  $('toasts').append(box);
  if ($('toasts').childElementCount > 3) $('toasts').firstElementChild.remove();
}

export function startPanel(onPointedAt) {
  $('frames-pause').onclick = pauseFrames;
  $('frames-copy').onclick = copyFrames;
  $('friends').addEventListener('pointermove', (event) => onPointedAt(event.target.closest('li')?.dataset.id));
  $('friends').addEventListener('pointerleave', () => onPointedAt(undefined));
}

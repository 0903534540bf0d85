// The handshake page: the same view by WebSocket, by server-sent events and by polling, and what each of them puts on the wire.
// A browser shows a page neither the head of its own request nor pings: those the server tells (`/v1/dev/wire`), if it may.

import { Nearby } from '/nearby.js';
import { Tokens, userOf } from '/tokens.js';
import { Way, button, bytesText, select } from '/way.js';

const TICK_MS = 100;
const REPORT_EVERY_MS = 20_000;
const AGAIN_MS = 1_000;
const FRAME_BYTES_MAX = 64 * 1024;
/** What the server's HTTP edge adds to every answer after it was told of; the names as they are on the wire. */
const EDGE = ['cache-control: no-store', 'x-content-type-options: nosniff', 'date: …'];
const EDGE_BYTES = 25 + 33 + 37;
/** Where the server tells nothing, a head is taken for so long. */
const HEAD_BYTES_GUESSED = 700;

const $ = (id) => document.getElementById(id);
const place = new URLSearchParams(location.search);
const me = { lat: Number(place.get('lat') ?? 40.7484), lon: Number(place.get('lon') ?? -73.9857) };
const tokens = new Tokens(userOf(location.search) ?? '1', askForToken);
/** Bytes of the last request's head by path, as the server told. */
const requestBytes = {};
let watching = false;

let socket = null;
class WatchedSocket extends WebSocket {
  constructor(...args) {
    super(...args);
    socket = this;
  }
}
const nearby = new Nearby({ token: tokens.get, WebSocket: WatchedSocket });
const serverNow = () => nearby.serverNow();

const byStream = new Way('stream', 'WebSocket', serverNow);
const byEvents = new Way('events', 'Server-sent events', serverNow);
const byPolling = new Way('polling', 'Polling', serverNow);
const ways = { '/v1/stream': byStream, '/v1/events': byEvents, '/v1/nearby': byPolling };

/* What the server sees. */

async function watch() {
  try {
    await readEvents('/v1/dev/wire', {}, (event) => told(JSON.parse(event)));
    throw new Error('the server told no more');
  } catch (failure) {
    const why = failure.status === 404 ? 'This server does not tell what it sees: dev tokens are off.' : `The server does not tell what it sees: ${failure.message}.`;
    watching = false;
    $('watch').textContent = why;
    if (failure.status !== 404) setTimeout(watch, AGAIN_MS);
  }
}

function told(event) {
  if (event.what === 'watching') {
    watching = true;
    $('watch').textContent = `What the server sees is told by the server; it pings every ${event.ping_interval_ms / 1000} s while you watch, else every 30 s.`;
    document.body.dataset.watching = 'true';
    return;
  }
  const way = ways[event.path];
  if (event.what === 'request') {
    requestBytes[event.path] = event.bytes;
    way.showHead('request', event.lines, `as the server got it · ${event.bytes} B`);
    if (way === byStream) way.count({ requests: 1, around: event.bytes });
  }
  if (event.what === 'response') {
    way.showHead('response', [...event.lines, ...EDGE], `${event.bytes + EDGE_BYTES} B`);
    way.count({ around: event.bytes + EDGE_BYTES });
  }
  if (event.what === 'frame') frame(way, event);
  if (event.what === 'ended') way.log('event', 'the server has ended the connection');
}

const ping = { last: null };
const close = { client: '–', server: '–' };

function frame(way, { direction, opcode, bytes, frame_bytes, text, after_ms, code, reason, at_ms }) {
  // The server sends what this page receives.
  const kind = direction === 'sent' ? 'received' : 'sent';
  const isMessage = opcode === 'text' || opcode === 'binary';
  way.count({ messages: isMessage ? 1 : 0, payload: isMessage ? bytes : 0, around: isMessage ? frame_bytes - bytes : frame_bytes });
  const note = `${opcode} · ${bytes} B in ${frame_bytes} B`;
  if (opcode === 'pong') ping.last = `${after_ms?.toFixed(1) ?? '?'} ms at ${new Date(at_ms).toLocaleTimeString('en-GB')}`;
  if (opcode === 'close') close.server = `${direction === 'sent' ? 'sent' : 'got'} ${code} ${reason}`.trim();
  const answer = opcode === 'pong' && after_ms !== undefined ? `pong after ${after_ms.toFixed(1)} ms` : opcode;
  way.log(kind, text ?? (opcode === 'close' ? `close ${code} ${reason}`.trim() : answer), note, new Date(at_ms));
  socketFacts();
}

function socketFacts() {
  byStream.facts(['last pong', ping.last ?? '–'], ['close, here', close.client], ['close, at the server', close.server]);
}

/* WebSocket. */

function startStream() {
  nearby.on('state', ({ state, detail }) => byStream.setState(state, state === 'open' ? 'open' : `${state}: ${detail}`));
  nearby.on('snapshot', (snapshot) => byStream.hear(snapshot));
  nearby.on('update', (update) => byStream.hear(update));
  nearby.on('hidden', (ids) => ids.forEach((id) => byStream.forget(id)));
  nearby.on('welcome', report);
  nearby.on('close', ({ code, reason }) => {
    close.client = `${code} ${reason}`.trim();
    byStream.log('event', `closed: ${close.client}`);
    socketFacts();
  });
  nearby.on('error', ({ code }) => byStream.log('event', `refused: ${code}`));
  nearby.on('traffic', (direction, text) => {
    if (watching) return;
    const bytes = new TextEncoder().encode(text).length;
    byStream.count({ messages: 1, payload: bytes, around: 4 });
    byStream.log(direction, text, `${bytes} B`);
  });
  const toggle = byStream.control(button('Close', () => {
    if (nearby.state === 'closed') return nearby.connect();
    close.client = '1000 by this page';
    nearby.close();
    socketFacts();
  }));
  nearby.on('state', ({ state }) => { toggle.textContent = state === 'closed' ? 'Connect' : 'Close'; });
  byStream.control(button('Send too much', () => { if (nearby.isOpen) socket.send(' '.repeat(FRAME_BYTES_MAX + 1)); })).title = 'One byte more than a frame may have: the server closes with 1009';
  socketFacts();
  nearby.connect();
  setInterval(report, REPORT_EVERY_MS);
}

/** So that somebody can be near. */
function report() {
  if (nearby.isOpen) nearby.report(me).catch(() => {});
}

/* Server-sent events. `EventSource` cannot send a token, so the stream is read from a fetch. */

const headBytes = (response) => [...response.headers].reduce((sum, [name, value]) => sum + name.length + value.length + 4, `HTTP/1.1 ${response.status} ${response.statusText}`.length + 4);

function showAnswer(way, response) {
  const lines = [`HTTP/1.1 ${response.status} ${response.statusText}`, ...[...response.headers].map(([name, value]) => `${name}: ${value}`)];
  way.showHead('response', lines, `as this page may see it · ${headBytes(response)} B`);
}

/** Reads a stream of events to its end. `onChunk` gets its raw bytes, `onOpen` the answer. */
async function readEvents(path, { signal, onOpen, onChunk, onComment }, onEvent) {
  const response = await fetch(path, { headers: tokens.headers, cache: 'no-store', signal });
  onOpen?.(response);
  if (!response.ok) throw Object.assign(new Error(`HTTP ${response.status}`), { status: response.status });
  const [reader, decoder] = [response.body.getReader(), new TextDecoder()];
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    onChunk?.(value.length);
    text += decoder.decode(value, { stream: true });
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const event = text.slice(0, end);
      text = text.slice(end + 2);
      if (event.startsWith('data:')) onEvent(event.slice(5));
      else onComment?.(event);
    }
  }
}

function startEvents() {
  let stop = null;
  const toggle = byEvents.control(button('Close', () => (stop ? stop.abort() : read())));
  async function read() {
    stop = new AbortController();
    const { signal } = stop;
    toggle.textContent = 'Close';
    byEvents.setState('connecting');
    let why = 'the stream has ended';
    try {
      await readEvents('/v1/events', {
        signal,
        onOpen(response) {
          showAnswer(byEvents, response);
          byEvents.count({ requests: 1, around: (requestBytes['/v1/events'] ?? HEAD_BYTES_GUESSED) + headBytes(response) });
          if (response.ok) byEvents.setState('open');
        },
        // Each chunk has its length before it, in hexadecimal, and two line breaks.
        onChunk: (bytes) => byEvents.count({ payload: bytes, around: bytes.toString(16).length + 4 }),
        onComment: (text) => byEvents.log('received', text || ':', 'comment, so that nobody in between gives up'),
      }, (data) => {
        byEvents.count({ messages: 1 });
        byEvents.log('received', data, `${data.length} B`);
        const frame = JSON.parse(data);
        if (frame.type === 'snapshot' || frame.type === 'update') byEvents.hear(frame);
      });
    } catch (failure) {
      why = signal.aborted ? 'closed by this page' : failure.message;
    }
    byEvents.log('event', why);
    stop = null;
    if (signal.aborted) {
      byEvents.setState('closed');
      toggle.textContent = 'Connect';
      return;
    }
    byEvents.setState('reconnecting', `reconnecting: ${why}`);
    setTimeout(read, AGAIN_MS * (0.5 + Math.random()));
  }
  byEvents.facts(['one way', 'reports go by another request'], ['ends', 'with the connection: there are no close codes']);
  read();
}

/* Polling. */

function startPolling() {
  let everyMs = 1_000;
  let timer = null;
  const choices = [[1_000, 'every 1 s'], [5_000, 'every 5 s'], [30_000, 'every 30 s'], [0, 'never']];
  byPolling.control(select('How often', choices, (value) => { everyMs = Number(value); clearTimeout(timer); poll(); }));
  async function poll() {
    if (everyMs === 0) return byPolling.setState('closed', 'paused');
    const startedAt = performance.now();
    try {
      const response = await fetch('/v1/nearby', { headers: tokens.headers, cache: 'no-store' });
      const body = await response.text();
      const bytes = new TextEncoder().encode(body).length;
      showAnswer(byPolling, response);
      byPolling.count({ requests: 1, messages: 1, payload: bytes, around: (requestBytes['/v1/nearby'] ?? HEAD_BYTES_GUESSED) + headBytes(response) });
      byPolling.log('received', body, `${response.status} · ${bytes} B · ${Math.round(performance.now() - startedAt)} ms`);
      byPolling.setState(response.ok ? 'open' : 'reconnecting', response.ok ? 'polling' : `HTTP ${response.status}`);
      if (response.ok) byPolling.hear(JSON.parse(body));
      const { payload, wire, requests } = byPolling.counts;
      byPolling.facts(['per answer', bytesText(wire / requests)], ['of that not payload', `${Math.round(100 * (1 - payload / wire))} %`], ['session', 'ends 60 s after the last call']);
    } catch {
      byPolling.setState('reconnecting', 'the server does not answer');
    }
    clearTimeout(timer);
    if (everyMs > 0) timer = setTimeout(poll, everyMs);
  }
  poll();
}

/* The page. */

function tick() {
  for (const way of [byStream, byEvents, byPolling]) {
    way.hideExpired();
    way.show();
  }
}

function askForToken(why) {
  $('token-why').textContent = `${why} Print one where the server runs: nearby token --user ${tokens.user}`;
  $('token-form').hidden = false;
}

let isStarted = false;

/** Begins, or goes on with the token that has replaced one that expired. */
async function start() {
  $('who').textContent = `user ${tokens.user}`;
  $('map-link').href = `/${location.search}`;
  if (!(await tokens.get('connect'))) return;
  $('token-form').hidden = true;
  // Events and polls are tried again all the time, and take the new token by themselves.
  if (isStarted) return nearby.connect();
  isStarted = true;
  // The server is listened to before there is anything to see.
  watch();
  for (let waitedMs = 0; !watching && !$('watch').textContent.startsWith('T') && waitedMs < 2_000; waitedMs += 20) await new Promise((resolve) => setTimeout(resolve, 20));
  startStream();
  startEvents();
  startPolling();
  setInterval(tick, TICK_MS);
}

$('token-form').onsubmit = (event) => {
  event.preventDefault();
  if (tokens.use($('token').value.trim())) start().catch(() => {});
};
start().catch((failure) => { $('watch').textContent = failure.message; });
window.wire = { me, moveTo: (lat, lon) => { Object.assign(me, { lat, lon }); report(); } };

// A client of Nearby, protocol version 1: it asks for a gateway, keeps a socket open, and keeps the view that it is told.
//
//   import { Nearby } from './nearby.js';
//   const nearby = new Nearby({ base: 'http://127.0.0.1:8080', token: async () => myToken });
//   nearby.on('view', (friends) => console.log([...friends.values()]));
//   nearby.connect();
//   await nearby.report({ lat: 40.7484, lon: -73.9857 });
//
// For browsers and Node. It has no dependencies and touches no page; where there is no global WebSocket (Node before 22) it
// is given one, such as that of the package `ws`.

/** A connection that has not been welcomed by then is given up. */
export const OPEN_WITHIN_MS = 10_000;
/** A gateway that owes an answer for so long is gone, whatever the network says: a browser is not told of pings. */
export const ANSWER_WITHIN_MS = 20_000;
/** The n-th attempt waits a random time up to this · 2ⁿ ("full jitter"), so that many clients do not come back as one. */
export const BACKOFF_MS = 500;
/** But never up to more than this. */
export const BACKOFF_MS_MAX = 10_000;
/** The waits begin anew once a connection has lasted so long: one that is closed soon after its snapshot, for its rate, say, is no success. */
export const STEADY_AFTER_MS = 10_000;
/** What the server asks for (`Retry-After`, `reconnect_after_ms`) is honoured, up to this. */
export const WAIT_MS_MAX = 120_000;
/** A token is renewed so long before it expires, or when half of its time is over, if that is later. */
export const RENEW_BEFORE_MS = 60_000;
/** A renewal that failed is tried again so much later. */
export const RENEW_AGAIN_MS = 5_000;
const TIMER_MS_MAX = 2 ** 31 - 1;

/**
 * @typedef {object} Friend
 * @property {string} id
 * @property {number} lat
 * @property {number} lon
 * @property {number} distance_m
 * @property {number} updated_at_ms Time of the friend's last report.
 * @property {number} visible_until_ms The friend is hidden then, even if nothing more is heard.
 *
 * @typedef {object} Report
 * @property {number} lat
 * @property {number} lon
 * @property {number} [reported_at_ms] Without it, the time at which the gateway gets it.
 * @property {number} [accuracy_m]
 * @property {number} [speed_mps]
 * @property {number} [heading_deg]
 * @property {'exact' | 'coarse'} [precision]
 *
 * @typedef {'connect' | 'renew' | 'expired' | 'refused'} TokenReason Why a token is wanted: to connect, for the open socket,
 *   because the last one has expired, or because the server says that it is not good.
 *
 * @typedef {'idle' | 'connecting' | 'open' | 'reconnecting' | 'closed'} State `closed` is final until `connect()`.
 *
 * @typedef {object} Settings
 * @property {string} [base] Where the API is, `http://…`; in a page, by default, where the page comes from.
 * @property {(reason: TokenReason) => Promise<string | null>} token Gives a token; null ends in the state `closed`.
 * @property {typeof WebSocket} [WebSocket] Another one than the global.
 * @property {typeof fetch} [fetch] Another one than the global.
 * @property {() => number} [random] From 0 to 1; for tests.
 *
 * @typedef {object} Events What listeners get.
 * @property {(now: { state: State, before: State, detail: string }) => void} state
 * @property {(frame: object) => void} welcome The frame, with `radius_m` and `inactive_after_s`.
 * @property {(frame: { friends: Friend[] }) => void} snapshot Replaces everything.
 * @property {(frame: { moved: Friend[], left: { id: string, reason: string }[] }) => void} update
 * @property {(ids: string[]) => void} hidden Their time is over.
 * @property {(friends: Map<string, Friend>) => void} view Something has changed; after each of the three above.
 * @property {(refused: { code: string, detail: string, ref?: string | number }) => void} error A frame was refused.
 * @property {(frame: { reconnect_after_ms: number }) => void} drain The gateway is going away; the client finds another.
 * @property {(how: { code: number, reason: string }) => void} close A socket has ended.
 * @property {(direction: 'sent' | 'received', text: string) => void} traffic Every frame, as it is on the wire.
 */

/** Something was refused, or not answered. `code` is the server's stable one, or `not_connected` or `connection_lost`. */
export class NearbyError extends Error {
  /** @param {string} code @param {string} detail @param {number} [retryAfterMs] What the server asked for. */
  constructor(code, detail, retryAfterMs) {
    super(detail ? `${code}: ${detail}` : code);
    this.name = 'NearbyError';
    this.code = code;
    this.detail = detail;
    this.retryAfterMs = retryAfterMs;
  }
}

export class Nearby {
  /** @type {State} */
  state = 'idle';
  /** For a person: why it is so. */
  detail = '';
  /** When the next attempt is, by this machine's clock; while `reconnecting`. */
  retryAt = 0;
  /** Who is near now. @type {Map<string, Friend>} */
  friends = new Map();
  /** Attempts since a connection has last been steady. */
  attempt = 0;

  #settings;
  #listeners = new Map();
  #token = null;
  #tokenReason = 'connect';
  /** The last socket was not opened, and nobody has said why. */
  #isUnexplained = false;
  #socket = null;
  #timers = {};
  #clockOffsetMs = 0;
  #lastRef = 0;
  #unanswered = new Map();
  /** Of the drain under way, if any. */
  #drainMs = null;
  /** Counts connections, so that what an abandoned one still says is not heard. */
  #generation = 0;

  /** @param {Settings} settings */
  constructor(settings) {
    const { WebSocket = globalThis.WebSocket, fetch = globalThis.fetch, base = globalThis.location?.origin } = settings;
    if (!WebSocket) throw new TypeError('there is no WebSocket here: give one, such as that of the package ws');
    if (!base) throw new TypeError('base is missing: where is the API?');
    this.#settings = { random: Math.random, ...settings, WebSocket, fetch: fetch.bind(globalThis), base: base.replace(/\/$/, '') };
  }

  /**
   * Listens; returns a function that stops it.
   * @template {keyof Events} Name
   * @param {Name} name @param {Events[Name]} listener @returns {() => void}
   */
  on(name, listener) {
    if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
    this.#listeners.get(name).add(listener);
    return () => this.#listeners.get(name).delete(listener);
  }

  get isOpen() {
    return this.state === 'open';
  }

  /** The server's clock, as far as known. Times in frames are by it. */
  serverNow() {
    return Date.now() + this.#clockOffsetMs;
  }

  /** Connects, and from then on stays connected, until `close()`, or until there is no token. At once, if it is waiting. */
  connect() {
    if (this.state !== 'connecting' && this.state !== 'open') this.#connect();
  }

  /** Ends it, in order. */
  close() {
    this.#end('closed by this client');
    clearTimeout(this.#timers.hide);
    this.friends = new Map();
    this.#setState('closed', 'closed by this client');
    this.#emit('view', this.friends);
  }

  /**
   * Reports where this user is. Resolves with the time that it took when the log has it; rejects with a `NearbyError`. After
   * `connection_lost` it may have been written or not: sending it again does no harm.
   * @param {Report} report @returns {Promise<{ ms: number }>}
   */
  report(report) {
    return this.#request({ type: 'location', ...report });
  }

  /** Withdraws this user from every friend's view. @returns {Promise<{ ms: number }>} */
  unshare() {
    return this.#request({ type: 'unshare' });
  }

  async #connect() {
    this.#end('connecting anew');
    const generation = this.#generation;
    const isStale = () => generation !== this.#generation;
    this.#setState('connecting', 'asking for a gateway');
    try {
      if (this.#isUnexplained) {
        const isRefused = await this.#isTokenRefused();
        if (isStale()) return;
        this.#isUnexplained = false;
        if (isRefused) this.#tokenReason = 'refused';
      }
      // One that has just been refused or has expired is not tried again.
      this.#token = await this.#settings.token(this.#tokenReason);
      if (isStale()) return;
      this.#tokenReason = 'connect';
      if (!this.#token) return this.#setState('closed', 'there is no token');
      const { url } = await this.#discover();
      if (!isStale()) this.#open(url);
    } catch (failure) {
      if (!isStale()) this.#reconnectLater(failure.message, this.#backoffMs() + (failure.retryAfterMs ?? 0));
    }
  }

  /** Which gateway to connect to is asked each time: the last one may be gone, or full. */
  async #discover() {
    const { fetch, base } = this.#settings;
    let response;
    try {
      response = await fetch(`${base}/v1/gateway`, { cache: 'no-store', signal: AbortSignal.timeout(OPEN_WITHIN_MS) });
    } catch {
      throw new NearbyError('unreachable', 'the server does not answer');
    }
    const body = await response.json().catch(() => ({}));
    if (response.ok) return body;
    const seconds = Number(response.headers.get('retry-after') ?? NaN);
    throw new NearbyError(body.code ?? `http_${response.status}`, body.detail ?? '', seconds >= 0 ? seconds * 1000 : undefined);
  }

  /**
   * Whether it is the last token's fault that no socket was opened. A browser does not tell the status of a failed handshake, so the API
   * is told of no reports at all: that changes nothing, and needs a token.
   */
  async #isTokenRefused() {
    const { fetch, base } = this.#settings;
    const asked = { method: 'POST', headers: { Authorization: `Bearer ${this.#token}` }, body: '[]', signal: AbortSignal.timeout(OPEN_WITHIN_MS) };
    // What is unreachable refuses nothing.
    return fetch(`${base}/v1/locations`, asked).then(({ status }) => status === 401, () => false);
  }

  #open(url) {
    const socket = this.#socket = new this.#settings.WebSocket(url, ['nearby.v1', `bearer.${this.#token}`]);
    const current = (handle) => (event) => { if (this.#socket === socket) handle(event); };
    this.#setTimer('open', OPEN_WITHIN_MS, () => this.#lost(1006, 'no welcome in time'));
    socket.onmessage = current(({ data }) => this.#receive(data));
    socket.onclose = current(({ code, reason }) => this.#lost(code, reason));
    // The close event follows, and says as much.
    socket.onerror = () => {};
  }

  #receive(text) {
    this.#emit('traffic', 'received', text);
    const frame = JSON.parse(text);
    // Types that a newer server may add are ignored.
    switch (frame.type) {
      case 'welcome': return this.#welcomed(frame);
      case 'snapshot': return this.#snapshot(frame);
      case 'update': return this.#update(frame);
      case 'accepted': return this.#answered(frame);
      case 'error': return this.#refused(frame);
      case 'drain':
        this.#drainMs = frame.reconnect_after_ms;
        this.#emit('drain', frame);
    }
  }

  #welcomed(frame) {
    clearTimeout(this.#timers.open);
    this.#clockOffsetMs = frame.server_time_ms - Date.now();
    this.#setTimer('steady', STEADY_AFTER_MS, () => { this.attempt = 0; });
    this.#renewInTime();
    this.#setState('open', `${frame.gateway} · session ${frame.session}`);
    this.#emit('welcome', frame);
  }

  #snapshot(frame) {
    const visible = frame.friends.filter((friend) => this.#isVisible(friend));
    this.friends = new Map(visible.map((friend) => [friend.id, friend]));
    this.#emit('snapshot', { ...frame, friends: visible });
    this.#viewChanged();
  }

  #update(frame) {
    const { moved = [], left = [] } = frame;
    // One that has been hidden meanwhile does not come back with an old time.
    const visible = moved.filter((friend) => this.#isVisible(friend));
    for (const friend of visible) this.friends.set(friend.id, friend);
    for (const { id } of left) this.friends.delete(id);
    this.#emit('update', { ...frame, moved: visible, left });
    this.#viewChanged();
  }

  #isVisible({ visible_until_ms }) {
    return visible_until_ms > this.serverNow();
  }

  #viewChanged() {
    this.#emit('view', this.friends);
    let next = Infinity;
    for (const { visible_until_ms } of this.friends.values()) next = Math.min(next, visible_until_ms);
    if (next < Infinity) this.#setTimer('hide', next - this.serverNow(), () => this.#hide());
    else clearTimeout(this.#timers.hide);
  }

  #hide() {
    const over = [...this.friends.values()].filter((friend) => !this.#isVisible(friend)).map(({ id }) => id);
    over.forEach((id) => this.friends.delete(id));
    if (over.length) this.#emit('hidden', over);
    this.#viewChanged();
  }

  #request(frame) {
    if (!this.isOpen) return Promise.reject(new NearbyError('not_connected', this.detail));
    const ref = this.#lastRef += 1;
    const text = JSON.stringify({ ...frame, ref });
    return new Promise((resolve, reject) => {
      this.#unanswered.set(ref, { sentAt: performance.now(), resolve, reject });
      this.#awaitAnswers();
      this.#socket.send(text);
      this.#emit('traffic', 'sent', frame.type === 'auth' ? '{"type":"auth","token":"…"}' : text);
    });
  }

  /** A half-open connection gives no sign of itself but silence. */
  #awaitAnswers() {
    const [oldest] = this.#unanswered.values();
    if (!oldest) return clearTimeout(this.#timers.answer);
    const leftMs = oldest.sentAt + ANSWER_WITHIN_MS - performance.now();
    this.#setTimer('answer', leftMs, () => this.#lost(1006, 'the gateway went silent'));
  }

  #answered({ ref }) {
    const waiting = this.#unanswered.get(ref);
    this.#unanswered.delete(ref);
    this.#awaitAnswers();
    waiting?.resolve({ ms: performance.now() - waiting.sentAt });
  }

  #refused(frame) {
    const waiting = this.#unanswered.get(frame.ref);
    this.#unanswered.delete(frame.ref);
    this.#awaitAnswers();
    this.#emit('error', frame);
    waiting?.reject(new NearbyError(frame.code, frame.detail));
  }

  /** Renews the token of the open socket. Without it the gateway would close it when the token expires. */
  #renewInTime() {
    const leftMs = (expiryOf(this.#token) ?? Infinity) - this.serverNow();
    if (leftMs === Infinity) return;
    this.#setTimer('renew', Math.max(leftMs - RENEW_BEFORE_MS, leftMs / 2), () => this.#renew(this.#generation));
  }

  async #renew(generation) {
    const isStale = () => generation !== this.#generation || !this.isOpen;
    try {
      const token = await this.#settings.token('renew');
      if (isStale() || !token) return;
      await this.#request({ type: 'auth', token });
      this.#token = token;
      this.#renewInTime();
    } catch {
      if (!isStale()) this.#setTimer('renew', RENEW_AGAIN_MS, () => this.#renew(generation));
    }
  }

  /** A socket has ended, or is given up. */
  #lost(code, reason) {
    const wasOpen = this.isOpen;
    const drainMs = this.#drainMs;
    this.#end(reason);
    const generation = this.#generation;
    this.#emit('close', { code, reason });
    // Whoever heard it has closed, or connected anew.
    if (generation !== this.#generation) return;
    const how = [`closed with ${code}`, reason].filter(Boolean).join(' ');
    if (reason === 'token_expired') this.#tokenReason = 'expired';
    else if (!wasOpen) this.#isUnexplained = true;
    // The draining gateway has spread its clients already.
    this.#reconnectLater(how, drainMs ?? this.#backoffMs());
  }

  #backoffMs() {
    return Math.min(BACKOFF_MS_MAX, BACKOFF_MS * 2 ** this.attempt) * this.#settings.random();
  }

  #reconnectLater(why, wantedMs) {
    const delayMs = Math.min(wantedMs, WAIT_MS_MAX);
    this.attempt += 1;
    this.retryAt = Date.now() + delayMs;
    this.#setTimer('retry', delayMs, () => this.#connect());
    this.#setState('reconnecting', why);
  }

  /** Ends what is under way. Friends stay until their time is over: the next snapshot replaces them. */
  #end(reason) {
    this.#generation += 1;
    this.#drainMs = null;
    for (const name of ['open', 'retry', 'answer', 'renew', 'steady']) clearTimeout(this.#timers[name]);
    const socket = this.#socket;
    this.#socket = null;
    // A peer that has vanished never answers, so its close event is not waited for.
    socket?.close(1000);
    const unanswered = [...this.#unanswered.values()];
    this.#unanswered.clear();
    unanswered.forEach(({ reject }) => reject(new NearbyError('connection_lost', reason)));
  }

  #setTimer(name, ms, act) {
    clearTimeout(this.#timers[name]);
    this.#timers[name] = setTimeout(act, Math.min(Math.max(ms, 0), TIMER_MS_MAX));
  }

  #setState(state, detail) {
    const before = this.state;
    Object.assign(this, { state, detail });
    this.#emit('state', { state, before, detail });
  }

  #emit(name, ...args) {
    this.#listeners.get(name)?.forEach((listener) => {
      try {
        listener(...args);
      } catch (error) {
        // Its own fault: it is reported as if nobody had called it from here, and the others hear.
        queueMicrotask(() => { throw error; });
      }
    });
  }
}

/** When a token expires, in ms since 1970; null if it does not say. @param {string} token */
export const expiryOf = (token) => (claimsOf(token)?.exp ?? NaN) * 1000 || null;

/** Whose token it is. @param {string} token @returns {string | null} */
export const subjectOf = (token) => claimsOf(token)?.sub ?? null;

function claimsOf(token) {
  try {
    return JSON.parse(atob(token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/')));
  } catch {
    return null;
  }
}

// The connection to a gateway, client protocol version 1: token, discovery, socket, acknowledgements, reconnecting.
// It touches no element of the page, so it also serves as an example of a client.

const OPEN_WITHIN_MS = 10_000;
const ACK_OVERDUE_MS = 20_000;
const BACKOFF_MS_MIN = 500;
const BACKOFF_MS_MAX = 10_000;

export class Link {
  state = 'connecting';
  detail = '';
  retryAt = 0;
  devTokens = false;

  #token = null;
  #socket = null;
  #openTimer = null;
  #retryTimer = null;
  #attempt = 0;
  #drainMs = null;
  #clockOffsetMs = 0;
  #acksDue = new Map();
  #hooks;

  /** `hooks` has onState(), onTraffic(direction, text), onFrame(frame), onAck(ms) and onTokenNeeded(why). */
  constructor(user, hooks) {
    this.user = user;
    this.#hooks = hooks;
  }

  get isOpen() {
    return this.state === 'open';
  }

  serverNow() {
    return Date.now() + this.#clockOffsetMs;
  }

  async connect() {
    clearTimeout(this.#retryTimer);
    this.#setState('connecting', 'asking for a gateway');
    try {
      this.#token = await this.#currentToken();
      if (this.#token) this.#open(await this.#discover());
      else this.#setState('closed', 'a token is needed');
    } catch (failure) {
      this.#reconnectLater(failure.message);
    }
  }

  retryNow() {
    if (this.state === 'reconnecting') this.connect();
  }

  useToken(token) {
    this.#token = token;
    this.user = subjectOf(token) ?? this.user;
    if (this.state !== 'connecting') this.connect();
  }

  /** Sends a frame; one with a `ref` is expected to be answered. */
  send(frame) {
    const text = JSON.stringify(frame);
    if (frame.ref !== undefined) this.#acksDue.set(frame.ref, performance.now());
    this.#socket.send(text);
    this.#hooks.onTraffic('sent', text);
  }

  /** A half-open connection gives no sign of itself but silence. */
  checkSilence() {
    const [oldest] = this.#acksDue.values();
    if (this.isOpen && performance.now() - oldest > ACK_OVERDUE_MS) this.#abandon('the gateway went silent');
  }

  async replaceFriendList(ids) {
    const headers = { Authorization: `Bearer ${this.#token}`, 'Content-Type': 'application/json' };
    const body = JSON.stringify({ lists: { [this.user]: ids } });
    await succeed(call('/v1/friend-lists', { method: 'POST', headers, body }));
  }

  /** A dev token is fetched for each attempt: a restarted server may sign with another secret. */
  async #currentToken() {
    if (this.#token && !this.devTokens) return this.#token;
    const response = await call(`/v1/dev/token?user=${this.user}`);
    if (!response.ok && response.status < 500) {
      this.#hooks.onTokenNeeded('This server gives none out: dev tokens are off.');
      return null;
    }
    const { token } = await succeed(response);
    this.devTokens = true;
    return token;
  }

  async #discover() {
    return (await succeed(call('/v1/gateway'))).url;
  }

  #open(url) {
    const socket = this.#socket = new WebSocket(url, ['nearby.v1', `bearer.${this.#token}`]);
    this.#openTimer = setTimeout(() => this.#abandon('no welcome in time'), OPEN_WITHIN_MS);
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#closed(code, reason);
  }

  #receive(text) {
    this.#hooks.onTraffic('received', text);
    const frame = JSON.parse(text);
    if (frame.type === 'welcome') this.#welcomed(frame);
    if (frame.type === 'snapshot') this.#attempt = 0;
    if (frame.type === 'drain') this.#drainMs = frame.reconnect_after_ms;
    if (frame.ref !== undefined) this.#settle(frame);
    this.#hooks.onFrame(frame);
  }

  #welcomed({ gateway, session, server_time_ms }) {
    clearTimeout(this.#openTimer);
    this.#clockOffsetMs = server_time_ms - Date.now();
    this.#setState('open', `${gateway} · session ${session}`);
  }

  #settle({ type, ref }) {
    const sentAt = this.#acksDue.get(ref);
    this.#acksDue.delete(ref);
    if (type === 'accepted' && sentAt !== undefined) this.#hooks.onAck(performance.now() - sentAt);
  }

  /** A peer that vanished never answers close(), so its close event is not waited for. */
  #abandon(reason) {
    this.#socket.onclose = this.#socket.onmessage = null;
    this.#socket.close();
    this.#closed(1006, reason);
  }

  #closed(code, reason) {
    clearTimeout(this.#openTimer);
    this.#acksDue.clear();
    const how = [`closed with ${code}`, reason].filter(Boolean).join(' ');
    const wasOpen = this.isOpen;
    if (reason === 'token_expired' && !this.devTokens) {
      this.#token = null;
      this.#setState('closed', how);
      this.#hooks.onTokenNeeded('The token has expired.');
      return;
    }
    this.#reconnectLater(how);
    if (!wasOpen && !this.devTokens) this.#hooks.onTokenNeeded('The gateway refused the connection; the token may be wrong or expired.');
  }

  #reconnectLater(why) {
    const backoffMs = Math.min(BACKOFF_MS_MAX, BACKOFF_MS_MIN * 2 ** this.#attempt) * (0.5 + Math.random() / 2);
    const delayMs = this.#drainMs ?? backoffMs;
    this.#drainMs = null;
    this.#attempt += 1;
    this.retryAt = Date.now() + delayMs;
    this.#retryTimer = setTimeout(() => this.connect(), delayMs);
    this.#setState('reconnecting', why);
  }

  #setState(state, detail) {
    const before = this.state;
    Object.assign(this, { state, detail });
    this.#hooks.onState(before);
  }
}

export const looksLikeToken = (text) => /^[\w-]+\.[\w-]+\.[\w-]+$/.test(text);

function subjectOf(token) {
  try {
    return JSON.parse(atob(token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/'))).sub;
  } catch {
    return null;
  }
}

async function call(path, options) {
  try {
    return await fetch(path, { cache: 'no-store', ...options });
  } catch {
    throw new Error('the server does not answer');
  }
}

/** The body of a response that went well; otherwise throws what the problem document says. */
async function succeed(pending) {
  const response = await pending;
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw new Error([body.code ?? `HTTP ${response.status}`, body.detail].filter(Boolean).join(': '));
}

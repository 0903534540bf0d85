// Where the pages' tokens come from: the server, if it gives them out for development, or the person at the page.

import { subjectOf } from '/nearby.js';

const WHY_NEEDED = { expired: 'The token has expired.', refused: 'The server does not take this token.' };
const LOOKS_LIKE_TOKEN = /^[\w-]+\.[\w-]+\.[\w-]+$/;

export class Tokens {
  /** Whether this server gives tokens out. */
  dev = false;
  #token = null;
  #onNeeded;

  /** `onNeeded(why)` asks the person for a token. */
  constructor(user, onNeeded) {
    this.user = user;
    this.#onNeeded = onNeeded;
  }

  /** For `Nearby`. A dev token is fetched for each attempt: a restarted server may sign with another secret. */
  get = async (reason) => {
    if ((reason === 'expired' || reason === 'refused') && !this.dev) this.#token = null;
    if (this.#token && !this.dev) return this.#token;
    const response = await call(`/v1/dev/token?user=${this.user}`);
    if (!response.ok && response.status < 500) {
      this.#onNeeded(WHY_NEEDED[reason] ?? 'This server gives none out: dev tokens are off.');
      return null;
    }
    const { token } = await succeed(response);
    this.dev = true;
    this.#token = token;
    return token;
  };

  /** Takes what the person gave; false if it is no token. */
  use(token) {
    if (!LOOKS_LIKE_TOKEN.test(token)) return false;
    this.#token = token;
    this.user = subjectOf(token) ?? this.user;
    return true;
  }

  get headers() {
    return { Authorization: `Bearer ${this.#token}` };
  }

  async replaceFriendList(ids) {
    const headers = { ...this.headers, 'Content-Type': 'application/json' };
    const body = JSON.stringify({ lists: { [this.user]: ids } });
    await succeed(call('/v1/friend-lists', { method: 'POST', headers, body }));
  }
}

/** Who the page's address says that I am, or user 1; null if it names nobody. */
export function userOf(search) {
  const user = new URLSearchParams(search).get('user') ?? '1';
  return /^(0|[1-9]\d{0,18})$/.test(user) ? user : null;
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

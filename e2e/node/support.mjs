// What the programs here share. The package `ws` is in target/e2e/node, whose folder is in NODE_LIBRARIES.

import { createRequire } from 'node:module';

export const { WebSocket, WebSocketServer } = createRequire(`${process.env.NODE_LIBRARIES}/`)('ws');

/** What a promise gives, or an error when it takes too long. */
export async function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`${what} did not come within ${ms} ms`)), ms); });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

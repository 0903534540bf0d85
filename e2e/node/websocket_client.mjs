// The Node package ws as a client, by its own defaults: it offers compression, and answers pings by itself.
// Arguments: the API's address, a user's token, and a friend's. Prints what it has seen, as JSON.

import { once } from 'node:events';
import { WebSocket, within } from './support.mjs';

const [base, token, friendToken] = process.argv.slice(2);
const seen = {};
const { url } = await (await fetch(`${base}/v1/gateway`)).json();

/** A socket, and its frames in order, whenever they came. */
function open(bearer) {
  const socket = new WebSocket(url, ['nearby.v1', `bearer.${bearer}`], { perMessageDeflate: true });
  const [frames, waiting] = [[], []];
  socket.on('message', (data) => {
    const frame = JSON.parse(data);
    if (waiting.length) waiting.shift()(frame);
    else frames.push(frame);
  });
  const next = () => within(10_000, 'a frame', frames.length ? Promise.resolve(frames.shift()) : new Promise((resolve) => waiting.push(resolve)));
  const until = async (type) => {
    for (;;) {
      const frame = await next();
      if (frame.type === type) return frame;
    }
  };
  return { socket, next, until };
}

const { socket, next, until } = open(token);
seen.offered = socket._req.getHeader('sec-websocket-extensions').includes('permessage-deflate');
socket.on('upgrade', ({ headers }) => { seen.extensions = headers['sec-websocket-extensions'] ?? ''; });
await within(10_000, 'open', once(socket, 'open'));
seen.subprotocol = socket.protocol;
seen.first = [(await next()).type, (await next()).type];
socket.ping('are you there?');
await within(10_000, 'a pong', once(socket, 'pong'));
seen.pong = true;
socket.send(JSON.stringify({ type: 'location', lat: 50, lon: 8, ref: 'whole' }));
seen.whole = (await until('accepted')).ref;
const text = JSON.stringify({ type: 'location', lat: 50, lon: 8.001, ref: 'in three' });
socket.send(text.slice(0, 7), { fin: false });
socket.ping();
socket.send(text.slice(7, 20), { fin: false });
socket.send(text.slice(20), { fin: true });
seen.fragmented = (await until('accepted')).ref;
const headers = { Authorization: `Bearer ${friendToken}` };
await fetch(`${base}/v1/locations`, { method: 'POST', headers, body: JSON.stringify({ lat: 50.01, lon: 8.001 }) });
const [moved] = (await until('update')).moved;
seen.moved = [moved.lat, moved.distance_m];
socket.close(1000, 'enough');
const [code, reason] = await within(10_000, 'close', once(socket, 'close'));
seen.closed = [code, String(reason)];

const big = open(token);
await big.until('snapshot');
big.socket.send(' '.repeat(64 * 1024 + 1));
const [tooBig, why] = await within(10_000, 'close', once(big.socket, 'close'));
seen['too big'] = [tooBig, String(why)];

const refused = open('nonsense');
const [, answer] = await within(10_000, 'a refusal', once(refused.socket, 'unexpected-response'));
seen['bad token'] = answer.statusCode;
answer.destroy();
console.log(JSON.stringify(seen));
process.exit(0);

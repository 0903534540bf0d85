// web/nearby.js against a gateway of a few lines: what it does when, without the rest of the pipeline.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { test } from 'node:test';
import { BACKOFF_MS, BACKOFF_MS_MAX, Nearby, NearbyError, STEADY_AFTER_MS, expiryOf, subjectOf } from '../../web/nearby.js';
import { WebSocket, WebSocketServer, within } from './support.mjs';

const tokenFor = (claims) => `e30.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.x`;
const inAnHour = () => Date.now() / 1000 + 3600;
const friend = (id, visibleForMs = 60_000) => ({
  id, lat: 1, lon: 2, distance_m: 3, updated_at_ms: Date.now(), visible_until_ms: Date.now() + visibleForMs,
});

const LIMIT = { timeout: 20_000 };

/** A gateway: says `welcome` and an empty `snapshot`, unless told otherwise; the test does the rest. */
async function gateway({ aheadMs = 0, snapshot = () => [] } = {}) {
  const made = {};
  const asked = [];
  const refusals = [];
  const server = createServer((request, response) => {
    asked.push(request.url);
    made.onRequest?.(request);
    const refusal = refusals.shift();
    if (refusal) {
      response.writeHead(refusal.status, { 'content-type': 'application/problem+json', ...refusal.headers });
      return response.end(JSON.stringify({ code: refusal.code, detail: 'by the test' }));
    }
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify({ gateway: 'g', url: `ws://127.0.0.1:${server.address().port}/v1/stream` }));
  });
  const sockets = new WebSocketServer({ server, handleProtocols: () => 'nearby.v1' });
  const frames = [];
  const tokens = [];
  sockets.on('connection', (socket, request) => {
    tokens.push(request.headers['sec-websocket-protocol'].split(', bearer.')[1]);
    socket.on('message', (data) => { frames.push(JSON.parse(data)); sockets.emit('frame', frames.at(-1), socket); });
    if (snapshot() === null) return;
    socket.send(JSON.stringify({ type: 'welcome', gateway: 'g', session: '1/1', server_time_ms: Date.now() + aheadMs }));
    socket.send(JSON.stringify({ type: 'snapshot', friends: snapshot() }));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const say = (frame) => sockets.clients.forEach((socket) => socket.send(JSON.stringify(frame)));
  const end = () => { sockets.clients.forEach((socket) => socket.terminate()); server.close(); };
  return Object.assign(made, { base: `http://127.0.0.1:${server.address().port}`, asked, refusals, sockets, frames, tokens, say, end });
}

/** A client of that gateway, and both are ended with the test. */
async function connected(t, gateway, settings = {}) {
  const nearby = new Nearby({ base: gateway.base, WebSocket, token: async () => tokenFor({ sub: '1', exp: inAnHour() }), random: () => 0, ...settings });
  t.after(() => { nearby.close(); gateway.end(); });
  const ready = heard(nearby, 'snapshot');
  nearby.connect();
  await ready;
  return nearby;
}

const heard = (nearby, name, fits = () => true) => within(5_000, name, new Promise((resolve) => {
  const off = nearby.on(name, (...args) => { if (fits(...args)) { off(); resolve(args[0]); } });
}));

test('it keeps the view that it is told', LIMIT, async (t) => {
  const at = await gateway({ snapshot: () => [friend('2'), friend('3')] });
  const nearby = await connected(t, at);
  assert.deepEqual([...nearby.friends.keys()], ['2', '3']);
  at.say({ type: 'update', moved: [{ ...friend('4'), distance_m: 9 }], left: [{ id: '2', reason: 'distance' }] });
  const update = await heard(nearby, 'update');
  assert.deepEqual([update.moved[0].distance_m, update.left], [9, [{ id: '2', reason: 'distance' }]]);
  assert.deepEqual([...nearby.friends.keys()], ['3', '4']);
  at.say({ type: 'a type of next year' });
  at.say({ type: 'snapshot', friends: [friend('5')] });
  await heard(nearby, 'snapshot');
  assert.deepEqual([...nearby.friends.keys()], ['5']);
});

test('a friend is hidden at visible_until_ms by the server\'s clock, though nothing more is heard', LIMIT, async (t) => {
  // The server is an hour ahead: by this machine's clock everything would be visible for long.
  const aheadMs = 3_600_000;
  const at = await gateway({ aheadMs, snapshot: () => [friend('2', aheadMs + 300), friend('3', aheadMs + 60_000), friend('4', 1_000)] });
  const nearby = await connected(t, at);
  assert.deepEqual([...nearby.friends.keys()], ['2', '3'], 'one of the past is not shown at all');
  assert.deepEqual(await heard(nearby, 'hidden'), ['2']);
  assert.deepEqual([...nearby.friends.keys()], ['3']);
  at.say({ type: 'update', moved: [friend('2', aheadMs - 1)] });
  await heard(nearby, 'update');
  assert.equal(nearby.friends.has('2'), false, 'nor does it come back with an old time');
});

test('a report is a promise', LIMIT, async (t) => {
  const at = await gateway();
  const nearby = await connected(t, at);
  at.sockets.on('frame', ({ type, lat, ref }, socket) => {
    if (lat === 91) socket.send(JSON.stringify({ type: 'error', code: 'out_of_range', detail: 'lat: out_of_range', ref }));
    else if (type === 'unshare') socket.terminate();
    else socket.send(JSON.stringify({ type: 'accepted', ref }));
  });
  const [{ ms }] = await Promise.all([nearby.report({ lat: 1, lon: 2 }), nearby.report({ lat: 3, lon: 4, precision: 'coarse' })]);
  assert.ok(ms >= 0 && ms < 5_000, `${ms} ms`);
  assert.deepEqual(at.frames.map(({ type, lat, precision }) => [type, lat, precision]), [['location', 1, undefined], ['location', 3, 'coarse']]);
  assert.notEqual(at.frames[0].ref, at.frames[1].ref);
  await assert.rejects(nearby.report({ lat: 91, lon: 0 }), (error) => error instanceof NearbyError && error.code === 'out_of_range');
  await assert.rejects(nearby.unshare(), { code: 'connection_lost' });
  await assert.rejects(nearby.report({ lat: 1, lon: 2 }), { code: 'not_connected' });
});

test('it asks for a gateway before each connection, and comes back when the draining one said', LIMIT, async (t) => {
  const at = await gateway();
  const nearby = await connected(t, at, { random: () => 1 });
  assert.deepEqual(at.asked, ['/v1/gateway']);
  at.say({ type: 'drain', reconnect_after_ms: 40 });
  await heard(nearby, 'drain');
  const [closing, waiting, again] = [heard(nearby, 'close'), heard(nearby, 'state', ({ state }) => state === 'reconnecting'), heard(nearby, 'snapshot')];
  at.sockets.clients.forEach((socket) => socket.close(1012, 'restart'));
  assert.deepEqual(await closing, { code: 1012, reason: 'restart' });
  await waiting;
  const waitMs = nearby.retryAt - Date.now();
  assert.ok(waitMs <= 40, `${waitMs} ms: its jitter alone would be ${BACKOFF_MS}`);
  await again;
  assert.deepEqual(at.asked, ['/v1/gateway', '/v1/gateway']);
});

test('attempts wait a random time up to a limit that doubles, and at least as long as the server asks', LIMIT, async (t) => {
  const at = await gateway();
  let asked = 0;
  const nearby = new Nearby({ base: at.base, WebSocket, random: () => 0.5, token: async () => { asked += 1; throw new Error('none today'); } });
  t.after(() => { nearby.close(); at.end(); });
  const waits = [];
  nearby.on('state', ({ state }) => {
    if (state !== 'reconnecting') return;
    waits.push(nearby.retryAt - Date.now());
    if (waits.length < 8) queueMicrotask(() => nearby.connect());
  });
  nearby.connect();
  await within(5_000, 'eight attempts', (async () => { while (waits.length < 8) await new Promise((r) => setTimeout(r, 5)); })());
  const limits = [0, 1, 2, 3, 4, 5, 6, 7].map((n) => Math.min(BACKOFF_MS_MAX, BACKOFF_MS * 2 ** n) / 2);
  waits.forEach((wait, n) => assert.ok(Math.abs(wait - limits[n]) < 50, `attempt ${n}: ${wait}, not ${limits[n]}`));
  assert.equal(asked, 8);

  const patient = new Nearby({ base: at.base, WebSocket, random: () => 0.5, token: async () => 'e30.e30.x' });
  t.after(() => patient.close());
  at.refusals.push({ status: 503, code: 'no_gateway', headers: { 'retry-after': '7' } });
  const refused = heard(patient, 'state', ({ state }) => state === 'reconnecting');
  patient.connect();
  assert.match((await refused).detail, /no_gateway/);
  const waitMs = patient.retryAt - Date.now();
  assert.ok(waitMs > 7_000 && waitMs <= 7_000 + BACKOFF_MS / 2, `${waitMs} ms`);
});

test('who is closed soon after the snapshot waits longer each time, and begins anew after a steady connection', LIMIT, async (t) => {
  const at = await gateway();
  const { setTimeout: real } = globalThis;
  const steady = [];
  globalThis.setTimeout = (act, ms, ...more) => (ms === STEADY_AFTER_MS ? real(() => {}, 0, steady.push(act)) : real(act, ms, ...more));
  t.after(() => { globalThis.setTimeout = real; });
  const nearby = await connected(t, at, { random: () => 1 });
  const closed = async () => {
    const waiting = heard(nearby, 'state', ({ state }) => state === 'reconnecting');
    at.sockets.clients.forEach((socket) => socket.close(1008, 'rate_limited'));
    await waiting;
    return Math.round((nearby.retryAt - Date.now()) / 500) * 500;
  };
  const waits = [];
  for (let n = 0; n < 3; n += 1) {
    const again = heard(nearby, 'snapshot');
    waits.push(await closed());
    nearby.connect();
    await again;
  }
  assert.deepEqual(waits, [500, 1_000, 2_000]);
  steady.at(-1)();
  assert.equal(await closed(), 500);
});

test('a handshake that fails is the token\'s fault only if the server says so', LIMIT, async (t) => {
  const at = await gateway();
  // Statuses of handshakes, and of the request that asks for the reason; a browser is told the latter only.
  const [handshakes, answers] = [[503, 503, 401, 401], [202, 202, 401, 500]];
  at.sockets.options.verifyClient = (info, done) => (handshakes.length ? done(false, handshakes.shift()) : done(true));
  const [reasons, asked] = [[], []];
  at.onRequest = ({ method, url, headers }) => {
    if (url === '/v1/gateway') return;
    asked.push(`${method} ${url} ${headers.authorization}`);
    at.refusals.push({ status: answers.shift(), code: 'by_the_test' });
  };
  const tokens = ['a', 'b', 'c', 'd', 'e'].map((name) => tokenFor({ sub: name, exp: inAnHour() }));
  const token = async (reason) => tokens[reasons.push(reason) - 1];
  const nearby = new Nearby({ base: at.base, WebSocket, token, random: () => 0 });
  t.after(() => { nearby.close(); at.end(); });
  const ready = heard(nearby, 'snapshot');
  nearby.connect();
  await ready;
  assert.deepEqual(reasons, ['connect', 'connect', 'connect', 'refused', 'connect']);
  assert.deepEqual(asked, tokens.slice(0, 4).map((token) => `POST /v1/locations Bearer ${token}`), 'of the token that was offered');
});

test('the token is renewed on the open socket before it expires', LIMIT, async (t) => {
  const at = await gateway();
  at.sockets.on('frame', ({ ref }, socket) => socket.send(JSON.stringify({ type: 'accepted', ref })));
  const reasons = [];
  const token = async (reason) => {
    reasons.push(reason);
    return tokenFor({ sub: '1', exp: reason === 'renew' ? inAnHour() : Date.now() / 1000 + 0.6 });
  };
  const seen = [];
  const nearby = new Nearby({ base: at.base, WebSocket, token, random: () => 0 });
  t.after(() => { nearby.close(); at.end(); });
  nearby.on('traffic', (direction, text) => seen.push(text));
  const ready = heard(nearby, 'snapshot');
  nearby.connect();
  await ready;
  await within(5_000, 'auth', once(at.sockets, 'frame'));
  assert.deepEqual(reasons, ['connect', 'renew']);
  assert.equal(at.frames[0].type, 'auth');
  assert.ok(expiryOf(at.frames[0].token) > Date.now() + 3_000_000);
  assert.ok(seen.every((text) => !text.includes(at.frames[0].token)), 'no listener is shown a token');
  assert.equal(at.asked.length, 1, 'the socket is the same');
});

test('an expired token is replaced, and without one it ends', LIMIT, async (t) => {
  const at = await gateway();
  const reasons = [];
  const nearby = await connected(t, at, { token: async (reason) => { reasons.push(reason); return reasons.length < 3 ? tokenFor({ sub: '1', exp: inAnHour() }) : null; } });
  const again = heard(nearby, 'snapshot');
  at.sockets.clients.forEach((socket) => socket.close(1008, 'token_expired'));
  await again;
  const ended = heard(nearby, 'state', ({ state }) => state === 'closed');
  at.sockets.clients.forEach((socket) => socket.close(1008, 'token_expired'));
  assert.equal((await ended).detail, 'there is no token');
  nearby.connect();
  await heard(nearby, 'state', ({ state }) => state === 'closed');
  assert.deepEqual(reasons, ['connect', 'expired', 'expired', 'connect'], 'the next one is another one');
});

test('closed is closed', LIMIT, async (t) => {
  const at = await gateway({ snapshot: () => [friend('2')] });
  const nearby = await connected(t, at);
  const gone = within(5_000, 'close', once([...at.sockets.clients][0], 'close'));
  nearby.close();
  assert.deepEqual([nearby.state, nearby.friends.size], ['closed', 0]);
  assert.equal((await gone)[0], 1000);
  at.say({ type: 'update', moved: [friend('3')] });
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.deepEqual([nearby.friends.size, at.asked.length], [0, 1], 'it does not come back');
});

test('claims are read out of tokens, and garbage has none', () => {
  assert.equal(subjectOf(tokenFor({ sub: '42' })), '42');
  assert.equal(expiryOf(tokenFor({ exp: 1.5 })), 1500);
  for (const garbage of ['', 'a.b', 'a.%.c', tokenFor({})]) assert.deepEqual([subjectOf(garbage), expiryOf(garbage)], [null, null]);
});

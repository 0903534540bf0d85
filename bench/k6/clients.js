// Clients in k6: each connects, reports, sees its friend move, and closes. Users n and n + 1000 have to list each other.
//
//   k6 run -e URL=http://127.0.0.1:8080 bench/k6/clients.js                    with --dev-tokens
//   k6 run -e URL=… -e CLIENTS=50 -e SECONDS=30 bench/k6/clients.js
//
// k6 has no fragments to send; everything else is as for other clients. It ends with an error unless every check holds.

import http from 'k6/http';
import ws from 'k6/ws';
import exec from 'k6/execution';
import { check } from 'k6';
import { Trend } from 'k6/metrics';

const base = __ENV.URL;
const clients = Number(__ENV.CLIENTS || 2);
const seconds = Number(__ENV.SECONDS || 2);
const PAUSE_MS = 200;

export const options = {
  scenarios: { clients: { executor: 'per-vu-iterations', vus: clients, iterations: 1, maxDuration: `${seconds + 30}s` } },
  thresholds: { checks: ['rate==1.0'], latency: ['p(95)<5000'] },
};
const latency = new Trend('latency', true);

const tokenOf = (user) => http.get(`${base}/v1/dev/token?user=${user}`).json('token');
const post = (path, token, body) => http.post(base + path, JSON.stringify(body), { headers: { Authorization: `Bearer ${token}` } });

export function setup() {
  const lists = {};
  for (let n = 1; n <= clients; n += 1) Object.assign(lists, { [n]: [`${n + 1000}`], [n + 1000]: [`${n}`] });
  check(post('/v1/friend-lists', tokenOf(0), { lists }), { 'lists are accepted': ({ status }) => status === 202 });
}

export default function () {
  const user = exec.vu.idInTest;
  const [token, friendToken] = [tokenOf(user), tokenOf(user + 1000)];
  const { url } = http.get(`${base}/v1/gateway`).json();
  const saw = { first: [], accepted: 0, moved: 0, pongs: 0, closed: null };
  const headers = { 'Sec-WebSocket-Protocol': `nearby.v1, bearer.${token}` };
  const answer = ws.connect(url, { headers, compression: 'deflate' }, (socket) => {
    socket.on('message', (text) => {
      const frame = JSON.parse(text);
      if (saw.first.length < 2) saw.first.push(frame.type);
      if (frame.type === 'snapshot') socket.send(JSON.stringify({ type: 'location', lat: 50, lon: 8, ref: user }));
      if (frame.type === 'accepted' && frame.ref === user) saw.accepted += 1;
      for (const friend of frame.moved || []) {
        if (friend.id !== `${user + 1000}`) continue;
        saw.moved += 1;
        latency.add(Date.now() - friend.updated_at_ms);
      }
    });
    socket.on('pong', () => { saw.pongs += 1; });
    socket.on('close', (code) => { saw.closed = code; });
    socket.setInterval(() => {
      post('/v1/locations', friendToken, { lat: 50.01 + Math.random() / 1000, lon: 8, reported_at_ms: Date.now() });
      socket.ping();
    }, PAUSE_MS);
    socket.setTimeout(() => socket.close(1000), seconds * 1000);
  });
  check(answer, {
    'it was 101': ({ status }) => status === 101,
    'with the subprotocol': (one) => one.headers['Sec-Websocket-Protocol'] === 'nearby.v1',
    'and without compression': (one) => one.headers['Sec-Websocket-Extensions'] === undefined,
  });
  check(saw, {
    'welcome and snapshot come first': ({ first }) => first.join() === 'welcome,snapshot',
    'the report is accepted': ({ accepted }) => accepted === 1,
    'the friend moves': ({ moved }) => moved >= 3,
    'pings are answered': ({ pongs }) => pongs >= 3,
    'it is closed in order': ({ closed }) => closed === 1000,
  });
}

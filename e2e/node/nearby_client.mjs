// web/nearby.js in Node, against a real server. Arguments and output as for websocket_client.mjs.

import { Nearby } from '../../web/nearby.js';
import { WebSocket, within } from './support.mjs';

const [base, token, friendToken] = process.argv.slice(2);
const seen = {};
const nearby = new Nearby({ base, WebSocket, token: async () => token });
const heard = (name, fits = () => true) => within(10_000, name, new Promise((resolve) => {
  const off = nearby.on(name, (...args) => { if (fits(...args)) { off(); resolve(args[0]); } });
}));
const ready = heard('snapshot');
nearby.connect();
seen.friends = (await ready).friends;
seen.acknowledged = (await nearby.report({ lat: 50, lon: 8 })).ms > 0;
seen.refused = await nearby.report({ lat: 91, lon: 8 }).catch(({ code }) => code);
const update = heard('update', ({ moved }) => moved.length > 0);
const headers = { Authorization: `Bearer ${friendToken}` };
await fetch(`${base}/v1/locations`, { method: 'POST', headers, body: JSON.stringify({ lat: 50.01, lon: 8 }) });
await update;
seen.view = [...nearby.friends.values()].map(({ lat, distance_m }) => [lat, distance_m]);
const nobody = heard('view', (friends) => friends.size === 0);
await nearby.unshare();
await nobody;
nearby.close();
seen.state = nearby.state;
console.log(JSON.stringify(seen));

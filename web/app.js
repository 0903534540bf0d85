// The live map: one user's view of nearby. A frame changes `friends` or `me` and moves their markers at once; ages,
// lists, counters and logs follow on a slow tick, so that a hundred friends at ten updates a second stay cheap.

import { Marker, pulse, showMe, showReach, startMap, wrapDegrees } from '/map.js';
import { Nearby } from '/nearby.js';
import { $, Row, clamp, countUpdates, lengthText, logFrame, orderRows, setText, showAck, showCounts, showFrames, startPanel, tell, tellEach, toast } from '/panel.js';
import { Tokens, userOf } from '/tokens.js';

const TICK_MS = 250;
const REPORT_EVERY_MS = 30_000;
const REPORT_GAP_MS = 200;
const LAT_MAX = 85;

const me = { ...startPlace(), sharing: true, reportedAt: 0, reportTimer: null };
const reach = { radiusM: 8000, inactiveAfterMs: 600_000 };
const friends = new Map();
let orderIsStale = false;
let pointedAt;

const tokens = new Tokens(startUser(), askForToken);
const nearby = new Nearby({ token: tokens.get });

const heard = {
  state: stateChanged,
  traffic: logFrame,

  welcome(frame) {
    reach.radiusM = frame.radius_m;
    reach.inactiveAfterMs = frame.inactive_after_s * 1000;
    showReach(reach.radiusM);
    tell(`connected to ${frame.gateway}`);
    // Who stopped sharing without a connection has not been heard.
    if (me.sharing) report();
    else acknowledged(nearby.unshare());
  },

  snapshot({ friends: reports }) {
    const seen = new Set(reports.map(({ id }) => id));
    [...friends.values()].filter(({ id }) => !seen.has(id)).forEach(hideFriend);
    reports.forEach(showFriend);
    tell(`snapshot: ${reports.length} within ${lengthText(reach.radiusM)}`);
  },

  update({ moved, left }) {
    countUpdates(moved.length);
    tellEach(moved.map(({ id }) => id).filter((id) => !friends.has(id)), `came within ${lengthText(reach.radiusM)}`);
    moved.forEach(showFriend);
    const gone = left.filter(({ id }) => friends.has(id));
    gone.forEach(({ id }) => hideFriend(friends.get(id)));
    for (const why of new Set(gone.map(({ reason }) => reason))) {
      tellEach(gone.filter(({ reason }) => reason === why).map(({ id }) => id), `left: ${why}`);
    }
  },

  hidden(ids) {
    ids.forEach((id) => hideFriend(friends.get(id)));
    tellEach(ids, 'left: expired');
  },

  error({ code, detail }) {
    toast(code, detail, 'bad');
  },

  drain() {
    tell('the gateway is draining');
  },
};

function hueOf(id) {
  let hash = 0;
  for (const digit of id) hash = (hash * 31 + digit.charCodeAt(0)) % 65_521;
  return Math.round(hash * 137.508 % 360);
}

function showFriend({ id, lat, lon, distance_m, updated_at_ms }) {
  if (!friends.has(id)) friends.set(id, { id, marker: new Marker(id, hueOf(id)), row: new Row(id, hueOf(id)) });
  const friend = friends.get(id);
  Object.assign(friend, { distanceM: distance_m, updatedAt: updated_at_ms });
  friend.marker.move({ lat, lon }, distance_m);
  showAge(friend);
  orderIsStale = true;
}

function hideFriend(friend) {
  friends.delete(friend.id);
  friend.marker.fadeAway();
  friend.row.remove();
}

function showAge(friend) {
  const ageMs = nearby.serverNow() - friend.updatedAt;
  friend.row.showAge(ageMs);
  const fresh = (1 - 0.7 * clamp(ageMs / reach.inactiveAfterMs, 0, 1) ** 0.6).toFixed(2);
  if (friend.fresh !== fresh) friend.marker.dim(fresh);
  friend.fresh = fresh;
}

function showOrder() {
  orderIsStale = false;
  const byDistance = [...friends.values()].sort((a, b) => a.distanceM - b.distanceM);
  for (const { row, distanceM } of byDistance) row.show(distanceM, reach.radiusM);
  orderRows(byDistance.map(({ row }) => row));
}

/** Marks the same friend on the map and in the list. */
function pointAt(id) {
  if (pointedAt === id) return;
  for (const [friend, on] of [[friends.get(pointedAt), false], [friends.get(id), true]]) {
    friend?.marker.light(on);
    friend?.row.light(on);
  }
  pointedAt = id;
}

function tick() {
  friends.forEach(showAge);
  if (orderIsStale) showOrder();
  showCounts(friends.size);
  showFrames();
  showState();
  if (performance.now() - me.reportedAt >= REPORT_EVERY_MS) report();
}

function stateChanged({ state, before, detail }) {
  document.body.dataset.state = state;
  if (before === 'open') tell(detail);
  if (nearby.isOpen) $('token-form').hidden = true;
  $('list-box').hidden = !tokens.dev;
  showState();
}

function showState() {
  const seconds = Math.max(0, Math.ceil((nearby.retryAt - Date.now()) / 1000));
  setText($('state'), nearby.state === 'reconnecting' ? `reconnecting in ${seconds} s` : nearby.state);
  setText($('detail'), nearby.detail);
  $('retry').hidden = nearby.state !== 'reconnecting';
}

function moveTo(lat, lon) {
  if (!Number.isFinite(lat) || !Number.isFinite(lon)) throw new RangeError('moveTo needs two finite numbers');
  me.lat = Number(clamp(lat, -LAT_MAX, LAT_MAX).toFixed(7));
  me.lon = Number(wrapDegrees(lon).toFixed(7));
  showMe({ lat: me.lat, lon: me.lon });
  showWhere();
  report();
}

function showWhere() {
  setText($('where'), `${me.lat.toFixed(5)}, ${me.lon.toFixed(5)}`);
}

/** Sends where I am, at most one report every REPORT_GAP_MS; the last place always goes out. */
function report() {
  if (!me.sharing || !nearby.isOpen || me.reportTimer) return;
  const waitMs = me.reportedAt + REPORT_GAP_MS - performance.now();
  if (waitMs > 0) {
    me.reportTimer = setTimeout(() => { me.reportTimer = null; report(); }, waitMs);
    return;
  }
  me.reportedAt = performance.now();
  const precision = $('coarse').checked ? { precision: 'coarse' } : {};
  acknowledged(nearby.report({ lat: me.lat, lon: me.lon, ...precision }));
}

/** A refusal is shown where the others are, and after a lost connection the place is reported anyway. */
function acknowledged(answer) {
  answer.then(({ ms }) => { showAck(ms); pulse(); }, () => {});
}

function toggleSharing() {
  me.sharing = !me.sharing;
  setText($('share-toggle'), me.sharing ? 'Stop sharing' : 'Share again');
  setText($('nobody'), me.sharing ? 'Nobody is near.' : 'While you do not share, nobody sees you and you see nobody.');
  document.body.classList.toggle('private', !me.sharing);
  if (me.sharing) report();
  else if (nearby.isOpen) acknowledged(nearby.unshare());
}

function locate() {
  navigator.geolocation.getCurrentPosition(
    ({ coords }) => moveTo(coords.latitude, coords.longitude),
    ({ message }) => toast('No location', message || 'The device did not say where it is.', 'bad'),
    { enableHighAccuracy: true, timeout: 10_000 },
  );
}

function askForToken(why) {
  setText($('token-why'), why);
  setText($('token-command'), `nearby token --user ${tokens.user}`);
  if ($('token-form').hidden) {
    $('token-form').hidden = false;
    $('token').focus();
  }
}

function useToken(event) {
  event.preventDefault();
  const token = $('token').value.trim();
  if (!tokens.use(token)) return toast('Not a token', 'A token is three words joined by dots.', 'bad');
  $('token').value = '';
  nearby.connect();
  setText($('who'), `User ${tokens.user}`);
}

async function replaceList(event) {
  event.preventDefault();
  const ids = $('list-ids').value.match(/\d+/g) ?? [];
  try {
    await tokens.replaceFriendList(ids);
    toast('List replaced.', ids.length ? `You may see ${ids.join(', ')}.` : 'You may see nobody.');
  } catch (failure) {
    toast('List not replaced', failure.message, 'bad');
  }
}

function startUser() {
  const user = userOf(location.search);
  if (!user) toast('No such user', 'What the address says is not a user id, so this is user 1.', 'bad');
  return user ?? '1';
}

function startPlace() {
  const settings = new URLSearchParams(location.search);
  const [lat, lon] = ['lat', 'lon'].map((name) => parseFloat(settings.get(name)));
  return Math.abs(lat) <= LAT_MAX && Math.abs(lon) <= 180 ? { lat, lon } : { lat: 40.7484, lon: -73.9857 };
}

function start() {
  setText($('who'), `User ${tokens.user}`);
  $('handshake-link').href = `/handshake${location.search}`;
  showWhere();
  startMap({ lat: me.lat, lon: me.lon }, ({ lat, lon }) => moveTo(lat, lon), pointAt);
  startPanel(pointAt);
  $('share-toggle').onclick = toggleSharing;
  $('locate').onclick = locate;
  $('coarse').onchange = report;
  $('retry').onclick = () => nearby.connect();
  $('token-form').onsubmit = useToken;
  $('list-form').onsubmit = replaceList;
  addEventListener('online', () => { if (nearby.state === 'reconnecting') nearby.connect(); });
  setInterval(tick, TICK_MS);
  for (const [name, listener] of Object.entries(heard)) nearby.on(name, listener);
  nearby.connect();
}

start();
window.nearby = { moveTo };

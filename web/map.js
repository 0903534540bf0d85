// The map: a camera over a flat world, markers with trails, and the gestures that move me.
// World coordinates are metres east and south of `origin`, so a marker's transform changes only when its friend moves.

import { $, clamp, lengthText, setText } from '/panel.js';

const METRES_PER_DEGREE = 6_371_008.8 * Math.PI / 180;
const ORIGIN_DRIFT_M_MAX = 20_000;
const FADE_MS = 450;
const TRAIL_LEGS_MAX = 9;
const METRES_PER_PX_MIN = 0.5;
const METRES_PER_PX_MAX = 400;

const calm = matchMedia('(prefers-reduced-motion: reduce)');
const camera = { x: 0, y: 0, metresPerPx: 20, target: { x: 0, y: 0, metresPerPx: 20 }, following: true, fitted: true, moving: false };
const view = { width: 1, height: 1 };
const markers = new Set();
const pointers = new Map();
let gesture = null;
let me = null;
let origin = null;
let radiusM = 8000;
let onMoved = null;
let onPointedAt = null;

export function startMap(start, moved, pointedAt) {
  [me, origin, onMoved, onPointedAt] = [start, start, moved, pointedAt];
  showReach(radiusM);
  withoutGliding(drawMe);
  listen();
}

/** Shows me somewhere else; the camera comes along unless the person has panned away or is dragging me. */
export function showMe(spot) {
  me = spot;
  if (Math.hypot(toWorld(me).x, toWorld(me).y) > ORIGIN_DRIFT_M_MAX) withoutGliding(moveOrigin);
  drawMe();
  if (camera.following && gesture?.kind !== 'me') aim(toWorld(me));
}

export function showReach(metres) {
  radiusM = metres;
  $('reach').replaceChildren(...[4, 3, 2, 1].map((quarter) => ring(radiusM * quarter / 4, quarter === 4 ? 'edge' : '')));
  if (camera.fitted) recentre({ glide: false });
}

export function pulse() {
  if (calm.matches) return;
  $('pulse').animate([{ opacity: 0.7, transform: 'scale(.8)' }, { opacity: 0, transform: 'scale(2.6)' }], { duration: 900, easing: 'ease-out' });
}

/** A friend on the map. */
export class Marker {
  #element;
  #trail = svg('g', { class: 'trail' });
  #spot = null;
  #trailFrom = null;

  constructor(id, hue) {
    const short = id.length > 4 ? `…${id.slice(-2)}` : id;
    const label = svg('text', { 'font-size': short.length > 3 ? 8.5 : 10 }, short);
    const dot = svg('g', { class: 'dot' }, svg('circle', { class: 'halo', r: 20 }), svg('circle', { class: 'disc', r: 13 }), label);
    this.#element = svg('g', { class: 'friend', 'data-friend': id }, svg('g', { class: 'fixed' }, dot));
    this.#eachPart((part) => part.style.setProperty('--hue', hue));
    $('markers').append(this.#element);
    $('trails').append(this.#trail);
    markers.add(this);
  }

  move(spot, distanceM) {
    this.#spot = spot;
    Object.assign(this.#element.dataset, { ...spot, distanceM });
    const at = toWorld(spot);
    place(this.#element, at);
    this.#extendTrail(at);
  }

  dim(fresh) {
    this.#eachPart((part) => part.style.setProperty('--fresh', fresh));
  }

  light(on) {
    this.#element.classList.toggle('lit', on);
  }

  /** Gives its id up at once, so that a friend who returns while it fades is drawn anew. */
  fadeAway() {
    markers.delete(this);
    delete this.#element.dataset.friend;
    this.#eachPart((part) => {
      part.classList.add('leaving');
      setTimeout(() => part.remove(), FADE_MS);
    });
  }

  originMoved() {
    this.#trail.replaceChildren();
    this.#trailFrom = toWorld(this.#spot);
    place(this.#element, this.#trailFrom);
  }

  /** Steps too short to be seen under the marker make no leg of their own, however often they come. */
  #extendTrail(to) {
    const from = this.#trailFrom ??= to;
    if (Math.hypot(to.x - from.x, to.y - from.y) < 10 * camera.metresPerPx) return;
    this.#trail.append(svg('line', { x1: from.x, y1: from.y, x2: to.x, y2: to.y, pathLength: 1 }));
    if (this.#trail.childElementCount > TRAIL_LEGS_MAX) this.#trail.firstElementChild.remove();
    this.#trailFrom = to;
  }

  #eachPart(act) {
    [this.#element, this.#trail].forEach(act);
  }
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function place(element, { x, y }) {
  element.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`;
}

export const wrapDegrees = (degrees) => ((degrees + 540) % 360 + 360) % 360 - 180;
const metresPerDegreeEast = () => METRES_PER_DEGREE * Math.cos(origin.lat * Math.PI / 180);

function toWorld({ lat, lon }) {
  return { x: wrapDegrees(lon - origin.lon) * metresPerDegreeEast(), y: (origin.lat - lat) * METRES_PER_DEGREE };
}

function toDegrees({ x, y }) {
  return { lat: origin.lat - y / METRES_PER_DEGREE, lon: origin.lon + x / metresPerDegreeEast() };
}

function worldAt(point) {
  return { x: camera.x + (point.x - view.width / 2) * camera.metresPerPx, y: camera.y + (point.y - view.height / 2) * camera.metresPerPx };
}

/** The greatest 1, 2 or 5 times a power of ten that is at most `metres`. */
function niceLength(metres) {
  const power = 10 ** Math.floor(Math.log10(metres));
  return power * [5, 2, 1].find((step) => step * power <= metres * 1.0001);
}

function drawMe() {
  Object.assign($('me').dataset, me);
  place($('me'), toWorld(me));
  place($('reach'), toWorld(me));
}

function ring(radius, kind) {
  const label = svg('text', { class: 'fixed', y: 4 }, lengthText(radius));
  return svg('g', { class: kind }, svg('circle', { r: radius }), svg('g', { transform: `translate(0 ${-radius})` }, label));
}

function withoutGliding(act) {
  $('world').classList.add('jump');
  act();
  $('world').getBoundingClientRect();
  $('world').classList.remove('jump');
}

/** Far from the origin the flat projection would show circles as ovals, so the origin follows me. */
function moveOrigin() {
  const centre = toDegrees(camera);
  origin = me;
  for (const marker of markers) marker.originMoved();
  drawMe();
  aim(toWorld(centre), { glide: false });
}

function aim(target, { glide = true } = {}) {
  Object.assign(camera.target, target);
  if (!glide || calm.matches) Object.assign(camera, camera.target);
  if (!camera.moving) stepCamera();
}

function stepCamera() {
  const { target } = camera;
  const near = Math.hypot(target.x - camera.x, target.y - camera.y) < camera.metresPerPx / 4
    && Math.abs(Math.log(target.metresPerPx / camera.metresPerPx)) < 0.002;
  for (const axis of ['x', 'y', 'metresPerPx']) camera[axis] += (target[axis] - camera[axis]) * (near ? 1 : 0.18);
  drawCamera();
  camera.moving = !near;
  if (camera.moving) requestAnimationFrame(stepCamera);
}

function drawCamera() {
  const { x, y, metresPerPx } = camera;
  $('world').setAttribute('transform', `translate(${view.width / 2} ${view.height / 2}) scale(${1 / metresPerPx}) translate(${-x} ${-y})`);
  drawGrid();
  if (camera.drawnMetresPerPx !== metresPerPx) drawScale();
}

function drawScale() {
  const { metresPerPx } = camera;
  camera.drawnMetresPerPx = metresPerPx;
  $('map').style.setProperty('--metres-per-px', metresPerPx);
  $('map').classList.toggle('far', radiusM / 4 / metresPerPx < 30);
  const bar = niceLength(120 * metresPerPx);
  $('scale-bar').style.width = `${bar / metresPerPx}px`;
  setText($('scale-label'), lengthText(bar));
}

function drawGrid() {
  const step = niceLength(110 * camera.metresPerPx) / camera.metresPerPx;
  const pattern = $('grid');
  pattern.setAttribute('x', (view.width / 2 - camera.x / camera.metresPerPx) % step);
  pattern.setAttribute('y', (view.height / 2 - camera.y / camera.metresPerPx) % step);
  pattern.setAttribute('width', step);
  pattern.setAttribute('height', step);
  pattern.firstElementChild.setAttribute('d', `M${step} .5H.5V${step}`);
}

function recentre({ glide = true } = {}) {
  camera.following = camera.fitted = true;
  aim({ ...toWorld(me), metresPerPx: radiusM * 2.22 / Math.min(view.width, view.height) }, { glide });
}

/** Zooms so that `point` (in pixels) stays where it is; while following me, I am that point. */
function zoom(factor, point = { x: view.width / 2, y: view.height / 2 }, options = {}) {
  const { target } = camera;
  const metresPerPx = clamp(target.metresPerPx * factor, METRES_PER_PX_MIN, METRES_PER_PX_MAX);
  const shift = camera.following ? 0 : target.metresPerPx - metresPerPx;
  camera.fitted = false;
  aim({ x: target.x + (point.x - view.width / 2) * shift, y: target.y + (point.y - view.height / 2) * shift, metresPerPx }, options);
}

function pointOf(event) {
  const box = $('map').getBoundingClientRect();
  return { x: event.clientX - box.left, y: event.clientY - box.top };
}

function fingers() {
  const [a, b] = pointers.values();
  return { apart: Math.hypot(a.x - b.x, a.y - b.y), middle: { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 } };
}

function pointerDown(event) {
  if (event.button !== 0) return;
  $('map').setPointerCapture(event.pointerId);
  const at = pointOf(event);
  pointers.set(event.pointerId, at);
  if (pointers.size === 2) gesture = { kind: 'pinch', apart: fingers().apart };
  else gesture = { kind: event.target.closest('#me') ? 'me' : 'pan', start: at, last: at, moved: false };
}

function pointerMoved(event) {
  if (!pointers.has(event.pointerId)) return onPointedAt(event.target.closest('[data-friend]')?.dataset.friend);
  const at = pointOf(event);
  pointers.set(event.pointerId, at);
  if (gesture?.kind === 'pinch') pinch();
  else if (gesture) drag(at);
}

function pointerUp(event) {
  if (!pointers.delete(event.pointerId) || !gesture) return;
  const { kind, moved, start } = gesture;
  gesture = null;
  $('map').classList.remove('dragging', 'panning');
  if (kind === 'pan' && !moved && event.type === 'pointerup') onMoved(toDegrees(worldAt(start)));
  if (kind === 'me' && camera.following) aim(toWorld(me));
}

/** A press that hardly moves is a click, not a drag. */
function drag(at) {
  gesture.moved ||= Math.hypot(at.x - gesture.start.x, at.y - gesture.start.y) >= 4;
  if (!gesture.moved) return;
  $('map').classList.add(gesture.kind === 'me' ? 'dragging' : 'panning');
  if (gesture.kind === 'me') onMoved(toDegrees(worldAt(at)));
  else pan(at);
  gesture.last = at;
}

function pan(at) {
  camera.following = camera.fitted = false;
  const { x, y, metresPerPx } = camera;
  aim({ x: x - (at.x - gesture.last.x) * metresPerPx, y: y - (at.y - gesture.last.y) * metresPerPx, metresPerPx }, { glide: false });
}

function pinch() {
  const { apart, middle } = fingers();
  zoom(gesture.apart / apart, middle, { glide: false });
  gesture.apart = apart;
}

function walk(eastM, northM) {
  const { x, y } = toWorld(me);
  onMoved(toDegrees({ x: x + eastM, y: y - northM }));
}

function keyPressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = event.shiftKey ? 1000 : 100;
  const acts = {
    ArrowUp: () => walk(0, step), ArrowDown: () => walk(0, -step), ArrowRight: () => walk(step, 0), ArrowLeft: () => walk(-step, 0),
    '+': () => zoom(0.7), '=': () => zoom(0.7), '-': () => zoom(1 / 0.7), Home: () => recentre(),
  };
  if (!Object.hasOwn(acts, event.key)) return;
  event.preventDefault();
  acts[event.key]();
}

function wheelTurned(event) {
  event.preventDefault();
  zoom(Math.exp(clamp(event.deltaY, -120, 120) / 400), pointOf(event));
}

function resized([{ contentRect: { width, height } }]) {
  Object.assign(view, { width, height });
  if (camera.fitted) recentre({ glide: false });
  else drawCamera();
}

function listen() {
  const map = $('map');
  const acts = { pointerdown: pointerDown, pointermove: pointerMoved, pointerup: pointerUp, pointercancel: pointerUp, keydown: keyPressed };
  for (const [name, act] of Object.entries(acts)) map.addEventListener(name, act);
  map.addEventListener('wheel', wheelTurned, { passive: false });
  $('zoom-in').onclick = () => zoom(0.7);
  $('zoom-out').onclick = () => zoom(1 / 0.7);
  $('recentre').onclick = () => recentre();
  new ResizeObserver(resized).observe(map);
}

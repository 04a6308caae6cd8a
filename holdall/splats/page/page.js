// The page: one camera, one or two scenes, and what is measured of them.
import { Camera } from './camera.js';
import { psnr } from './compare.js';
import { decibels, figures } from './figures.js';
import { divider, keys, pointers } from './hands.js';
import { got, records } from './load.js';
import { Painter } from './paint.js';

const SHADERS = ['splat.vert', 'splat.frag', 'both.vert', 'both.frag'];
const GAIN = 8; // of the difference
const REST = 300; // milliseconds without a change until PSNR is measured
const DENSEST = 2; // pixels of the canvas a pixel of the page

const by = (id) => document.getElementById(id);
const canvas = by('view'), stage = by('stage');
const state = { split: 0.5, swapped: false, difference: false, white: false };
const scenes = []; // { held, worker, busy, waiting, known }: an order is under way, a newer view waits, one came
let painter, camera, facts, timer, dirty = false, asked = false, begun = 0, done = 0, pace = 0;

function fault(error) {
  const line = by('fault');
  line.textContent = (error && error.message) || String(error);
  line.hidden = false;
  by('loading').hidden = true;
}

// Orders of Gaussians. One request is under way for each scene; the newest view waits.
function sort(scene) {
  if (scene.busy) {
    scene.waiting = true;
    return;
  }
  const { rows, shift } = camera.seen(painter.width, painter.height);
  scene.busy = true;
  scene.waiting = false;
  scene.worker.postMessage({ forward: rows[2], shift: shift[2], near: facts.near });
}

function sorted(scene, { order }) {
  painter.order(scene.held, order);
  scene.known = true;
  scene.busy = false;
  if (scene.waiting) sort(scene);
  draw();
}

function changed() {
  if (!painter || !scenes.length) return;
  scenes.forEach(sort);
  facts.here = null;
  by('here').textContent = 'measured when it rests';
  draw();
}

function draw() {
  dirty = true;
  clearTimeout(timer);
  if (!asked) {
    asked = true;
    requestAnimationFrame(frame);
  }
}

// A frame is begun when the one before is really drawn: what a slow GPU has not done yet must not pile up.
function frame(now) {
  asked = painter.busy();
  if (asked) {
    requestAnimationFrame(frame);
    return;
  }
  if (begun > done) done = now;
  if (!dirty) return;
  dirty = false;
  if (now - done < 100) rate(now - begun);
  begun = now;
  const view = camera.seen(painter.width, painter.height), { width } = painter;
  const middle = Math.round(state.split * width);
  const [left, right] = sides();
  if (scenes.length < 2 || state.difference) scenes.forEach((s, i) => paint(s, i, view, 0, width));
  else {
    paint(scenes[left], left, view, 0, middle);
    paint(scenes[right], right, view, middle, width);
  }
  show(scenes.length < 2 ? width : middle);
  asked = true;
  requestAnimationFrame(frame);
  if (scenes.length > 1) timer = setTimeout(measure, REST);
}

function paint(scene, i, view, left, right) {
  painter.paint(scene.held, painter.pictures[i], view, facts.near, left, right);
}

function show(middle) {
  const [left, right] = sides();
  painter.show(painter.pictures[left], painter.pictures[right], middle, state.difference ? GAIN : 0, ground());
}

const sides = () => (state.swapped ? [1, 0] : [0, 1]);
const ground = () => (state.white ? [1, 1, 1] : [0, 0, 0]);
const working = () => dirty || asked || scenes.some((s) => s.busy || s.waiting);

function rate(milliseconds) {
  pace = pace ? 0.8 * pace + 0.2 * milliseconds : milliseconds;
  by('rate').textContent = (1000 / pace).toFixed(pace > 100 ? 1 : 0);
}

// Both scenes whole, from here, compared.
function measure() {
  if (working()) {
    timer = setTimeout(measure, REST);
    return;
  }
  const view = camera.seen(painter.width, painter.height);
  scenes.forEach((s, i) => paint(s, i, view, 0, painter.width));
  const found = psnr(...painter.pictures.map((p) => painter.pixels(p)), ground());
  by('here').textContent = decibels(found);
  facts.here = found;
}

const wish = {
  turn: (yaw, pitch) => (camera.turn(yaw, pitch), changed()),
  zoom: (factor) => (camera.zoom(factor), changed()),
  move(right, down) {
    const { width, height } = stage.getBoundingClientRect();
    camera.move(right, down, width, height);
    changed();
  },
  reset: () => (camera.reset(), wish.divide(0.5), changed()),
  divided: () => state.split,
  divide(to) {
    state.split = Math.min(1, Math.max(0, to));
    by('divider').style.left = `${100 * state.split}%`;
    by('divider').setAttribute('aria-valuenow', Math.round(100 * state.split));
    draw();
  },
  swap: () => both(() => (state.swapped = !state.swapped)),
  difference: () => both(() => (state.difference = !state.difference)),
  ground() {
    state.white = !state.white;
    told();
  },
};

function both(change) {
  if (scenes.length < 2) return;
  change();
  told();
}

// What buttons and names say of the state.
function told() {
  const two = scenes.length > 1, names = sides().map((i) => facts.scenes[i] && facts.scenes[i].name);
  by('difference').setAttribute('aria-pressed', state.difference);
  by('ground').setAttribute('aria-pressed', state.white);
  by('divider').hidden = !two || state.difference;
  by('sides').hidden = !two;
  by('left-name').textContent = state.difference ? `difference, ${GAIN} times` : `← ${names[0]}`;
  by('right-name').textContent = state.difference ? '' : `${names[1]} →`;
  by('divider').setAttribute('aria-valuetext', `left ${names[0]}, right ${names[1]}`);
  draw();
}

function resize() {
  const { width, height } = stage.getBoundingClientRect(), dense = Math.min(DENSEST, devicePixelRatio);
  const size = [width, height].map((side) => Math.max(1, Math.round(side * dense)));
  if (size[0] === painter.width && size[1] === painter.height) return;
  [canvas.width, canvas.height] = size;
  painter.resize(...size);
  changed();
}

// PSNR by Holdall's own rasteriser comes when it is ready.
async function fixed() {
  const told = await (await got('quality.json')).json();
  if (told.state === 'measuring') setTimeout(() => fixed().catch(fault), 1000);
  else if (told.state === 'none') by('fixed').textContent = told.why;
  else by('fixed').textContent = `${decibels({ whole: told.psnr, object: told.object })}, ${told.views} of ${told.size}, on white`;
}

async function start() {
  facts = await (await got('scenes.json')).json();
  by('names').textContent = facts.scenes.map((s) => s.name).join('  and  ');
  figures(by('scenes'), facts.scenes);
  const texts = await Promise.all(SHADERS.map(async (name) => (await got(name)).text()));
  painter = new Painter(canvas, Object.fromEntries(SHADERS.map((name, i) => [name, texts[i]])));
  canvas.addEventListener('webglcontextlost', () => fault('the GPU gave up (too little memory?): load the page again'));
  camera = new Camera(facts.start);
  const all = facts.scenes.reduce((sum, s) => sum + s.length, 0);
  let before = 0;
  for (const [i, one] of facts.scenes.entries()) {
    const raw = await records(`scene/${i}`, one, (bytes) => progress(before + bytes, all));
    before += one.length;
    const scene = { held: painter.load(raw, one), worker: new Worker('order.js'), busy: false, waiting: false, known: false };
    scene.worker.onmessage = ({ data }) => sorted(scene, data);
    scene.worker.onerror = (event) => fault(`the order of Gaussians could not be found: ${event.message}`);
    scene.worker.postMessage({ records: raw.buffer, stride: 4 * one.texels }, [raw.buffer]);
    scenes.push(scene);
  }
  by('loading').hidden = true;
  const two = scenes.length > 1;
  for (const id of ['swap', 'difference', 'here-row', 'fixed-row']) by(id).hidden = !two;
  for (const id of ['swap', 'difference', 'ground', 'reset']) by(id).addEventListener('click', wish[id]);
  pointers(canvas, wish);
  divider(by('divider'), stage, wish);
  keys(wish);
  resize();
  new ResizeObserver(resize).observe(stage);
  told();
  if (two) await fixed();
}

function progress(bytes, all) {
  by('progress').value = bytes / all;
  by('progress-text').textContent = `loading ${(bytes / 1e6).toFixed(1)} of ${(all / 1e6).toFixed(1)} MB`;
}

// For scripts (and this page's tests): a camera by numbers, and whether all is drawn as it stands.
globalThis.holdall = {
  look: (view) => (camera.look(view), changed()),
  ready: () => scenes.length > 0 && scenes.length === facts.scenes.length && scenes.every((s) => s.known) && !working(),
  measured: () => facts.here,
  state: () => ({ ...state, yaw: camera.yaw, pitch: camera.pitch, distance: camera.distance, at: camera.at }),
  // Frames with an order of their own, each waited for: seconds, over one turn.
  async turn(frames) {
    const began = performance.now();
    for (let i = 0; i < frames; i++) {
      wish.turn((2 * Math.PI) / frames, 0);
      while (working()) await new Promise(requestAnimationFrame);
    }
    return (performance.now() - began) / 1000;
  },
};

addEventListener('error', (event) => fault(event.message));
addEventListener('unhandledrejection', (event) => fault(event.reason));
start().catch(fault);

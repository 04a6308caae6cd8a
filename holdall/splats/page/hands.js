// Mouse, touch and keys, as wishes: turn, move, zoom, divide, and what buttons do.

const TURN = 0.006; // radians a pixel
const STEP = 0.08; // radians an arrow key

export function pointers(canvas, wish) {
  const down = new Map();
  canvas.addEventListener('contextmenu', (event) => event.preventDefault());
  canvas.addEventListener('pointerdown', (event) => {
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, [event.clientX, event.clientY]);
  });
  for (const end of ['pointerup', 'pointercancel', 'lostpointercapture']) {
    canvas.addEventListener(end, (event) => down.delete(event.pointerId));
  }
  canvas.addEventListener('pointermove', (event) => {
    const before = down.get(event.pointerId);
    if (!before) return;
    const old = spread([...down.values()]);
    down.set(event.pointerId, [event.clientX, event.clientY]);
    const now = spread([...down.values()]);
    const right = now.x - old.x, below = now.y - old.y;
    if (down.size > 1) {
      if (old.wide > 0 && now.wide > 0) wish.zoom(old.wide / now.wide);
      wish.move(right, below);
    } else if (event.shiftKey || event.buttons & 6) wish.move(right, below);
    else wish.turn(-TURN * right, TURN * below);
  });
  canvas.addEventListener('wheel', (event) => {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 20 : event.deltaMode === 2 ? 400 : 1);
    wish.zoom(Math.exp(Math.max(-300, Math.min(300, pixels)) * 0.0015));
  }, { passive: false });
}

// The middle of all fingers, and how far the first two are apart.
function spread(points) {
  const n = points.length;
  return {
    x: points.reduce((sum, p) => sum + p[0], 0) / n,
    y: points.reduce((sum, p) => sum + p[1], 0) / n,
    wide: n > 1 ? Math.hypot(points[0][0] - points[1][0], points[0][1] - points[1][1]) : 0,
  };
}

export function divider(element, stage, wish) {
  let held = false;
  const at = (event) => {
    const { left, width } = stage.getBoundingClientRect();
    wish.divide((event.clientX - left) / width);
  };
  element.addEventListener('pointerdown', (event) => {
    held = true;
    element.setPointerCapture(event.pointerId);
    element.focus();
    event.preventDefault();
  });
  element.addEventListener('pointermove', (event) => held && at(event));
  for (const end of ['pointerup', 'pointercancel']) element.addEventListener(end, () => (held = false));
  element.addEventListener('keydown', (event) => {
    const by = event.shiftKey ? 0.1 : 0.02, now = wish.divided();
    const to = { ArrowLeft: now - by, ArrowDown: now - by, ArrowRight: now + by, ArrowUp: now + by,
      PageDown: now - 0.1, PageUp: now + 0.1, Home: 0, End: 1 }[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    wish.divide(to);
    event.preventDefault();
    event.stopPropagation();
  });
}

export function keys(wish) {
  const done = {
    ArrowLeft: () => wish.turn(STEP, 0), ArrowRight: () => wish.turn(-STEP, 0),
    ArrowUp: () => wish.turn(0, -STEP), ArrowDown: () => wish.turn(0, STEP),
    '+': () => wish.zoom(1 / 1.1), '=': () => wish.zoom(1 / 1.1), '-': () => wish.zoom(1.1),
    r: wish.reset, s: wish.swap, d: wish.difference, b: wish.ground,
  };
  const moved = { ArrowLeft: [-20, 0], ArrowRight: [20, 0], ArrowUp: [0, -20], ArrowDown: [0, 20] };
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.shiftKey && moved[key]) wish.move(...moved[key]);
    else if (done[key]) done[key]();
    else return;
    event.preventDefault();
  });
}

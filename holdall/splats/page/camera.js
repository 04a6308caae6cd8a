// One camera for both scenes: it goes round a point, nearer and further, and takes the point with it.

const add = (a, b, by = 1) => a.map((v, i) => v + by * b[i]);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => a.map((v) => v / Math.hypot(...a));
const STEEPEST = 1.55; // radians: straight up has no right and left

export class Camera {
  constructor(start) {
    this.start = start;
    this.reset();
  }

  reset() {
    this.look(this.start);
  }

  // From a place at a point, `degrees` from top to bottom (of portrait pictures: from side to side).
  look({ place, at, up, degrees }) {
    this.at = [...at];
    this.up = unit(up);
    this.degrees = degrees;
    const some = Math.abs(this.up[0]) < 0.9 ? [1, 0, 0] : [0, 1, 0];
    this.first = unit(cross(some, this.up));
    this.second = cross(this.up, this.first);
    const from = add(place, at, -1);
    this.distance = Math.hypot(...from);
    this.pitch = Math.asin(dot(from, this.up) / this.distance);
    this.yaw = Math.atan2(dot(from, this.second), dot(from, this.first));
    this.turn(0, 0);
  }

  turn(yaw, pitch) {
    this.yaw += yaw;
    this.pitch = Math.min(STEEPEST, Math.max(-STEEPEST, this.pitch + pitch));
  }

  zoom(by) {
    const { radius } = this.start;
    this.distance = Math.min(100 * radius, Math.max(0.01 * radius, this.distance * by));
  }

  // By so many pixels of a picture of that size: what is under the pointer goes with it.
  move(right, down, width, height) {
    const { rows, focal } = this.seen(width, height), by = this.distance / focal;
    this.at = add(add(this.at, rows[0], -right * by), rows[1], -down * by);
  }

  // What shaders need: rows of the rotation (right, down, forward), shift, place and focal length in pixels.
  seen(width, height) {
    const flat = add(this.first.map((v) => v * Math.cos(this.yaw)), this.second, Math.sin(this.yaw));
    const from = add(flat.map((v) => v * Math.cos(this.pitch)), this.up, Math.sin(this.pitch));
    const place = add(this.at, from, this.distance);
    const forward = from.map((v) => -v), right = unit(cross(forward, this.up));
    const rows = [right, cross(forward, right), forward];
    const focal = Math.min(width, height) / 2 / Math.tan((this.degrees * Math.PI) / 360);
    return { rows, place, focal, shift: rows.map((row) => -dot(row, place)) };
  }
}

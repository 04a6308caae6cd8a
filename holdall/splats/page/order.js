// The worker: puts Gaussians in order from far to near, by counting.
'use strict';
const PLACES = 1 << 16;
let means, seen, depths;

onmessage = ({ data }) => {
  if (data.records) keep(new Float32Array(data.records), data.stride);
  else {
    const order = sorted(data.forward, data.shift, data.near);
    postMessage({ order, ticket: data.ticket }, [order.buffer]);
  }
};

function keep(records, stride) {
  const count = records.length / stride;
  means = new Float32Array(3 * count);
  for (let i = 0; i < count; i++) means.set(records.subarray(i * stride, i * stride + 3), 3 * i);
  seen = new Uint32Array(count);
  depths = new Float32Array(count);
}

// Bits of positive floats, read as integers, are in the floats' order, so their upper ones are places of a counting sort:
// finer where it is near, and one far stray does not put all others into one place.
function sorted([x, y, z], shift, near) {
  const bits = new Int32Array(depths.buffer);
  let count = 0, low = 0x7fffffff, high = 0;
  for (let i = 0, j = 0; i < seen.length; i++, j += 3) {
    const depth = x * means[j] + y * means[j + 1] + z * means[j + 2] + shift;
    if (depth >= near) {
      depths[count] = depth;
      if (bits[count] < low) low = bits[count];
      if (bits[count] > high) high = bits[count];
      seen[count++] = i;
    }
  }
  let drop = 0;
  while ((high - low) >>> drop >= PLACES) drop++;
  const starts = new Uint32Array(PLACES + 1);
  const last = (high - low) >>> drop;
  for (let i = 0; i < count; i++) starts[last - ((bits[i] - low) >>> drop) + 1]++;
  for (let i = 0; i < PLACES; i++) starts[i + 1] += starts[i];
  const order = new Uint32Array(count);
  for (let i = 0; i < count; i++) order[starts[last - ((bits[i] - low) >>> drop)]++] = seen[i];
  return order;
}

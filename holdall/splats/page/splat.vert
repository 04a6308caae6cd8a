#version 300 es
// One Gaussian a time, four corners each: where it stands in the picture, how wide, in which colour from here.
precision highp float;
precision highp int;
precision highp usampler2D;

uniform usampler2D records; // as holdall/splats/page_records.py lays them out
uniform usampler2D order;   // which Gaussian is drawn first, and so on
uniform int drawn;          // how many are
uniform int block;          // in one instance of the draw call: GPUs are slow at instances of four corners
uniform int texels;         // of one Gaussian
uniform int degree;
uniform mat3 turn;          // world to camera: x right, y down, z forward
uniform vec3 shift;
uniform vec3 place;         // of the camera, in the world
uniform vec4 lens;          // fx, fy, cx, cy in pixels
uniform vec2 size;          // of the picture
uniform float near;

out vec2 offset;     // from the middle, in standard deviations
flat out vec4 tint;

const int WIDE_BITS = 12; // textures are 4096 wide
const int WIDE = 1 << WIDE_BITS;
const float FAINTEST = 1.0 / 255.0;
const float LOW_PASS = 0.3; // added to both variances, in pixels squared
const float BEYOND = 1.3;   // tangents are cut there: the linear projection is wild further out

int first; // texel of the Gaussian

uvec4 texel(int i) {
  int at = first + i;
  return texelFetch(records, ivec2(at & WIDE - 1, at >> WIDE_BITS), 0);
}

vec3 three(uvec2 halves) {
  return vec3(unpackHalf2x16(halves.x), unpackHalf2x16(halves.y).x);
}

vec3 harmonics(vec3 first, vec3 d) {
  vec3 sum = 0.28209479177387814 * first + 0.5;
  if (degree > 0) {
    uvec4 a = texel(3), b = texel(4);
    sum += 0.4886025119029199 * (-d.y * three(a.xy) + d.z * three(a.zw) - d.x * three(b.xy));
    if (degree > 1) {
      float xx = d.x * d.x, yy = d.y * d.y, zz = d.z * d.z;
      uvec4 c = texel(5), e = texel(6);
      sum += 1.0925484305920792 * (d.x * d.y * three(b.zw) - d.y * d.z * three(c.xy) - d.x * d.z * three(e.xy));
      sum += 0.31539156525252005 * (2.0 * zz - xx - yy) * three(c.zw);
      sum += 0.5462742152960396 * (xx - yy) * three(e.zw);
      if (degree > 2) {
        uvec4 f = texel(7), g = texel(8), h = texel(9), i = texel(10);
        sum -= 0.5900435899266435 * d.y * (3.0 * xx - yy) * three(f.xy);
        sum += 2.890611442640554 * d.x * d.y * d.z * three(f.zw);
        sum -= 0.4570457994644658 * d.y * (4.0 * zz - xx - yy) * three(g.xy);
        sum += 0.3731763325901154 * d.z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * three(g.zw);
        sum -= 0.4570457994644658 * d.x * (4.0 * zz - xx - yy) * three(h.xy);
        sum += 1.445305721320277 * d.z * (xx - yy) * three(h.zw);
        sum -= 0.5900435899266435 * d.x * (xx - 3.0 * yy) * three(i.xy);
      }
    }
  }
  return max(sum, 0.0);
}

// Variances and covariance in the picture: xx, xy, yy.
vec3 flattened(vec3 at, mat3 wide) {
  vec2 low = BEYOND * -0.5 * size / lens.xy, high = BEYOND * 0.5 * size / lens.xy;
  vec2 slope = clamp(at.xy / at.z, low, high);
  vec3 across = transpose(turn) * vec3(lens.x, 0.0, -lens.x * slope.x) / at.z;
  vec3 down = transpose(turn) * vec3(0.0, lens.y, -lens.y * slope.y) / at.z;
  vec3 a = wide * across, b = wide * down;
  return vec3(dot(across, a) + LOW_PASS, dot(down, a), dot(down, b) + LOW_PASS);
}

void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0); // outside: what returns early is not drawn
  int i = gl_InstanceID * block + (gl_VertexID >> 2);
  if (i >= drawn) return;
  first = int(texelFetch(order, ivec2(i & WIDE - 1, i >> WIDE_BITS), 0).x) * texels;
  uvec4 a = texel(0), b = texel(1), c = texel(2);
  vec3 mean = uintBitsToFloat(a.xyz);
  float opacity = uintBitsToFloat(a.w);
  vec3 at = turn * mean + shift;
  if (at.z < near || opacity < FAINTEST) return;
  vec4 top = uintBitsToFloat(b);
  vec2 rest = uintBitsToFloat(c.xy);
  vec3 flat2 = flattened(at, mat3(top.xyz, top.y, top.w, rest.x, top.z, rest.x, rest.y));
  float middle = 0.5 * (flat2.x + flat2.z), half_gap = 0.5 * (flat2.x - flat2.z);
  float apart = length(vec2(half_gap, flat2.y));
  float angle = 0.5 * atan(flat2.y, half_gap);
  vec2 axis = vec2(cos(angle), sin(angle));
  vec2 deviations = sqrt(vec2(middle + apart, max(middle - apart, LOW_PASS)));
  float reach = sqrt(2.0 * log(opacity / FAINTEST)); // beyond it nothing of this one is seen
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1 & 1) * 2.0 - 1.0;
  offset = corner * reach;
  vec2 steps = offset * deviations;
  vec2 pixel = lens.xy * at.xy / at.z + lens.zw;
  vec2 extent = reach * sqrt(flat2.xz);
  if (any(lessThan(pixel + extent, vec2(0.0))) || any(greaterThan(pixel - extent, size))) return;
  pixel += axis * steps.x + vec2(-axis.y, axis.x) * steps.y;
  tint = vec4(harmonics(three(c.zw), normalize(mean - place)), opacity);
  gl_Position = vec4(2.0 * pixel / size - 1.0, 0.0, 1.0) * vec4(1.0, -1.0, 1.0, 1.0);
}

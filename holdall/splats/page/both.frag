#version 300 es
// Both pictures in one: left and right of the divider, or their difference.
precision highp float;
precision highp sampler2D;

uniform sampler2D left;
uniform sampler2D right;
uniform vec3 background;
uniform float divider; // pixels from the left
uniform float gain;    // of the difference; 0: both side by side

out vec4 colour;

vec3 shown(sampler2D picture) {
  vec4 seen = texelFetch(picture, ivec2(gl_FragCoord.xy), 0);
  return clamp(seen.rgb + (1.0 - seen.a) * background, 0.0, 1.0);
}

void main() {
  vec3 a = shown(left), b = shown(right);
  colour = vec4(gain > 0.0 ? gain * abs(a - b) : gl_FragCoord.x < divider ? a : b, 1.0);
}

#version 300 es
precision highp float;

in vec2 offset;
flat in vec4 tint;
out vec4 colour; // multiplied by its opacity

void main() {
  float alpha = min(0.99, tint.a * exp(-0.5 * dot(offset, offset)));
  if (alpha < 1.0 / 255.0) discard;
  colour = vec4(tint.rgb * alpha, alpha);
}

// What is drawn, by WebGL 2: each scene into a picture of its own, of float16, and both pictures onto the canvas.

const WIDE = 4096; // of textures that hold lists: shaders know it too
const BLOCK = 512; // Gaussians in one instance of a draw call

export class Painter {
  constructor(canvas, sources) {
    const gl = (this.gl = canvas.getContext('webgl2', { alpha: false, antialias: false, depth: false }));
    if (!gl) throw new Error('this browser gives no WebGL 2: allow it, or take another browser');
    const floats = gl.getExtension('EXT_color_buffer_float') || gl.getExtension('EXT_color_buffer_half_float');
    this.kept = floats ? gl.RGBA16F : gl.RGBA8; // eight bits lose up to some levels where hundreds are laid over each other
    this.splat = this.program(sources['splat.vert'], sources['splat.frag']);
    this.both = this.program(sources['both.vert'], sources['both.frag']);
    this.nothing = gl.createVertexArray();
    this.quads = this.corners();
    this.pictures = [this.picture(), this.picture()];
    gl.disable(gl.DITHER);
  }

  program(...texts) {
    const { gl } = this, made = gl.createProgram();
    [gl.VERTEX_SHADER, gl.FRAGMENT_SHADER].forEach((kind, i) => {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, texts[i]);
      gl.compileShader(shader);
      gl.attachShader(made, shader);
    });
    gl.linkProgram(made);
    if (!gl.getProgramParameter(made, gl.LINK_STATUS)) {
      const why = gl.getAttachedShaders(made).map((s) => gl.getShaderInfoLog(s)).join(' ');
      throw new Error(`this browser does not take the shaders: ${why} ${gl.getProgramInfoLog(made)}`);
    }
    const places = {};
    for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); i++) {
      const { name } = gl.getActiveUniform(made, i);
      places[name] = gl.getUniformLocation(made, name);
    }
    return { made, places };
  }

  // Two triangles for each of a block's Gaussians.
  corners() {
    const { gl } = this, array = gl.createVertexArray();
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    const indices = Uint16Array.from({ length: 6 * BLOCK }, (_, i) => 4 * Math.floor(i / 6) + [0, 1, 2, 2, 1, 3][i % 6]);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, indices, gl.STATIC_DRAW);
    return array;
  }

  picture() {
    const { gl } = this;
    return { frame: gl.createFramebuffer(), texture: null };
  }

  resize(width, height) {
    const { gl } = this;
    this.width = width;
    this.height = height;
    for (const picture of this.pictures) {
      gl.deleteTexture(picture.texture);
      picture.texture = this.texture(this.kept, width, height);
      gl.bindFramebuffer(gl.FRAMEBUFFER, picture.frame);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, picture.texture, 0);
    }
  }

  texture(kind, width, height) {
    const { gl } = this, made = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, made);
    gl.texStorage2D(gl.TEXTURE_2D, 1, kind, width, height);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    return made;
  }

  // records: Uint32Array, four numbers a texel.
  load(records, { texels, degree, count }) {
    const { gl } = this;
    if (count * texels > WIDE * gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
      throw new Error(`${count.toLocaleString('en')} Gaussians are more than this GPU's textures hold`);
    }
    const held = this.list(gl.RGBA32UI, count * texels), order = this.list(gl.R32UI, count);
    this.fill(held, gl.RGBA_INTEGER, records, 4);
    if (gl.getError() === gl.OUT_OF_MEMORY) throw new Error('this GPU has too little memory for the scene');
    return { held, order, texels, degree, drawn: 0 };
  }

  list(kind, count) {
    return this.texture(kind, WIDE, Math.max(1, Math.ceil(count / WIDE)));
  }

  // Whole rows, then what is left of the last.
  fill(texture, form, values, each) {
    const { gl } = this, all = values.length / each, whole = Math.floor(all / WIDE);
    const put = (y, wide, high) =>
      gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, y, wide, high, form, gl.UNSIGNED_INT, values, y * WIDE * each);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    if (whole) put(0, WIDE, whole);
    if (all > whole * WIDE) put(whole, all - whole * WIDE, 1);
  }

  order(scene, indices) {
    this.fill(scene.order, this.gl.RED_INTEGER, indices, 1);
    scene.drawn = indices.length;
  }

  // A scene into a picture, from `left` to `right` in pixels.
  paint(scene, picture, { rows, shift, place, focal }, near, left, right) {
    const { gl, width, height } = this, { made, places } = this.splat;
    gl.bindFramebuffer(gl.FRAMEBUFFER, picture.frame);
    gl.viewport(0, 0, width, height);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(left, 0, Math.max(0, right - left), height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.useProgram(made);
    [scene.order, scene.held].forEach((list, i) => {
      gl.activeTexture(gl.TEXTURE0 + i);
      gl.bindTexture(gl.TEXTURE_2D, list);
    });
    gl.uniform1i(places.order, 0);
    gl.uniform1i(places.records, 1);
    gl.uniform1i(places.drawn, scene.drawn);
    gl.uniform1i(places.block, BLOCK);
    gl.uniform1i(places.texels, scene.texels);
    gl.uniform1i(places.degree, scene.degree);
    gl.uniformMatrix3fv(places.turn, true, rows.flat());
    gl.uniform3fv(places.shift, shift);
    gl.uniform3fv(places.place, place);
    gl.uniform4f(places.lens, focal, focal, width / 2, height / 2);
    gl.uniform2f(places.size, width, height);
    gl.uniform1f(places.near, near);
    gl.bindVertexArray(this.quads);
    gl.drawElementsInstanced(gl.TRIANGLES, 6 * BLOCK, gl.UNSIGNED_SHORT, 0, Math.ceil(scene.drawn / BLOCK));
    gl.disable(gl.SCISSOR_TEST);
    gl.disable(gl.BLEND);
  }

  // Both pictures onto the canvas.
  show(left, right, divider, gain, background) {
    const { gl, width, height } = this, { made, places } = this.both;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, width, height);
    gl.useProgram(made);
    [left, right].forEach((picture, i) => {
      gl.activeTexture(gl.TEXTURE0 + i);
      gl.bindTexture(gl.TEXTURE_2D, picture.texture);
    });
    gl.uniform1i(places.left, 0);
    gl.uniform1i(places.right, 1);
    gl.uniform3fv(places.background, background);
    gl.uniform1f(places.divider, divider);
    gl.uniform1f(places.gain, gain);
    gl.bindVertexArray(this.nothing);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    this.fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    gl.flush();
  }

  // Whether the GPU is still at what was shown last.
  busy() {
    const { gl } = this;
    if (!this.fence || gl.getSyncParameter(this.fence, gl.SYNC_STATUS) !== gl.SIGNALED) return Boolean(this.fence);
    gl.deleteSync(this.fence);
    this.fence = null;
    return false;
  }

  // Float32Array of red, green, blue, opacity, from the lower left; waits until all is drawn.
  pixels(picture) {
    const { gl, width, height } = this, eight = this.kept === gl.RGBA8;
    const found = eight ? new Uint8Array(4 * width * height) : new Float32Array(4 * width * height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, picture.frame);
    gl.readPixels(0, 0, width, height, gl.RGBA, eight ? gl.UNSIGNED_BYTE : gl.FLOAT, found);
    return eight ? Float32Array.from(found, (v) => v / 255) : found;
  }
}

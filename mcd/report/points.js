// How points and lines come onto a canvas: matrices, row by row, and WebGL 2 programs. Axes: x right, y down, z ahead.
const FIELD = 1 / Math.tan(Math.PI / 7.2); // 50 degrees from top to bottom
const NEAR = 0.02, FAR = 60;

const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const multiply = (a, b) => a.map((_, i) =>
  [0, 1, 2, 3].reduce((sum, k) => sum + a[(i & 12) + k] * b[4 * k + (i & 3)], 0));
const shift = (x, y, z) => [1, 0, 0, x, 0, 1, 0, y, 0, 0, 1, z, 0, 0, 0, 1];
const move = (T, [x, y, z]) => [0, 4, 8].map(i => T[i] * x + T[i + 1] * y + T[i + 2] * z + T[i + 3]);
const invert = T => {
  const R = [T[0], T[4], T[8], 0, T[1], T[5], T[9], 0, T[2], T[6], T[10], 0, 0, 0, 0, 1];
  return multiply(R, shift(-T[3], -T[7], -T[11]));
};
const orbit = ([yaw, pitch, distance, x, y, z]) => {
  const [s, c, t, d] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
  const tilt = [1, 0, 0, 0, 0, d, -t, 0, 0, t, d, 0, 0, 0, 0, 1], turn = [c, 0, s, 0, 0, 1, 0, 0, -s, 0, c, 0, 0, 0, 0, 1];
  return multiply(shift(0, 0, distance), multiply(multiply(tilt, turn), shift(-x, -y, -z)));
};
const project = aspect => [
  FIELD / aspect, 0, 0, 0, 0, -FIELD, 0, 0,
  0, 0, (FAR + NEAR) / (FAR - NEAR), -2 * FAR * NEAR / (FAR - NEAR), 0, 0, 1, 0];

const POINTS = `#version 300 es
  precision highp float;
  layout(location = 0) in vec2 code;     // logarithm of the depth, of both stages
  layout(location = 1) in vec2 kind;     // number of the moving thing; 1 + 2: a point of the first, second stage
  uniform ivec2 grid;
  uniform vec4 K;
  uniform vec2 range, limits;
  uniform float stage, size;
  uniform mat4 T_world_camera, T_clip_world;
  uniform int colouring;
  uniform bool filled, marks, stillOnly;
  uniform vec3 mark;
  uniform sampler2D picture, depths, ratios;
  out vec3 colour;
  out float hole;
  void main() {
    bool first = mod(kind.y, 2.0) > 0.5, second = kind.y > 1.5;
    bool hidden = (stage < 1.0 && !first) || (stage > 0.0 && !second) || (stillOnly && kind.x > 0.5);
    hole = hidden ? 1.0 : 0.0;
    vec2 cell = vec2(gl_VertexID % grid.x, gl_VertexID / grid.x);
    vec2 logarithm = range.x + range.y * code;
    float z = exp(mix(logarithm.x, logarithm.y, stage));
    vec4 point = T_clip_world * (T_world_camera * vec4((cell - K.zw) / K.xy * z, z, 1.0));
    colour = texture(picture, (cell + 0.5) / vec2(grid)).rgb;
    if (colouring == 1) colour = texture(depths, vec2((1.0 / z - limits.y) / (limits.x - limits.y), 0.5)).rgb;
    if (colouring == 2) colour = texture(ratios, vec2(0.5 + 0.5 * (logarithm.y - logarithm.x) / log(2.0), 0.5)).rgb;
    if (marks && kind.x > 0.5) colour = mix(colour, mark, 0.65);
    gl_Position = hidden && !filled ? vec4(2.0, 2.0, 2.0, 1.0) : point;
    gl_PointSize = clamp(1.7 * size * z / (K.x * max(point.w, 0.01)), 1.5, 40.0);
  }`;
const LINES = `#version 300 es
  precision highp float;
  layout(location = 0) in vec3 place;
  uniform mat4 T_clip_world;
  uniform vec3 mark;
  out vec3 colour;
  out float hole;
  void main() { colour = mark; hole = 0.0; gl_Position = T_clip_world * vec4(place, 1.0); gl_PointSize = 5.0; }`;
const PAINT = `#version 300 es
  precision mediump float;
  in vec3 colour;
  in float hole;
  out vec4 painted;
  void main() { if (hole > 0.0) discard; painted = vec4(colour, 1.0); }`;

function compile(gl, source) {
  const program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, source], [gl.FRAGMENT_SHADER, PAINT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw Error(gl.getProgramInfoLog(program));
  const places = {};
  for (let i = 0; i < gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS); i++) {
    const {name} = gl.getActiveUniform(program, i);
    places[name] = gl.getUniformLocation(program, name);
  }
  return {program, places};
}

function texture(gl, source) {
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  const form = [gl.RGB, gl.UNSIGNED_BYTE, source], size = source instanceof Uint8Array ? [source.length / 3, 1, 0] : [];
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, ...size, ...form);
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.LINEAR);
  for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
  return gl.getParameter(gl.TEXTURE_BINDING_2D);
}

// The 3-D view of a report: points, camera path and boxes, and the picture beside them; points.js comes before it. The
// data are those of mcd/report/view.py, lengths in median depths.
const root = document.querySelector(".viewer");
const controls = root.querySelector(".controls");
const shared = JSON.parse(root.querySelector(".shared").textContent);
const state = {
  frame: 0, layer: 0, stage: 1, colour: "image", filled: true, marks: true, path: true, whole: false,
  eye: shared.views[0].eye.slice(),
};
const [MARK, PATH, HERE, GROUND] = shared.colours.map(colour => colour.map(level => level / 255));

// A frame's maps, one number a cell.
function unpack(data, frame) {
  const cells = data.grid[0] * data.grid[1];
  const code = frame.depth.map(text => new Uint16Array(bytes(text).buffer));
  const shown = frame.shown.map(bytes);
  const kind = new Uint8Array(2 * cells);
  shown.forEach((bits, stage) => {
    for (let i = 0; i < cells; i++) kind[2 * i + 1] |= (bits[i >> 3] >> (7 - i % 8) & 1) << stage;
  });
  for (const [start, length, number] of frame.moving) for (let i = start; i < start + length; i++) kind[2 * i] = number;
  if (code.length === 1) {
    code.push(code[0]);
    for (let i = 0; i < cells; i++) kind[2 * i + 1] *= 3;
  }
  return {code, kind};
}

class Pane {
  constructor(place) {
    this.data = JSON.parse(place.querySelector(".data").textContent);
    this.cloud = place.querySelector(".cloud canvas");
    this.place = place;
    this.picture = document.getElementById(place.dataset.picture);
    this.said = this.picture.parentElement.querySelector("figcaption");
    this.frames = this.data.frames.map(frame => ({
      ...frame, ...unpack(this.data, frame), picture: Object.assign(new Image(), {src: frame.image}),
    }));
    this.frames.forEach(frame => frame.picture.decode().then(() => { frame.ready = true; redraw(); }, () => {}));
    this.picture.hidden = false;
    this.cloud.addEventListener("webglcontextlost", event => {
      event.preventDefault();
      this.gl = null;
      this.show(false);
    });
    this.cloud.addEventListener("webglcontextrestored", () => { this.start(); redraw(); });
    this.start();
    this.listen();
  }

  show(works) {
    this.place.dataset.webgl = works ? "yes" : "no";
    this.cloud.hidden = !works;
    this.place.querySelectorAll(".flat").forEach(part => { part.hidden = works; });
  }

  // Whatever a driver cannot do, the flat pictures remain.
  start() {
    this.gl = this.cloud.getContext("webgl2");
    try {
      if (this.gl) this.build(this.gl);
    } catch (error) {
      console.warn(`no 3-D view: ${error.message}`);
      this.gl = null;
    }
    this.show(Boolean(this.gl));
  }

  build(gl) {
    this.points = compile(gl, POINTS);
    this.lines = compile(gl, LINES);
    this.tables = [shared.depths, shared.ratios].map(text => texture(gl, bytes(text)));
    this.strip = gl.createBuffer();
    const [height, width] = this.data.grid;
    const corners = Uint32Array.from({length: 6 * (height - 1) * (width - 1)}, (_, i) => {
      const cell = Math.floor(i / 6), x = cell % (width - 1), y = Math.floor(cell / (width - 1));
      return y * width + x + [0, 1, width, 1, width + 1, width][i % 6];
    });
    const triangles = gl.createBuffer();
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, triangles);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, corners, gl.STATIC_DRAW);
    for (const frame of this.frames) {
      frame.texture = null;
      frame.vertices = gl.createVertexArray();
      gl.bindVertexArray(frame.vertices);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, triangles);
      const both = new Uint16Array(2 * frame.code[0].length);
      frame.code.forEach((codes, stage) => codes.forEach((code, i) => { both[2 * i + stage] = code; }));
      [[both, gl.UNSIGNED_SHORT, true], [frame.kind, gl.UNSIGNED_BYTE, false]].forEach(([values, type, share], i) => {
        gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
        gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
        gl.enableVertexAttribArray(i);
        gl.vertexAttribPointer(i, 2, type, share, 0, 0);
      });
    }
    gl.clearColor(...GROUND, 1);
  }

  get frame() { return this.frames[Math.min(state.frame, this.frames.length - 1)]; }

  draw() {
    this.drawPicture();
    if (!this.gl) return;
    const {gl, data, frame, cloud} = this, ratio = window.devicePixelRatio || 1;
    cloud.width = Math.max(1, Math.round(cloud.clientWidth * ratio));
    cloud.height = Math.max(1, Math.round(cloud.clientHeight * ratio));
    gl.viewport(0, 0, cloud.width, cloud.height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const T_clip_world = multiply(project(cloud.width / cloud.height), multiply(orbit(state.eye), invert(frame.pose)));
    const {program, places} = this.points;
    gl.useProgram(program);
    gl.enable(gl.DEPTH_TEST);
    gl.uniformMatrix4fv(places.T_clip_world, true, T_clip_world);
    gl.uniform2i(places.grid, data.grid[1], data.grid[0]);
    gl.uniform2f(places.range, Math.log(data.range[0]), Math.log(data.range[1] / data.range[0]));
    gl.uniform2f(places.limits, 1 / data.limits[0], 1 / data.limits[1]);
    gl.uniform1f(places.stage, data.stages.length > 1 ? state.stage : 0);
    gl.uniform1f(places.size, FIELD * cloud.height / 2);
    const colours = data.stages.length > 1 ? ["image", "depth", "change"] : ["image", "depth"];
    gl.uniform1i(places.colouring, Math.max(0, colours.indexOf(state.colour)));
    gl.uniform1i(places.filled, state.filled);
    gl.uniform1i(places.marks, state.marks);
    gl.uniform3fv(places.mark, MARK);
    ["picture", "depths", "ratios"].forEach((name, unit) => gl.uniform1i(places[name], unit));
    this.tables.forEach((table, i) => { gl.activeTexture(gl.TEXTURE1 + i); gl.bindTexture(gl.TEXTURE_2D, table); });
    gl.activeTexture(gl.TEXTURE0);
    let drawn = 0;
    for (const other of this.frames) {
      if (!other.ready || !(other === frame || state.whole && other.shot === frame.shot)) continue;
      other.texture ??= texture(gl, other.picture);
      gl.bindTexture(gl.TEXTURE_2D, other.texture);
      gl.uniform4fv(places.K, other.K);
      gl.uniformMatrix4fv(places.T_world_camera, true, other.pose);
      gl.uniform1i(places.stillOnly, other !== frame);
      gl.bindVertexArray(other.vertices);
      if (state.filled) gl.drawElements(gl.TRIANGLES, 6 * (data.grid[0] - 1) * (data.grid[1] - 1), gl.UNSIGNED_INT, 0);
      else gl.drawArrays(gl.POINTS, 0, other.code[0].length);
      drawn += other.code[0].length;
    }
    gl.disable(gl.DEPTH_TEST);
    gl.useProgram(this.lines.program);
    gl.uniformMatrix4fv(this.lines.places.T_clip_world, true, T_clip_world);
    const path = data.paths[frame.shot] || [];
    if (state.path && path.length) {
      this.strokes(path.slice(1).flatMap((place, i) => [path[i], place]), PATH);
      this.strokes(path, PATH, gl.POINTS);
      this.strokes(this.pyramid(frame), HERE);
    }
    if (state.marks) for (const boxes of frame.boxes) this.strokes(this.box(boxes, frame), MARK);
    this.place.dataset.drawn = drawn;
  }

  strokes(places, colour, kind = this.gl.LINES) {
    const {gl} = this;
    gl.bindVertexArray(null);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.strip);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(places.flat()), gl.STREAM_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 0, 0);
    gl.uniform3fv(this.lines.places.mark, colour);
    gl.drawArrays(kind, 0, places.length);
  }

  // The corners of the picture, a little in front of the camera, and its centre.
  pyramid(frame) {
    const [height, width] = this.data.grid, [fx, fy, cx, cy] = frame.K, z = 0.12;
    const corners = [[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]]
      .map(([x, y]) => move(frame.pose, [(x - cx) / fx * z, (y - cy) / fy * z, z]));
    return corners.flatMap((corner, i) => [move(frame.pose, [0, 0, 0]), corner, corner, corners[(i + 1) % 4]]);
  }

  // Twelve edges of a box in the camera's axes; between the stages it moves on as the points do.
  box(boxes, frame) {
    const last = boxes[boxes.length - 1], share = this.data.stages.length > 1 ? state.stage : 0;
    const [low, high] = [0, 3].map(k => [0, 1, 2].map(a => boxes[0][k + a] + share * (last[k + a] - boxes[0][k + a])));
    const corner = i => move(frame.pose, [0, 1, 2].map(a => (i >> a & 1 ? high : low)[a]));
    return [0, 1, 2, 3, 4, 5, 6, 7].flatMap(i =>
      [1, 2, 4].filter(bit => !(i & bit)).flatMap(bit => [corner(i), corner(i | bit)]));
  }

  // The two layers around the slider, one over the other.
  drawPicture() {
    const {frame, picture} = this;
    if (!frame.ready) return;
    picture.width = frame.picture.naturalWidth;
    picture.height = frame.picture.naturalHeight;
    const paper = picture.getContext("2d");
    const [below, above] = [Math.floor(state.layer), Math.ceil(state.layer)].map(i => this.nearest(shared.layers[i]));
    [[below, 1], [above, state.layer % 1]].forEach(([layer, share]) => {
      paper.globalAlpha = share;
      if (share > 0) paper.drawImage(this.layer(layer), 0, 0, picture.width, picture.height);
    });
    const percent = Math.round(100 * (state.layer % 1));
    const shown = below === above || !percent ? below : `${100 - percent} % ${below}, ${percent} % ${above}`;
    this.said.textContent = `${frame.name}: ${shown}`;
    picture.setAttribute("aria-label", this.said.textContent);
  }

  // What this run has instead of a layer that only the other one has.
  nearest(layer) {
    const before = shared.layers.slice(0, shared.layers.indexOf(layer) + 1);
    return before.filter(name => this.data.layers.includes(name)).pop();
  }

  layer(name) {
    const {data, frame} = this;
    if (name === "image") return frame.picture;
    frame.layers ??= {};
    if (frame.layers[name]) return frame.layers[name];
    const stage = data.layers.indexOf(name) - 1, [near, far] = data.range, change = stage >= data.stages.length;
    const table = bytes(change ? shared.ratios : shared.depths);
    const step = Math.log(far / near) / 65535, [from, to] = [1 / data.limits[1], 1 / data.limits[0]];
    const sheet = Object.assign(document.createElement("canvas"), {height: data.grid[0], width: data.grid[1]});
    const paper = sheet.getContext("2d"), pixels = paper.createImageData(sheet.width, sheet.height);
    for (let i = 0; i < frame.code[0].length; i++) {
      const share = change
        ? 0.5 + 0.5 * (frame.code[1][i] - frame.code[0][i]) * step / Math.log(2)
        : (1 / (near * Math.exp(frame.code[stage][i] * step)) - from) / (to - from);
      const level = 3 * Math.round(255 * Math.min(1, Math.max(0, share)));
      pixels.data.set([table[level], table[level + 1], table[level + 2], 255], 4 * i);
    }
    paper.putImageData(pixels, 0, 0);
    return frame.layers[name] = sheet;
  }

  listen() {
    const fingers = new Map(), {cloud} = this;
    cloud.addEventListener("pointerdown", event => {
      fingers.set(event.pointerId, event);
      cloud.setPointerCapture(event.pointerId);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      cloud.addEventListener(name, event => fingers.delete(event.pointerId));
    }
    cloud.addEventListener("pointermove", event => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
      const other = [...fingers.values()].find(finger => finger.pointerId !== event.pointerId);
      if (other) {
        const apart = finger => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
        zoom(apart(before) / Math.max(apart(event), 1));
      } else if (event.shiftKey || event.buttons === 4) pan(dx / cloud.clientHeight, dy / cloud.clientHeight);
      else turn(dx / 200, dy / 200);
      fingers.set(event.pointerId, event);
    });
    // A wheel that passes over the page should scroll it: the view is chosen first.
    cloud.addEventListener("wheel", event => {
      if (document.activeElement !== cloud) return;
      event.preventDefault();
      zoom(Math.exp(event.deltaY / 700));
    }, {passive: false});
    cloud.addEventListener("keydown", event => {
      const arrow = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (arrow && event.shiftKey) pan(arrow[0] / 20, arrow[1] / 20);
      else if (arrow) turn(arrow[0] / 12, arrow[1] / 12);
      else if (event.key === "+" || event.key === "=") zoom(0.9);
      else if (event.key === "-") zoom(1 / 0.9);
      else if (event.key === "Home") look(shared.views[0].eye);
      else return;
      event.preventDefault();
    });
  }
}

let asked = 0;
function redraw() {
  asked ||= requestAnimationFrame(() => { asked = 0; panes.forEach(pane => pane.draw()); });
}
function look(eye) { state.eye = eye.slice(); redraw(); }
function turn(yaw, pitch) {
  state.eye[0] -= yaw;
  state.eye[1] = Math.min(1.55, Math.max(-1.55, state.eye[1] + pitch));
  redraw();
}
function zoom(times) { state.eye[2] = Math.min(30, Math.max(0.05, state.eye[2] * times)); redraw(); }
function pan(x, y) {
  const back = invert(orbit([state.eye[0], state.eye[1], 0, 0, 0, 0])), span = 2 * state.eye[2] / FIELD;
  move(back, [-x * span, -y * span, 0]).forEach((step, i) => { state.eye[3 + i] += step; });
  redraw();
}

const inputs = name => [...controls.querySelectorAll(`[name="${name}"]`)];
function set(name, value) {
  state[name] = value;
  if (name === "frame" || name === "layer") inputs(name).forEach(input => {
    input.value = value;
    const said = name === "frame" ? `${value + 1} of ${Number(input.max) + 1}` : shared.layers[Math.round(value)];
    input.setAttribute("aria-valuetext", said);
    input.parentElement.querySelector("output").textContent = said;
  });
  redraw();
}
controls.addEventListener("input", ({target}) => {
  if (target.name === "stage") glide(Number(target.value));
  else if (target.type === "checkbox") set(target.name, target.checked);
  else set(target.name, target.type === "range" ? Number(target.value) : target.value);
});
// The points travel to where the other stage has them, so that the eye can follow.
let goal = state.stage;
function glide(stage) {
  goal = stage;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return set("stage", stage);
  const from = state.stage, begin = performance.now();
  const step = now => {
    if (goal !== stage) return;
    const share = Math.min(1, Math.max(0, (now - begin) / 400));
    set("stage", share < 1 ? from + share * (stage - from) : stage);
    if (share < 1) requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}
let playing = 0;
controls.addEventListener("click", ({target}) => {
  if (target.dataset.eye) look(shared.views[target.dataset.eye].eye);
  if (target.name !== "play") return;
  clearInterval(playing);
  const last = Number(inputs("frame")[0].max);
  playing = playing ? 0 : setInterval(() => set("frame", (state.frame + 1) % (last + 1)), shared.interval);
  target.setAttribute("aria-pressed", String(Boolean(playing)));
  target.textContent = playing ? "Pause" : "Play";
});

const panes = [...root.querySelectorAll(".pane")].map(place => new Pane(place));
if (panes.every(pane => pane.place.dataset.webgl === "no")) controls.querySelector(".points").hidden = true;
controls.hidden = false;
set("frame", 0);
set("layer", 0);
window.addEventListener("resize", redraw);

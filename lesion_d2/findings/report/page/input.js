// Mouse, touch and keys.

const WHEEL_STEP = 40; // CSS pixels of a turn of the wheel that make a slice
let turned = 0;

stage.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    const unit = [1, WHEEL_STEP, 10 * WHEEL_STEP][event.deltaMode];
    if (event.ctrlKey) {
      zoomTo(state.zoom * Math.exp(-event.deltaY * unit * 0.004), stagePoint(event));
      return;
    }
    // A notch of a mouse's wheel is one slice however far it turns; a touch pad adds up.
    turned += Math.max(-WHEEL_STEP, Math.min(WHEEL_STEP, event.deltaY * unit));
    const steps = Math.trunc(turned / WHEEL_STEP);
    turned -= steps * WHEEL_STEP;
    if (steps) moveSlice(steps);
  },
  { passive: false },
);

function stagePoint(event) {
  const bounds = stage.getBoundingClientRect();
  return [event.clientX - bounds.left, event.clientY - bounds.top];
}

const pointers = new Map(); // id -> last point on the stage
let travel = 0; // CSS pixels that the pointers have moved since the first went down
let rest = 0; // of a drag through slices, what is no whole slice yet

stage.addEventListener("pointerdown", (event) => {
  if (event.button > 1) return;
  stage.setPointerCapture(event.pointerId);
  if (!pointers.size) travel = rest = 0;
  pointers.set(event.pointerId, stagePoint(event));
});

stage.addEventListener("pointermove", (event) => {
  const point = stagePoint(event);
  pointerAt = event.pointerType === "touch" ? null : fromStage(...point);
  showReading();
  const last = pointers.get(event.pointerId);
  if (!last) return;
  const [dx, dy] = [point[0] - last[0], point[1] - last[1]];
  travel += Math.hypot(dx, dy);
  if (pointers.size === 2) pinch(event.pointerId, point, dx, dy);
  else if (travel > 3) drag(event, dx, dy);
  pointers.set(event.pointerId, point);
});

/** Two fingers zoom about the middle between them, and move the image with it. */
function pinch(id, point, dx, dy) {
  const [, other] = [...pointers].find(([key]) => key !== id);
  const last = pointers.get(id);
  const distance = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]) || 1;
  state.pan = [state.pan[0] + dx / 2, state.pan[1] + dy / 2];
  const middle = [(point[0] + other[0]) / 2, (point[1] + other[1]) / 2];
  zoomTo((state.zoom * distance(point)) / distance(last), middle);
}

function drag(event, dx, dy) {
  const way = event.buttons === 4 || event.shiftKey ? "move" : state.drag;
  if (way === "window") {
    const [width, center] = [state.high - state.low, (state.high + state.low) / 2];
    const step = Math.max(0.5, width / 300); // HU a CSS pixel: fine where the window is narrow
    const wider = Math.max(1, width + dx * step);
    const lower = center - dy * step;
    setWindow(lower - wider / 2, lower + wider / 2);
  } else if (way === "slices") {
    rest += dy;
    const height = Math.max(4, stage.clientHeight / (1.5 * data.slices.length));
    const steps = Math.trunc(rest / height);
    rest -= steps * height;
    if (steps) moveSlice(steps);
  } else {
    state.pan = [state.pan[0] + dx, state.pan[1] + dy];
    refresh();
  }
}

stage.addEventListener("pointerup", (event) => {
  const last = pointers.get(event.pointerId);
  pointers.delete(event.pointerId);
  if (last && !pointers.size && travel <= 3) clickAt(stagePoint(event));
  else drawPictures();
});
stage.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
stage.addEventListener("pointerleave", () => {
  pointerAt = null;
  showReading();
});

/** Select the smallest box below a click; the click's slice stays. */
function clickAt(point) {
  const [x, y] = fromStage(...point);
  const size = (one) => (one.box[3] - one.box[0]) * (one.box[4] - one.box[1]);
  const hits = findingsAt(state.slice)
    .filter(({ box }) => box[0] <= x && x <= box[3] && box[1] <= y && y <= box[4])
    .sort((one, other) => size(one) - size(other));
  if (!hits.length || !state.layers.boxes) return;
  state.selected = hits[0].number;
  announceFinding(hits[0]);
  refresh();
}

const PAN_STEP = 40; // CSS pixels

function moveImage(x, y) {
  state.pan = [state.pan[0] + x * PAN_STEP, state.pan[1] + y * PAN_STEP];
  refresh();
}

/** Of a magnified image, with Shift: another part of it comes into sight. */
const PANS = {
  ArrowDown: () => moveImage(0, -1),
  ArrowRight: () => moveImage(-1, 0),
  ArrowUp: () => moveImage(0, 1),
  ArrowLeft: () => moveImage(1, 0),
};

const MOVES = {
  ArrowDown: () => moveSlice(1),
  ArrowRight: () => moveSlice(1),
  ArrowUp: () => moveSlice(-1),
  ArrowLeft: () => moveSlice(-1),
  PageDown: () => moveSlice(10),
  PageUp: () => moveSlice(-10),
  Home: () => goToSlice(data.slices[0]),
  End: () => goToSlice(data.slices[data.slices.length - 1]),
};

// Single letters work inside the viewer alone: speech input and screen readers send them as well.
const LETTERS = {
  n: () => moveFinding(1),
  p: () => moveFinding(-1),
  b: () => toggleLayer("boxes"),
  m: () => toggleLayer("masks"),
  d: () => toggleLayer("diameters"),
  "+": () => zoomTo(state.zoom * 1.25),
  "=": () => zoomTo(state.zoom * 1.25),
  "-": () => zoomTo(state.zoom / 1.25),
  0: () => zoomTo(1),
};
data.presets.forEach((preset, i) => {
  LETTERS[i + 1] = () => usePreset(preset);
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.shiftKey && event.target === stage && PANS[event.key]) {
    event.preventDefault();
    PANS[event.key]();
    return;
  }
  const viewing = event.target === document.body || event.target === stage || event.target === strip;
  const action = viewing && (MOVES[event.key] ?? LETTERS[event.key.toLowerCase()]);
  if (!action || (event.target === document.body && !MOVES[event.key])) return;
  event.preventDefault();
  action();
  // The strip is a slider, which says its value itself.
  if (MOVES[event.key] && event.target !== strip) byId("spoken").textContent = sliceText();
});

// The slice in its window, and where it stands on the stage.

const stage = byId("stage");
const image = byId("image");
const overlay = byId("overlay");
image.width = data.width;
image.height = data.height;

let shown = null; // {z, pixels} of the slice on the stage

/** Colours (RGBA) of the 4096 values that a pixel can have. */
function windowColors(low, high) {
  const colors = new Uint32Array(4096);
  for (let value = 0; value < 4096; value++) {
    const share = (value - 1024 - low) / (high - low);
    const gray = Math.floor(255 * Math.max(0, Math.min(1, share)) + 0.5);
    colors[value] = (255 << 24) | (gray << 16) | (gray << 8) | gray;
  }
  return colors;
}

function paint(canvas, pixels, width, height) {
  const colors = windowColors(state.low, state.high);
  const picture = new ImageData(width, height);
  const target = new Uint32Array(picture.data.buffer);
  for (let i = 0; i < pixels.length; i++) target[i] = colors[pixels[i]];
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

/** Draw the slice of the state; a slice that was left while it was decoded is not drawn. */
async function drawSlice() {
  const z = state.slice;
  if (shown?.z !== z) {
    const pixels = await loadSlice(z).catch(showError);
    if (!pixels || z !== state.slice) return;
    shown = { z, pixels };
    for (const near of [1, -1]) {
      const next = data.slices[data.slices.indexOf(z) + near];
      if (next !== undefined) loadSlice(next).catch(showError);
    }
  }
  paint(image, shown.pixels, data.width, data.height);
  placeImage();
  drawOverlay();
  showReading();
  Object.assign(stage.dataset, { slice: z, low: state.low, high: state.high });
}

/** Where the image lies on the stage: left, top, width and height in CSS pixels. */
function imagePlace() {
  const [wide, high] = [data.width * data.spacing[0], data.height * data.spacing[1]];
  const scale = Math.min(stage.clientWidth / wide, stage.clientHeight / high) * state.zoom;
  const size = [wide * scale, high * scale];
  const place = [stage.clientWidth, stage.clientHeight].map((room, axis) => {
    const reach = Math.max(0, (size[axis] - room) / 2);
    state.pan[axis] = Math.max(-reach, Math.min(reach, state.pan[axis]));
    return (room - size[axis]) / 2 + state.pan[axis];
  });
  return { left: place[0], top: place[1], width: size[0], height: size[1] };
}

/** In parts of the stage, which keeps its shape on paper but not its size. */
function placeImage() {
  const place = imagePlace();
  const room = { left: stage.clientWidth, top: stage.clientHeight };
  [room.width, room.height] = [room.left, room.top];
  for (const side in room) image.style[side] = `${(100 * place[side]) / room[side]}%`;
  stage.style.setProperty("--shape", stage.clientWidth / stage.clientHeight);
}

/** Voxel (x, y), centres of pixels from 0, to CSS pixels of the stage. */
function toStage(x, y, place = imagePlace()) {
  return [
    place.left + ((x + 0.5) * place.width) / data.width,
    place.top + ((y + 0.5) * place.height) / data.height,
  ];
}

function fromStage(left, top, place = imagePlace()) {
  return [
    ((left - place.left) * data.width) / place.width - 0.5,
    ((top - place.top) * data.height) / place.height - 0.5,
  ];
}

/** Zoom so that what lies at a point of the stage (CSS pixels) stays there. */
function zoomTo(zoom, point = [stage.clientWidth / 2, stage.clientHeight / 2]) {
  const before = fromStage(...point);
  state.zoom = Math.max(1, Math.min(16, zoom));
  const after = toStage(...before);
  state.pan = state.pan.map((pan, axis) => pan + point[axis] - after[axis]);
  refresh();
}

/** Where the image is larger than the stage, move the middle of a box to the stage's. */
function centerOn([x1, y1, , x2, y2]) {
  const middle = toStage((x1 + x2) / 2, (y1 + y2) / 2);
  const room = [stage.clientWidth, stage.clientHeight];
  state.pan = state.pan.map((pan, axis) => pan + room[axis] / 2 - middle[axis]);
}

/** LPS coordinates in mm of a voxel. */
function toPatient(x, y, z) {
  const steps = [x, y, z].map((value, axis) => value * data.spacing[axis]);
  return data.origin.map(
    (start, row) => start + steps.reduce((sum, step, axis) => sum + data.direction[row][axis] * step, 0),
  );
}

let pointerAt = null; // the voxel below the mouse

/** The HU and the place below the mouse, as text in the corner. */
function showReading() {
  const [x, y] = (pointerAt ?? []).map(Math.round);
  const inside = pointerAt && x >= 0 && y >= 0 && x < data.width && y < data.height;
  if (!inside || !shown) {
    byId("reading").textContent = "";
    return;
  }
  const value = shown.pixels[y * data.width + x] - 1024;
  const sign = { [-1024]: "≤ ", 3071: "≥ " }[value] ?? "";
  const sides = ["LR", "PA", "SI"];
  const place = toPatient(x, y, shown.z).map(
    (mm, axis) => `${sides[axis][mm < 0 ? 1 : 0]} ${Math.abs(mm).toFixed(1)}`,
  );
  byId("reading").textContent = `${sign}${minus(value)} HU\n${place.join(" ")} mm`;
}

const minus = (number) => String(number).replace("-", "\u2212");

function showError(error) {
  byId("problem").textContent = `This browser could not show a slice (${error.message ?? error}).`;
  byId("problem").hidden = false;
}

// The strip beside the slice: the scan from its first slice to its last, and where findings lie.

const strip = byId("strip");
const stripCanvas = byId("strip-picture");

/** Findings side by side where they share slices: number -> lane. */
function findingLanes() {
  const ends = [];
  const lanes = new Map();
  for (const one of [...data.findings].sort((a, b) => a.box[2] - b.box[2])) {
    let lane = ends.findIndex((end) => end < one.box[2]);
    if (lane < 0) lane = ends.length;
    ends[lane] = one.box[5] + data.depth / 40; // room for the least height of a mark
    lanes.set(one.number, lane);
  }
  return { lanes, count: Math.max(1, ends.length) };
}
const { lanes, count: laneCount } = findingLanes();

const stripTop = (z) => ((z + 0.5) / data.depth) * strip.clientHeight;

function drawStrip() {
  const { context, width, height } = clearedCanvas(stripCanvas, strip);
  const tall = Math.max(1, height / data.depth);
  context.fillStyle = COLORS.faint;
  for (const z of data.slices) context.fillRect(0, stripTop(z) - tall / 2, 6, Math.max(1, tall - 1));
  const lane = (width - 12) / laneCount;
  for (const one of data.findings.filter(isShown)) {
    const [first, last] = [stripTop(one.box[2] - 0.5), stripTop(one.box[5] + 0.5)];
    const mark = Math.max(5, last - first);
    context.fillStyle = one.number === state.selected ? COLORS.selected : COLORS.plain;
    const left = 9 + lanes.get(one.number) * lane;
    context.fillRect(left, (first + last - mark) / 2, Math.max(1.5, Math.min(10, lane - 1.5)), mark);
  }
  context.fillStyle = COLORS.ink;
  context.fillRect(0, stripTop(state.slice) - 1, width, 2);
}

/** The finding whose mark lies at a point of the strip (CSS pixels), 3 pixels around it included. */
function findingOnStrip(x, y) {
  const lane = Math.floor((x - 9) / ((strip.clientWidth - 12) / laneCount));
  return data.findings.find(
    (one) =>
      isShown(one) &&
      lanes.get(one.number) === lane &&
      stripTop(one.box[2] - 0.5) - 3 <= y &&
      y <= stripTop(one.box[5] + 0.5) + 3,
  );
}

let pressedAt = null; // where on the strip the pointer went down

strip.addEventListener("pointerdown", (event) => {
  strip.setPointerCapture(event.pointerId);
  const bounds = strip.getBoundingClientRect();
  pressedAt = event.clientY;
  const hit = findingOnStrip(event.clientX - bounds.left, event.clientY - bounds.top);
  if (hit) selectFinding(hit.number);
  else goToHeight(event.clientY - bounds.top);
});
strip.addEventListener("pointermove", (event) => {
  if (pressedAt === null || Math.abs(event.clientY - pressedAt) < 4) return;
  goToHeight(event.clientY - strip.getBoundingClientRect().top);
});
for (const end of ["pointerup", "pointercancel"]) {
  strip.addEventListener(end, () => {
    pressedAt = null;
  });
}

function goToHeight(y) {
  goToSlice(Math.floor((y / strip.clientHeight) * data.depth));
}

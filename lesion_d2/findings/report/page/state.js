// What the page knows and what it shows. Whoever changes `state` calls `refresh`.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

const state = {
  slice: data.slices[0],
  low: data.presets[0].low, // HU that is black
  high: data.presets[0].high, // HU that is white
  selected: null, // a finding's number
  minScore: 0,
  layers: { boxes: true, masks: true, diameters: true },
  drag: matchMedia("(pointer: coarse)").matches ? "slices" : "window",
  zoom: 1,
  pan: [0, 0], // CSS pixels
};

const findings = new Map(data.findings.map((finding) => [finding.number, finding]));

const isShown = (finding) => finding.score >= state.minScore;

/** The findings that are shown and reach into a slice. */
function findingsAt(z) {
  return data.findings.filter((one) => isShown(one) && one.box[2] <= z && z <= one.box[5]);
}

/** The slice of this file that lies nearest to one of the scan. */
function nearestSlice(z) {
  return data.slices.reduce((best, one) => (Math.abs(one - z) < Math.abs(best - z) ? one : best));
}

/** Go some of the slices that are in this file up or down. */
function moveSlice(steps) {
  const place = data.slices.indexOf(state.slice) + steps;
  goToSlice(data.slices[Math.max(0, Math.min(data.slices.length - 1, place))]);
}

function goToSlice(z) {
  state.slice = nearestSlice(z);
  refresh();
}

function selectFinding(number) {
  state.selected = number;
  goToSlice(findings.get(number).keySlice);
  centerOn(findings.get(number).box);
  announceFinding(findings.get(number));
}

/** Select the next (1) or previous (-1) of the findings that are shown, as the table has them. */
function moveFinding(step) {
  const numbers = shownNumbers();
  if (!numbers.length) return;
  const place = numbers.indexOf(state.selected);
  const next = place < 0 ? (step > 0 ? 0 : numbers.length - 1) : place + step;
  selectFinding(numbers[(next + numbers.length) % numbers.length]);
}

function setWindow(low, high) {
  const center = Math.max(-1024, Math.min(3071, (low + high) / 2));
  const width = Math.max(1, Math.min(4096, high - low));
  state.low = center - width / 2;
  state.high = center + width / 2;
  refresh();
}

let pending = false;

/** Draw everything before the next frame, once. */
function refresh() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => {
    pending = false;
    draw();
  });
}

function draw() {
  showControls();
  drawStrip();
  showRows();
  drawSlice();
}

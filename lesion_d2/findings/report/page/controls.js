// Buttons, boxes to tick, the score's slider, and what they and the corners say.

function usePreset(preset) {
  setWindow(preset.low, preset.high);
  drawPictures();
}

function toggleLayer(name) {
  if (byId(`layer-${name}`).disabled) return;
  state.layers[name] = !state.layers[name];
  refresh();
}

for (const [i, preset] of data.presets.entries()) {
  byId(`preset-${i}`).addEventListener("click", () => usePreset(preset));
}
for (const name of Object.keys(state.layers)) {
  byId(`layer-${name}`).addEventListener("change", (event) => {
    state.layers[name] = event.target.checked;
    refresh();
  });
}
for (const choice of document.querySelectorAll("[name=drag]")) {
  choice.checked = choice.value === state.drag;
  choice.addEventListener("change", () => {
    state.drag = choice.value;
  });
}
for (const [id, action] of Object.entries({
  "zoom-in": () => zoomTo(state.zoom * 1.5),
  "zoom-out": () => zoomTo(state.zoom / 1.5),
  "zoom-fit": () => zoomTo(1),
  previous: () => moveFinding(-1),
  next: () => moveFinding(1),
})) {
  byId(id).addEventListener("click", action);
}

for (const id of ["level", "width"]) {
  byId(id).addEventListener("change", () => {
    const [level, width] = ["level", "width"].map((name) => byId(name).valueAsNumber);
    if (Number.isFinite(level) && width >= 1) setWindow(level - width / 2, level + width / 2);
    else refresh();
    drawPictures();
  });
}

const scoreSlider = byId("score");
scoreSlider.addEventListener("input", () => {
  // The least position shows all: a score is rounded up to no step of the slider.
  const least = scoreSlider.value === scoreSlider.min;
  state.minScore = least ? 0 : scoreSlider.valueAsNumber;
  refresh();
});

byId("print").addEventListener("click", async () => {
  for (const finding of data.findings) await loadPicture(finding);
  print();
});

/** Whatever says what the state is, but the images. */
function showControls() {
  const [low, high] = [Math.round(state.low), Math.round(state.high)];
  for (const [i, preset] of data.presets.entries()) {
    byId(`preset-${i}`).setAttribute("aria-pressed", preset.low === low && preset.high === high);
  }
  for (const [name, on] of Object.entries(state.layers)) byId(`layer-${name}`).checked = on;
  const [level, width] = [(low + high) / 2, high - low].map(Math.round);
  byId("level").value = level;
  byId("width").value = width;
  byId("window").textContent = `W ${width}  L ${minus(level)}`;
  byId("score-shown").textContent = scoreSlider.valueAsNumber.toFixed(2);
  scoreSlider.setAttribute("aria-valuetext", scoreSlider.valueAsNumber.toFixed(2));
  byId("slice-shown").textContent = `${state.slice + 1} / ${data.depth}`;
  byId("near").textContent = nearText();
  strip.setAttribute("aria-valuenow", state.slice + 1);
  strip.setAttribute("aria-valuetext", sliceText());
  stage.setAttribute("aria-label", sliceText());
}

function sliceText() {
  const here = findingsAt(state.slice).map((one) => one.number);
  const text = `Slice ${state.slice + 1} of ${data.depth}`;
  return here.length ? `${text}, findings ${here.join(", ")}` : text;
}

/** Which slices the file skips next to the one that is shown. */
function nearText() {
  const place = data.slices.indexOf(state.slice);
  const after = (data.slices[place + 1] ?? state.slice + 1) - state.slice - 1;
  const before = state.slice - (data.slices[place - 1] ?? state.slice - 1) - 1;
  return Math.max(before, after) ? `skips ${before} above, ${after} below` : "";
}

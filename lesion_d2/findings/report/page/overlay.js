// What is drawn over the slice: boxes, masks, diameters, numbers and a scale.

// The viewer is as dark on paper, so these are not the style's.
const COLORS = {
  plain: "#ffd54a",
  selected: "#4fd8ff",
  halo: "rgba(0, 0, 0, 0.75)",
  ink: "#e8eef4",
  faint: "#5c6b7c",
};

/** A canvas cleared and made as large as what holds it: its context and size, in CSS pixels. */
function clearedCanvas(canvas, holder) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [holder.clientWidth, holder.clientHeight];
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}

function drawOverlay() {
  const { context, width, height } = clearedCanvas(overlay, stage);
  const place = imagePlace();
  drawScale(context, place, width, height);
  const here = findingsAt(state.slice);
  // The selected one comes last, above the others.
  here.sort((one, other) => (one.number === state.selected) - (other.number === state.selected));
  for (const finding of here) drawFinding(context, place, finding);
}

function drawFinding(context, place, finding) {
  const color = finding.number === state.selected ? COLORS.selected : COLORS.plain;
  const part = finding.slices.find((one) => one.z === state.slice);
  if (state.layers.masks && part?.mask) drawMask(context, place, part.mask, color);
  if (state.layers.boxes) {
    // Between the slices that have a box of their own, that of the whole finding, dashed.
    const [x1, y1, x2, y2] = part?.box ?? [0, 1, 3, 4].map((side) => finding.box[side]);
    const [left, top] = toStage(x1, y1, place);
    const [right, bottom] = toStage(x2, y2, place);
    context.setLineDash(part ? [] : [5, 4]);
    const path = new Path2D();
    path.rect(left, top, right - left, bottom - top);
    strokeTwice(context, path, color, finding.number === state.selected ? 2 : 1.5);
    context.setLineDash([]);
    drawLabel(context, `${finding.number}`, left, top, color);
  }
  if (state.layers.diameters) {
    for (const diameter of [finding.long, finding.short]) {
      if (diameter.z === state.slice) drawDiameter(context, place, diameter, color);
    }
  }
}

function strokeTwice(context, path, color, width) {
  context.strokeStyle = COLORS.halo;
  context.lineWidth = width + 2;
  context.stroke(path);
  context.strokeStyle = color;
  context.lineWidth = width;
  context.stroke(path);
}

function drawLabel(context, text, left, top, color) {
  context.font = "600 13px system-ui, sans-serif";
  const width = context.measureText(text).width + 8;
  const x = Math.max(0, Math.min(stage.clientWidth - width, left));
  const y = Math.max(0, top - 20);
  context.fillStyle = color;
  context.fillRect(x, y, width, 17);
  context.fillStyle = "#101418";
  context.fillText(text, x + 4, y + 13);
}

function drawDiameter(context, place, diameter, color) {
  const [start, end] = diameter.points.map((point) => toStage(...point, place));
  const path = new Path2D();
  path.moveTo(...start);
  path.lineTo(...end);
  const length = Math.hypot(end[0] - start[0], end[1] - start[1]) || 1;
  const across = [(-(end[1] - start[1]) / length) * 4, ((end[0] - start[0]) / length) * 4];
  for (const [x, y] of [start, end]) {
    path.moveTo(x - across[0], y - across[1]);
    path.lineTo(x + across[0], y + across[1]);
  }
  strokeTwice(context, path, color, 1.25);
}

/** A mask as runs of pixels (y, first x, last x): filled faintly, its pixels' outer edge drawn. */
function drawMask(context, place, runs, color) {
  const area = new Path2D();
  const edge = new Path2D();
  const rows = new Map();
  for (let i = 0; i < runs.length; i += 3) {
    const [y, first, last] = [runs[i], runs[i + 1], runs[i + 2]];
    const [left, top] = toStage(first - 0.5, y - 0.5, place);
    const [right, bottom] = toStage(last + 0.5, y + 0.5, place);
    area.rect(left, top, right - left, bottom - top);
    for (const x of [left, right]) {
      edge.moveTo(x, top);
      edge.lineTo(x, bottom);
    }
    rows.set(y, [...(rows.get(y) ?? []), first, last + 1]);
  }
  for (const y of new Set([...rows.keys()].flatMap((row) => [row, row + 1]))) {
    // Pixels of one of two rows alone lie between an odd border and the next.
    const borders = [...(rows.get(y - 1) ?? []), ...(rows.get(y) ?? [])].sort((a, b) => a - b);
    for (let i = 0; i < borders.length; i += 2) {
      edge.moveTo(...toStage(borders[i] - 0.5, y - 0.5, place));
      edge.lineTo(...toStage(borders[i + 1] - 0.5, y - 0.5, place));
    }
  }
  context.globalAlpha = 0.18;
  context.fillStyle = color;
  context.fill(area);
  context.globalAlpha = 1;
  context.strokeStyle = color;
  context.lineWidth = 1;
  context.stroke(edge);
}

/** A bar of a round length, above the lower right corner. */
function drawScale(context, place, width, height) {
  const pixelsPerMm = place.width / (data.width * data.spacing[0]);
  const length = [100, 50, 20, 10, 5, 2].find((mm) => mm * pixelsPerMm <= width / 4) ?? 1;
  const [left, right, bottom] = [width - 10 - length * pixelsPerMm, width - 10, height - 30];
  const path = new Path2D();
  path.moveTo(left, bottom - 6);
  path.lineTo(left, bottom);
  path.lineTo(right, bottom);
  path.lineTo(right, bottom - 6);
  strokeTwice(context, path, COLORS.ink, 1.5);
  const text = length >= 10 ? `${length / 10} cm` : `${length} mm`;
  context.font = "12px system-ui, sans-serif";
  const wide = context.measureText(text).width + 6;
  context.fillStyle = COLORS.halo;
  context.fillRect(right - wide, bottom - 25, wide, 16);
  context.fillStyle = COLORS.ink;
  context.fillText(text, right - wide + 3, bottom - 13);
}

// The table of findings: its rows stand in the page; here they get pictures and life.

const body = byId("rows");
const rows = new Map(); // number -> row, in the order of the table
for (const row of body.rows) rows.set(Number(row.dataset.finding), row);

const shownNumbers = () => [...rows.keys()].filter((number) => isShown(findings.get(number)));

function showRows() {
  for (const [number, row] of rows) {
    const finding = findings.get(number);
    row.hidden = !isShown(finding);
    row.classList.toggle("here", finding.box[2] <= state.slice && state.slice <= finding.box[5]);
    if (number === state.selected) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
  const count = shownNumbers().length;
  byId("count").textContent = `${count} of ${data.findings.length} shown`;
  byId("none").hidden = count > 0;
}

body.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (row) selectFinding(Number(row.dataset.finding));
});

/** Bring the selected row into sight, inside its own list alone. */
function showSelectedRow() {
  const row = rows.get(state.selected);
  const list = byId("list");
  if (!row || list.scrollHeight <= list.clientHeight) return;
  const [inner, outer] = [row.getBoundingClientRect(), list.getBoundingClientRect()];
  const header = list.querySelector("thead").offsetHeight;
  if (inner.top < outer.top + header) list.scrollTop -= outer.top + header - inner.top;
  if (inner.bottom > outer.bottom) list.scrollTop += inner.bottom - outer.bottom;
}

function announceFinding(finding) {
  showSelectedRow();
  const text = `Finding ${finding.number}, score ${finding.score.toFixed(2)}`;
  byId("spoken").textContent = `${text}, slice ${state.slice + 1}`;
}

const SORT_BY = {
  score: (finding) => -finding.score,
  size: (finding) => -finding.long.mm,
  place: (finding) => finding.keySlice,
};

for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => {
    const key = SORT_BY[button.dataset.sort];
    const header = button.closest("th");
    const back = header.getAttribute("aria-sort") === header.dataset.first;
    const sign = back ? -1 : 1;
    for (const other of document.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    const turned = { ascending: "descending", descending: "ascending" }[header.dataset.first];
    header.setAttribute("aria-sort", back ? turned : header.dataset.first);
    const order = [...rows].sort(
      ([a], [b]) => sign * (key(findings.get(a)) - key(findings.get(b))) || a - b,
    );
    rows.clear();
    for (const [number, row] of order) {
      rows.set(number, row);
      body.append(row);
    }
  });
}

const patches = new Map(); // number -> {pixels, size, ...} of its picture

/** What a finding's picture shows: a square of its key slice, in mm, with room around its box. */
function pictureArea(finding) {
  const part = finding.slices.find((one) => one.z === finding.keySlice);
  const [x1, y1, x2, y2] = part?.box ?? [0, 1, 3, 4].map((side) => finding.box[side]);
  const [sx, sy] = data.spacing;
  const side = Math.max(30, 1.6 * Math.max((x2 - x1) * sx, (y2 - y1) * sy));
  const [wide, high] = [Math.round(side / sx), Math.round(side / sy)];
  const left = Math.round((x1 + x2) / 2 - wide / 2);
  const top = Math.round((y1 + y2) / 2 - high / 2);
  return { left, top, wide, high, box: [x1, y1, x2, y2] };
}

async function loadPicture(finding) {
  if (patches.has(finding.number) || !data.slices.includes(finding.keySlice)) return;
  patches.set(finding.number, null);
  const pixels = await loadSlice(finding.keySlice);
  const area = pictureArea(finding);
  const patch = new Uint16Array(area.wide * area.high);
  for (let y = 0; y < area.high; y++) {
    for (let x = 0; x < area.wide; x++) {
      const [column, line] = [area.left + x, area.top + y];
      const inside = column >= 0 && line >= 0 && column < data.width && line < data.height;
      patch[y * area.wide + x] = inside ? pixels[line * data.width + column] : 0;
    }
  }
  patches.set(finding.number, { ...area, pixels: patch });
  drawPicture(finding.number);
}

function drawPicture(number) {
  const patch = patches.get(number);
  if (!patch) return;
  const canvas = rows.get(number).querySelector("canvas");
  const small = document.createElement("canvas");
  [small.width, small.height] = [patch.wide, patch.high];
  paint(small, patch.pixels, patch.wide, patch.high);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  const scale = [canvas.width / patch.wide, canvas.height / patch.high];
  const [left, top, right, bottom] = patch.box.map(
    (value, i) => (value + 0.5 - (i % 2 ? patch.top : patch.left)) * scale[i % 2],
  );
  const outline = new Path2D();
  outline.rect(left, top, right - left, bottom - top);
  strokeTwice(context, outline, COLORS.plain, 2);
}

function drawPictures() {
  for (const number of patches.keys()) drawPicture(number);
}

const EARLY_PICTURES = 200;

/** Make the first pictures while nobody waits, so that a printed page has them. */
async function loadPictures() {
  for (const finding of data.findings.slice(0, EARLY_PICTURES)) await loadPicture(finding);
}

// The others are made when their rows come near the screen.
const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      watcher.unobserve(entry.target);
      loadPicture(findings.get(Number(entry.target.dataset.finding))).catch(showError);
    }
  },
  { rootMargin: "300px" },
);
for (const row of rows.values()) watcher.observe(row);
